"""Format an inspection as tables for a terminal, and summarise its main findings in sentences."""

from typing import TYPE_CHECKING

from .comparison import PromptComparison

if TYPE_CHECKING:
    from .results import Inspection, Position, PromptInspection, Word

LONGER = 99.0
"""Percentile of the vocabulary's norms above which a vector counts as longer than the vocabulary's."""
ALIKE = 0.9


def as_text(inspection: "Inspection") -> str:
    """Return the whole inspection as text that is safe to print."""
    parts = [_prompt(prompt) for prompt in inspection.prompts]
    if inspection.comparison is not None:
        parts.append(_comparison(inspection.comparison))
    return "\n".join(map(printable, "\n\n".join(parts).split("\n"))) + "\n"


def printable(text: str) -> str:
    """Return a text in which line breaks, control characters and direction characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _prompt(prompt: "PromptInspection") -> str:
    lines = [
        f"prompt {prompt.name!r}",
        f"  backbone    {prompt.backbone!r}",
        f"  vectors     {len(prompt.positions)} of width {prompt.width}",
        f"  started as  {prompt.started_as!r}",
    ]
    if prompt.place:
        lines.append(f"  stands      {place_in_words(prompt)}")
    if prompt.source is not None:
        lines.append(f"  format      {prompt.source!r} -> {' | '.join(map(repr, prompt.targets))}")
    if prompt.recorded:
        lines.append(f"  recorded    {', '.join(f'{name!r}: {value:.4g}' for name, value in prompt.recorded.items())}")
    if prompt.rows:
        lines.append(f"  text        {rows_in_words(prompt)}")
    lines += ["", *(f"  - {finding}" for finding in findings(prompt)), ""]
    lines += _table(_header(prompt), [_cells(prompt, position) for position in prompt.positions])
    return "\n".join(lines)


def place_in_words(prompt: "PromptInspection") -> str:
    """Return where a prompt stands, which is not at the start, in words."""
    text, ids = prompt.place.get("head_text"), prompt.place["head_token_ids"]
    return f"{prompt.place['prompt_position']}, behind {f'{text!r}, ' if text else ''}token ids {ids}"


def rows_in_words(prompt: "PromptInspection") -> str:
    """Return the number of rows, and the prompt's accuracy and loss on them, in words."""
    words = f"{prompt.rows} rows"
    if prompt.loss is not None:
        accuracy = "" if prompt.accuracy is None else f"accuracy {prompt.accuracy:.3f}, "
        words += f", {prompt.labelled_rows} of them with a target: {accuracy}loss {prompt.loss:.4f}"
    return words


def _header(prompt: "PromptInspection") -> list[str]:
    header = ["#", "nearest by cosine (cosine, distance)", "by distance", "norm", "pct"]
    if "moved" not in prompt.notes:
        header += ["from", "moved", "cosine"]
    if prompt.attention_by_layer:
        header.append("attention")
    if prompt.loss is not None:
        header += ["loss without", *(["accuracy without"] if prompt.accuracy is not None else [])]
    return header


def _cells(prompt: "PromptInspection", position: "Position") -> list[str]:
    cells = [
        str(position.number),
        "  ".join(map(_word, position.by_cosine[:3])),
        "  ".join(map(_word, position.by_distance[:1])),
        f"{position.norm:.3g}",
        f"{position.norm_percentile:.0f}%",
    ]
    if position.moved is not None:
        cells += [repr(position.moved.start.text), f"{position.moved.distance:.3g}", f"{position.moved.cosine:.2f}"]
    if position.attention is not None:
        cells.append(f"{100 * position.attention:.2f}%")
    if position.loss_without is not None:
        cells.append(f"{position.loss_without:.4f}")
        if position.accuracy_without is not None:
            cells.append(f"{position.accuracy_without:.3f}")
    return cells


def _word(word: "Word") -> str:
    return f"{word.text!r} ({word.cosine:.2f}, {word.distance:.2f})"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def findings(prompt: "PromptInspection") -> list[str]:
    """Return the main findings in sentences, including the reasons for unknown results."""
    return [*_of_vectors(prompt), *_of_attention(prompt), *_of_removal(prompt), *_unknown(prompt)]


def _of_vectors(prompt: "PromptInspection") -> list[str]:
    positions = prompt.positions
    longer = sum(p.norm_percentile > LONGER for p in positions)
    nearest = sum(p.by_cosine[0].cosine for p in positions) / len(positions)
    sentences = [
        f"{_count(longer, len(positions))} longer than {LONGER:.0f} % of the vocabulary's (norms "
        f"{min(p.norm for p in positions):.3g} to {max(p.norm for p in positions):.3g}, "
        f"the vocabulary's median {prompt.vocabulary_norms['quantiles']['50']:.3g}).",
        f"The nearest word has a cosine of {nearest:.2f} on average.",
    ]
    moves = [p.moved for p in positions if p.moved is not None]
    if moves:
        far = max(positions, key=lambda p: p.moved.distance)
        kept = sum(move.still_nearest for move in moves)
        sentences.append(
            f"Vectors moved by {sum(m.distance for m in moves) / len(moves):.3g} on average, position {far.number} "
            f"most ({far.moved.distance:.3g}); {kept} of {len(moves)} are still nearest to the word that they "
            "started as."
        )
    pairs = [(prompt.similarity[i][j], i + 1, j + 1) for i in range(len(positions)) for j in range(i)]
    if pairs:
        cosine, first, second = max(pairs)
        alike = sum(pair[0] > ALIKE for pair in pairs)
        sentences.append(
            f"The most alike positions are {second} and {first} (cosine {cosine:.2f}); {alike} of {len(pairs)} pairs "
            f"are above {ALIKE}."
        )
    return sentences


def _of_attention(prompt: "PromptInspection") -> list[str]:
    if not prompt.attention_by_layer:
        return []
    total = sum(p.attention for p in prompt.positions)
    most = max(prompt.positions, key=lambda p: p.attention)
    return [
        f"The text pays {100 * total:.0f} % of its attention to the prompt, the largest share to position "
        f"{most.number} ({100 * most.attention:.1f} %)."
    ]


def _of_removal(prompt: "PromptInspection") -> list[str]:
    if prompt.loss is None:
        return []
    total = len(prompt.positions)
    worst = max(prompt.positions, key=lambda p: p.loss_without)
    better = sum(p.loss_without < prompt.loss for p in prompt.positions)
    loss = f"The loss is {prompt.loss:.4f}; "
    if worst.loss_without > prompt.loss:
        loss += f"without position {worst.number}, the one that is missed most, it is {worst.loss_without:.4f}. "
    else:
        loss += "no removal raises it. "
    sentences = [loss + f"{_count(better, total, 'lowers', 'lower')} it by leaving."]
    if prompt.accuracy is not None:
        same = sum(p.accuracy_without == prompt.accuracy for p in prompt.positions)
        low = min(prompt.positions, key=lambda p: p.accuracy_without)
        accuracy = (
            f"The accuracy is {prompt.accuracy:.3f}, the same without {same} of {total} vectors, each on its own; "
        )
        if low.accuracy_without < prompt.accuracy:
            accuracy += f"it is lowest without position {low.number} ({low.accuracy_without:.3f})."
        else:
            accuracy += "no removal lowers it."
        sentences.append(accuracy)
    return sentences


def _unknown(prompt: "PromptInspection") -> list[str]:
    what = {
        "moved": "How far the vectors moved",
        "attention": "The attention that they get",
        "without": "What the prompt is worth without each",
    }
    return [f"{what[name]} is not known: {reason.rstrip('.')}." for name, reason in prompt.notes.items()]


def _count(number: int, total: int, singular: str = "is", plural: str = "are") -> str:
    return f"{number} of {total} vectors {singular if number == 1 else plural}"


def _comparison(compared: PromptComparison) -> str:
    names = compared.names
    lines = [f"comparison of {len(names)} prompts"]
    for title, matrix in (
        ("cosine of the mean vectors", compared.mean_cosine),
        ("mean cosine of all pairs of vectors", compared.pairwise_cosine),
    ):
        numbers = [str(i + 1) for i in range(len(names))]
        rows = [[f"{i + 1} {names[i]!r}", *(f"{x:.3f}" for x in row)] for i, row in enumerate(matrix)]
        lines += ["", f"  {title}", *_table(["", *numbers], rows)]
    lines += ["", "  to start a prompt from another (the most alike first):"]
    lines += [f"  {name!r} <- {', '.join(map(repr, others))}" for name, others in compared.transfer.items()]
    return "\n".join(lines)
