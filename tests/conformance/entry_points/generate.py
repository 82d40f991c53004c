"""`model.generate(…)`: greedy search, beams, sampling."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.shared.versions import LAYERS_DRAW

from .. import oracle
from ..prompts import asked
from ..rows import Batch, ends, rows
from ..world import Setting, World, require
from .base import Call, EntryPoint, batch, prompts_of

SAID = ("max_new_tokens", "max_length", "max_new_tokens in config", "max_length in config")
SOON = list(range(40, 140))


@dataclass(frozen=True)
class Generation(Call):
    """A call of generate, as it is drawn.

    Attributes:
        new: how many tokens at most.
        said_as: how that is said, one of `SAID`: beside the call's other arguments or in a `generation_config`.
        ends_soon: whether a third of all tokens end a text.
        options: further arguments.
    """

    new: int = 3
    said_as: str = SAID[0]
    ends_soon: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def ends(self, world: World) -> list[int]:
        return SOON if self.ends_soon else ends(world.setting.family)

    def pad(self, world: World) -> int:
        pad = world.family.token("pad")
        return world.family.token("eos") if pad is None else pad

    def said(self, world: World) -> dict[str, Any]:
        """All but the length."""
        said = dict(self.options) | ({"eos_token_id": SOON} if self.ends_soon else {})
        return said if world.family.token("pad") is not None else said | {"pad_token_id": self.pad(world)}

    def arguments(self, world: World, columns: int) -> dict[str, Any]:
        """All, as they are given to the model; `max_length` counts `columns`."""
        length = {"max_length": columns + self.new} if "max_length" in self.said_as else {"max_new_tokens": self.new}
        said = self.said(world) | length
        if "config" not in self.said_as:
            return said
        config = copy.deepcopy(world.bare.generation_config)
        config.update(**said)
        return {"generation_config": config}


class Generate(EntryPoint):
    """Greedy search."""

    name, cases = "generate", 1000
    always: tuple[tuple[str, Any], ...] = (("do_sample", False), ("num_beams", 1))
    outputs: tuple[str, ...] = ()
    options: tuple[tuple[tuple[str, Any], ...], ...] = (
        (),
        (),
        (("use_cache", False),),
        (("repetition_penalty", 1.3),),
        (("min_new_tokens", 2),),
        (("no_repeat_ngram_size", 2),),
        (("suppress_tokens", SOON),),
        (("cache_implementation", "static"),),
    )

    def arguments(self, draw: Any, setting: Setting) -> Generation:
        drawn, options = draw(rows()), draw(st.sampled_from(self.options))
        if setting.family == "falcon" and dict(options).get("cache_implementation"):
            options = ()  # its ALiBi fails with a static cache, also without a prompt
        return Generation(
            rows=drawn,
            asked=draw(asked(len(setting.prompts), len(drawn.lengths))),
            grad=draw(st.booleans()),
            style=draw(st.sampled_from(["ids", "positional"])),
            new=draw(st.integers(1, 5)),
            said_as=draw(st.sampled_from(SAID)),
            ends_soon=draw(st.booleans()),
            options=options,
        )

    def call(self, world: World, call: Generation) -> Any:
        given = batch(world, call)
        inputs = given.inputs | call.asked.arguments
        positional = [inputs.pop("input_ids")] if call.style == "positional" else []
        options = call.arguments(world, 1 if world.family.is_encoder_decoder else given.input_ids.shape[1])
        always = dict(self.always) | dict.fromkeys(self.outputs, True)
        if "generation_config" in options:
            options["generation_config"].update(**always)
        else:
            options |= always
        torch.manual_seed(call.rows.seed)
        with torch.set_grad_enabled(call.grad), call.asked.within(world.model):
            return world.model.generate(*positional, **inputs, **options)

    @torch.no_grad()
    def check(self, world: World, call: Generation, got: Any) -> None:
        given = batch(world, call, told=(call.pad(world), call.ends(world)))
        new, lengths = new_tokens(world, given, got, 1), []
        for row, name in enumerate(prompts_of(world, call)):
            right = self.right(world, call, name, given.texts[row])
            lengths.append(self._same(world, call, new[row], right))
        if None not in lengths:
            require(new.shape[1] == max(lengths), f"{new.shape[1]} new tokens, not {max(lengths)}")

    def right(self, world: World, call: Generation, name: str, ids: Tensor) -> Any:
        """What the bare backbone generates for the row."""
        said = call.said(world) | dict(self.always) | {"max_new_tokens": call.new}
        said.pop("cache_implementation", None)
        return oracle.generated(world.bare, world.prompt(name), ids, **said)

    @staticmethod
    def _same(world: World, call: Generation, new: Tensor, right: Any) -> int | None:
        """Raises Unequal where a row's tokens are others; returns how many there are, None behind a tie."""
        scores = torch.stack([step[0] for step in right.scores])
        expected = right.sequences[0, -len(scores) :]
        for t, (score, token) in enumerate(zip(scores, expected, strict=True)):
            if t >= len(new) or new[t] != token:
                tie = t < len(new) and tied(world, score, int(new[t]), int(token))
                require(tie, f"token {t} of {new.tolist()}, not of {expected.tolist()}")
                return None
        behind = new[len(expected) :]
        require(bool((behind == call.pad(world)).all()), f"behind its end a row has {behind.tolist()}")
        return len(expected)


def tied(world: World, scores: Tensor, said: int, right: int) -> bool:
    """Whether two tokens' scores are the same but for rounding."""
    return bool(scores[right] - scores[said] <= world.tolerance * scores[scores.isfinite()].abs().max())


def new_tokens(world: World, given: Batch, got: Any, copies: int) -> Tensor:
    """[B * copies, N]: what stands behind the caller's own ids (of an encoder-decoder, behind the start)."""
    sequences = got if isinstance(got, Tensor) else got.sequences
    front = given.input_ids.repeat_interleave(copies, dim=0)
    if world.family.is_encoder_decoder:
        front = torch.full_like(front[:, :1], world.bare.generation_config.decoder_start_token_id)
    require(len(sequences) == len(front), f"{len(sequences)} sequences, not {len(front)}")
    require(torch.equal(sequences[:, : front.shape[1]], front), "the result does not begin with the caller's ids")
    return sequences[:, front.shape[1] :]


def until_end(tokens: Tensor, ends: list[int]) -> list[int]:
    """A text's tokens, its end among them."""
    found: list[int] = []
    for token in tokens.tolist():
        found.append(token)
        if token in ends:
            break
    return found


class Beams(Generate):
    """Beam search: the best two sequences of three beams, with their scores."""

    name, cases = "generate with beams", 600
    always = (("do_sample", False), ("num_beams", 3), ("num_return_sequences", 2))
    outputs = ("return_dict_in_generate", "output_scores")
    options = ((), (("length_penalty", 0.5),), (("early_stopping", True),), (("repetition_penalty", 1.3),))

    @torch.no_grad()
    def check(self, world: World, call: Generation, got: Any) -> None:
        given = batch(world, call, told=(call.pad(world), call.ends(world)))
        new = new_tokens(world, given, got, 2)
        for row, name in enumerate(prompts_of(world, call)):
            right = self.right(world, call, name, given.texts[row])
            world.require_close(
                f"scores of row {row}", got.sequences_scores[2 * row : 2 * row + 2], right.sequences_scores
            )
            start = 1 if world.family.is_encoder_decoder else len(given.texts[row])
            for number in range(2):
                said = until_end(new[2 * row + number], call.ends(world))
                expected = until_end(right.sequences[number, start:], call.ends(world))
                # In half precision other beams may be cut on the way; their scores are as good.
                close = world.backbone.dtype != torch.float32 or bool(right.sequences_scores.diff().abs() < 1e-4)
                require(said == expected or close, f"row {row}, sequence {number}: {said}, not {expected}")


class Samples(Generate):
    """Sampling with a seed: each step's logits are the oracle's, and each token is what the seed draws from them."""

    name, cases = "generate with sampling", 600
    always = (("do_sample", True), ("num_beams", 1), ("temperature", 0.7), ("top_k", 50), ("num_return_sequences", 2))
    outputs = ("return_dict_in_generate", "output_scores", "output_logits")
    options = ((), (("use_cache", False),), (("top_p", 0.9),))
    # Threads draw from one generator.
    befores = [name for name in Generate.befores if name != "threads at once"]  # noqa: RUF012

    @torch.no_grad()
    def check(self, world: World, call: Generation, got: Any) -> None:
        given = batch(world, call, told=(call.pad(world), call.ends(world)))
        new = new_tokens(world, given, got, 2)
        for row, name in enumerate(prompts_of(world, call)):
            for copied in (2 * row, 2 * row + 1):
                said = torch.tensor(until_end(new[copied], call.ends(world)))
                expected = oracle.step_logits(world.bare, world.prompt(name), given.texts[row], said)
                found = torch.stack([step[copied] for step in got.logits[: len(said)]])
                world.require_close(f"logits of sequence {copied}", found, expected)
        layers_draw = any(
            LAYERS_DRAW and hasattr(part, "layerdrop") and part.training for part in world.backbone.modules()
        )
        if not layers_draw:
            _drawn_as_said(world, call, new, got)


def _drawn_as_said(world: World, call: Generation, new: Tensor, got: Any) -> None:
    """Raises Unequal where a token is not what the seed draws, or is drawn from more than the 50 best."""
    torch.manual_seed(call.rows.seed)
    running = torch.ones(len(new), dtype=torch.bool)
    require(len(got.scores) == new.shape[1], f"{len(got.scores)} steps for {new.shape[1]} tokens")
    for step, (scores, logits) in enumerate(zip(got.scores, got.logits, strict=True)):
        drawn = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        expected = torch.where(running, drawn, call.pad(world))
        require(torch.equal(new[:, step], expected), f"step {step} gives {new[:, step]}, and the seed {expected}")
        if not world.family.is_encoder_decoder:
            least = logits.topk(50).values[:, -1:]
            kept = scores.isfinite()
            require(not (kept & (logits < least)).any(), f"step {step} draws from more than the 50 best")
            warmed = torch.where(kept, logits.float() / 0.7, 0.0)
            world.require_close(f"scores of step {step}", torch.where(kept, scores, 0.0), warmed)
        running &= ~torch.isin(expected, torch.tensor(call.ends(world)))
