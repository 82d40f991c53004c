"""What a layout gets and gives. The letters are those of docs/notation.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..sharding import announce_pass
from ..stand_ins import calling, with_part

if TYPE_CHECKING:
    from .computed import ComputedPrompt

IGNORED = -100
"""The label of a position that is not predicted, as everywhere in PyTorch and transformers."""


@dataclass(frozen=True)
class Examples:
    """A batch of embedded examples whose real tokens stand at the left: `[text | pads]`.

    A causal model's result cannot depend on what follows, so pads at the right are exact for every architecture,
    whether it counts positions, looks back through a window or carries a state. `align` brings any batch here.

    Attributes:
        embeds: [B, T, H], the embedded tokens.
        mask: [B, T] bool, True on real tokens.
        labels: [B, T] long with `IGNORED` where nothing is predicted, or None.
        order: [B, T] long; column t of row b was column `order[b, t]` of the batch as it came. None: nothing moved.
    """

    embeds: Tensor
    mask: Tensor
    labels: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def align(cls, embeds: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> "Examples":
        """Moves each row's real tokens to the left, in their order, wherever the pads were.

        Args:
            embeds: [B, T, H].
            mask: [B, T], non-zero on real tokens; None where all are real.
            labels: [B, T] long or None. A label on a pad is not predicted.
        """
        if mask is None:
            return cls(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device), labels)
        mask = mask.bool()
        if labels is not None:
            labels = labels.masked_fill(~mask, IGNORED)
        if bool((mask[:, 1:] <= mask[:, :-1]).all()):
            return cls(embeds, mask, labels)
        order = torch.argsort(~mask, dim=1, stable=True)
        return cls(
            take_columns(embeds, order),
            mask.gather(1, order),
            None if labels is None else labels.gather(1, order),
            order,
        )

    def mask_as_it_came(self) -> Tensor:
        """[B, T] bool, True on real tokens, in the columns of the batch as it came."""
        if self.order is None:
            return self.mask
        return torch.zeros_like(self.mask).scatter(1, self.order, self.mask)

    def select(self, rows: Tensor) -> "Examples":
        """The examples `rows` ([B'] long), without the columns that only pads are left in."""
        mask = self.mask[rows]
        width = int(mask.sum(1).max()) if len(rows) else 0
        labels = None if self.labels is None else self.labels[rows, :width]
        return Examples(self.embeds[rows, :width], mask[:, :width], labels)

    def needed(self) -> "Examples":
        """Without the tokens that predict no label: each row's last labelled token, and all behind it."""
        labelled = self.labels != IGNORED
        predicts_later = labelled.flip(1).cumsum(1).flip(1) - labelled.long() > 0
        return Examples(self.embeds, self.mask & predicts_later, self.labels)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch: G of them, and which one each example has.

    Attributes:
        vectors: G tensors of [P_g, H]; lengths may differ, and 0 is no prompt.
        of: [B] long, the prompt (0 … G-1) of each example.
        names: of the G prompts' adapters; empty where no one asks.
        computed: what was computed of each of the G prompts before, None for no prompt; empty: nothing was.
    """

    vectors: tuple[Tensor, ...]
    of: Tensor
    names: tuple[str, ...] = ()
    computed: "tuple[ComputedPrompt | None, ...]" = ()

    @classmethod
    def one(cls, vectors: Tensor, batch: int) -> "Prompts":
        """The same prompt for all of `batch` examples."""
        return cls((vectors,), torch.zeros(batch, dtype=torch.long, device=vectors.device))

    def lengths(self) -> Tensor:
        """[B] long: how many virtual tokens stand before each example."""
        return torch.tensor([len(v) for v in self.vectors], device=self.of.device)[self.of]

    def of_rows(self) -> tuple[str, ...]:
        """The name of each example's prompt."""
        return tuple(self.names[g] for g in self.of.tolist())

    def groups(self) -> Iterator[tuple[int, Tensor]]:
        """Each prompt (0 … G-1) that is used, with the examples ([B_g] long) that have it."""
        for g in range(len(self.vectors)):
            rows = (self.of == g).nonzero()[:, 0]
            if len(rows):
                yield g, rows

    def select(self, rows: Tensor) -> "Prompts":
        """The prompts of the examples `rows`, those that none of them has left out."""
        used, of = self.of[rows].unique(return_inverse=True)
        return Prompts(tuple(self.vectors[g] for g in used.tolist()), of)


@dataclass(frozen=True)
class Candidates:
    """The words of L labels, EOS at the end.

    Attributes:
        ids: L tensors of [W_l] long.
        embeds: L tensors of [W_l, H].
    """

    ids: tuple[Tensor, ...]
    embeds: tuple[Tensor, ...]


@dataclass(frozen=True)
class LabelledLogits:
    """The predictions of the labelled tokens alone, whatever rows they were computed in.

    Attributes:
        logits: [K, V], the prediction of each labelled token.
        targets: [K] long, the token that stands there.
        rows: [K] long, the example (0 … B-1) that it belongs to.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def concatenate(cls, parts: "list[LabelledLogits]") -> "LabelledLogits":
        """The predictions of several passes as one."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "targets", "rows")))

    def log_likelihood(self, batch: int) -> Tensor:
        """[B] fp32: the summed log-likelihood of each example's labelled tokens."""
        nll = torch.nn.functional.cross_entropy(self.logits.float(), self.targets, reduction="none")
        return torch.zeros(batch, device=nll.device).index_add(0, self.rows, -nll)


class Layout(Protocol):
    """Lays out prompts and a batch of examples, runs a causal backbone, and picks the predictions that are asked for.

    Layouts differ in cost, never in result: loss and prompt gradient agree to rounding. All of them count the same
    labels, the one on an example's first token (which the prompt's last vector predicts) included.
    """

    name: str

    def labelled_logits(self, backbone: nn.Module, prompts: Prompts, examples: Examples) -> LabelledLogits:
        """The predictions of `examples.labels`."""
        ...

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """[B, L] fp32: the log-likelihood of each candidate's words behind each source."""
        ...


def token_inputs(backbone: nn.Module, embeds: Tensor) -> dict[str, Tensor]:
    """What a backbone is called with for its tokens.

    A model with per-layer embeddings (Gemma 3n, Gemma 4) reads a second, wider vector of every token. It travels
    behind the first, so that whatever moves tokens moves both, and they part here.

    Args:
        backbone: a model with input embeddings of width H.
        embeds: [B, N, H], or [B, N, H + layers * D].
    """
    width = backbone.get_input_embeddings().embedding_dim
    if embeds.shape[-1] == width:
        return {"inputs_embeds": embeds}
    layers = backbone.config.get_text_config().num_hidden_layers
    return {
        "inputs_embeds": embeds[..., :width],
        "per_layer_inputs": embeds[..., width:].unflatten(-1, (layers, -1)),
    }


def predictions_at(backbone: nn.Module, rows: Tensor, columns: Tensor, **inputs: Any) -> ModelOutput:
    """The output of a pass that projects only K positions onto the vocabulary: its logits are [1, K, V].

    The vocabulary is often wider than all layers together, and few positions are labelled. `logits_to_keep` does not
    serve: not every model takes it, and it keeps the same columns of every row. Choosing in front of the output
    embeddings works for each of them, whatever they do to the logits afterwards.

    Args:
        backbone: a model with output embeddings. It stays as it is: others may call it at the same time.
        rows: [K] long, of the batch that the backbone sees.
        columns: [K] long.
        **inputs: the backbone's arguments.
    """
    head, chosen = backbone.get_output_embeddings(), []

    def project(hidden: Tensor, *others: Any, **options: Any) -> Tensor:
        chosen.append(True)
        return head(hidden[rows, columns][None], *others, **options)

    config, called = getattr(backbone, "config", None), backbone
    if not any(getattr(config, f"output_{kind}", False) for kind in ("hidden_states", "attentions")):
        # Where the config asks for these, transformers puts hooks on the layers for good, and notes that on the model
        # that is called.
        called = with_part(backbone, head, calling(head, project))
    announce_pass()
    outputs = called(**inputs)
    if not chosen:  # a `forward` of somebody's own, or a compiled one, which has the backbone's own head
        outputs.logits = outputs.logits[rows, columns][None]
    return outputs


def take_columns(x: Tensor, order: Tensor) -> Tensor:
    """Reorders dimension 1 of `x` ([B, T, ...]) row by row; `order` is [B, T] long."""
    index = order.reshape(order.shape + (1,) * (x.dim() - 2)).expand(*order.shape, *x.shape[2:])
    return x.gather(1, index)
