"""Define the inputs and outputs of a layout. The letters are those of docs/notation.md."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .candidates import Candidates
from .sharing import announce_pass, calling, with_part

IGNORED = -100
"""The label of a position without a prediction, as everywhere in PyTorch and transformers."""
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows, heads, columns, d] each."""
ROUTER_SCORES = "output_router_logits"
"""The argument, and the config's setting, that asks a mixture of experts for its routers' scores and balance loss."""
MAX_LOGITS = 2**26
"""How many logits a pass of ranking holds at most, whatever the labels and the rows: 256 MiB in fp32."""


@dataclass(frozen=True)
class Examples:
    """Hold a batch of embedded examples whose real tokens are at the left: `[text | pads]`.

    A causal model's result at a token does not depend on later tokens. So pads at the right are exact for every
    architecture: with counted positions, with windows and with recurrent states. `align` brings any batch into this
    form.

    Attributes:
        embeds: [B, T, H], the embedded tokens.
        mask: [B, T] bool, True on real tokens.
        labels: [B, T] long, `IGNORED` where nothing is predicted; or None.
        order: [B, T] long; column t of row b was column `order[b, t]` of the caller's batch. None: nothing moved.
        beside: what the backbone takes of each token beside its embedding, by the argument's name, [B, T, C] whole
            numbers: token types, and positions that are not counted. Only the padded layout takes it.
    """

    embeds: Tensor
    mask: Tensor
    labels: Tensor | None = None
    order: Tensor | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def align(
        cls,
        embeds: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> "Examples":
        """Move each row's real tokens to the left and keep their order. The pads may be anywhere.

        `mask` is [B, T], non-zero on real tokens; None if all tokens are real. Labels on pads are ignored.
        """
        beside = beside or {}
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            return cls(embeds, mask, labels, beside=beside)
        mask = mask.bool()
        if labels is not None:
            labels = labels.masked_fill(~mask, IGNORED)
        if bool((mask[:, 1:] <= mask[:, :-1]).all()):
            return cls(embeds, mask, labels, beside=beside)
        order = torch.argsort(~mask, dim=1, stable=True)
        return cls(
            take_columns(embeds, order),
            mask.gather(1, order),
            None if labels is None else labels.gather(1, order),
            order,
            {name: take_columns(values, order) for name, values in beside.items()},
        )

    def caller_mask(self) -> Tensor:
        """Return a [B, T] bool mask, True on real tokens, in the columns of the caller's batch."""
        if self.order is None:
            return self.mask
        return torch.zeros_like(self.mask).scatter(1, self.order, self.mask)

    def select(self, rows: Tensor) -> "Examples":
        """Return the examples `rows` ([B'] long). Columns that hold only pads are dropped."""
        mask = self.mask[rows]
        width = int(mask.sum(1).max()) if len(rows) else 0
        labels = None if self.labels is None else self.labels[rows, :width]
        beside = {name: values[rows, :width] for name, values in self.beside.items()}
        return Examples(self.embeds[rows, :width], mask[:, :width], labels, beside=beside)

    def needed(self) -> "Examples":
        """Drop the tokens that predict no label: each row's last labelled token and all tokens after it."""
        labelled = self.labels != IGNORED
        predicts_later = labelled.flip(1).cumsum(1).flip(1) - labelled.long() > 0
        return replace(self, mask=self.mask & predicts_later, order=None)


@dataclass(frozen=True)
class ComputedPrompt:
    """Hold the computed part of a prompt, which is the same in every row.

    Attributes:
        layers: each layer's keys and values, [1, heads, P, d] each. They cover all P vectors, even in layers with
            windows.
        logits: [1, V], the last vector's prediction.
    """

    layers: Layers
    logits: Tensor

    def __len__(self) -> int:
        return self.layers[0][0].shape[2]


@dataclass(frozen=True)
class Prompts:
    """Hold the G prompts of a batch, and the prompt of each example.

    Attributes:
        vectors: G tensors of [P_g, H]. Lengths may differ; length 0 means no prompt.
        of_row: [B] long, the prompt (0 … G-1) of each example.
        names: the adapter names of the G prompts; empty if they are not needed.
        computed: for each of the G prompts its `ComputedPrompt`, or None for no prompt. Empty: no prompt was computed.
    """

    vectors: tuple[Tensor, ...]
    of_row: Tensor
    names: tuple[str, ...] = ()
    computed: tuple[ComputedPrompt | None, ...] = ()

    def lengths(self) -> Tensor:
        """Return the number of virtual tokens in front of each example, [B] long."""
        return torch.tensor([len(v) for v in self.vectors], device=self.of_row.device)[self.of_row]

    @cached_property
    def prompt_of(self) -> list[int]:
        """`of_row` as plain numbers. They are copied from the device once."""
        return self.of_row.tolist()

    def row_names(self) -> tuple[str, ...]:
        """Return the prompt's name for each example."""
        return tuple(self.names[g] for g in self.prompt_of)

    def groups(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each prompt (0 … G-1) that is used, with its examples ([B_g] long)."""
        for g in range(len(self.vectors)):
            rows = (self.of_row == g).nonzero()[:, 0]
            if len(rows):
                yield g, rows


@dataclass(frozen=True)
class LabelledLogits:
    """Hold the predictions of the labelled tokens only. They do not depend on the layout.

    Attributes:
        logits: [K, V], the prediction of each labelled token.
        targets: [K] long, the token id at that position.
        rows: [K] long, the example (0 … B-1) of each labelled token.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def concatenate(cls, parts: "list[LabelledLogits]") -> "LabelledLogits":
        """Join the predictions of several passes."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "targets", "rows")))

    def log_likelihood(self, batch: int) -> Tensor:
        """Return the summed log-likelihood of each example's labelled tokens, [B] fp32."""
        return -nll_by_row(token_nll(self.logits, self.targets), self.rows, batch)


def token_nll(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each labelled token, [K] fp32, from logits [K, V] and targets [K] long."""
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)


def nll_by_row(nll: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Return the sum of the tokens' `nll` [K] in each of `batch` rows, [B]. `rows` [K] are the tokens' rows."""
    return torch.zeros(batch, device=nll.device).index_add(0, rows, nll)


class Layout(Protocol):
    """Place prompts in front of a batch of examples, run a causal backbone, and return the predictions asked for.

    Layouts differ in cost, never in result: the loss and the prompt's gradient agree to rounding. All layouts count
    the same labels. The label on an example's first token counts too; the prompt's last vector predicts it.
    """

    name: str

    def labelled_logits(self, backbone: nn.Module, prompts: Prompts, examples: Examples) -> LabelledLogits:
        """Return the predictions of `examples.labels`."""
        ...

    def candidate_scores(
        self, backbone: nn.Module, prompts: Prompts, sources: Examples, candidates: Candidates
    ) -> Tensor:
        """Return the log-likelihood of each candidate's words after each source, [B, L] fp32.

        A pass holds `MAX_LOGITS` logits at most, or those of one label's words after one source.
        """
        ...

    def searches(self, backbone: nn.Module) -> bool:
        """Tell whether the layout has `branches`, which leave out what a search does not need."""
        ...


def predicted_at_once(backbone: nn.Module) -> int:
    """Return how many positions a pass of ranking predicts at: those of `MAX_LOGITS` logits, 1 to 4,096."""
    # With a small vocabulary, the limit is the mask, which has as many rows and columns.
    return min(max(MAX_LOGITS // backbone.config.get_text_config().vocab_size, 1), 4096)


def token_inputs(backbone: nn.Module, embeds: Tensor) -> dict[str, Tensor]:
    """Return the backbone's arguments for embedded tokens, [B, N, H] or [B, N, H + layers * D].

    A model with per-layer embeddings (Gemma 3n, Gemma 4) reads a second, wider vector for every token. We keep it
    after the first vector in the last dimension, so that code that moves tokens moves both. This function splits them.
    """
    width = backbone.get_input_embeddings().embedding_dim
    if embeds.shape[-1] == width:
        return {"inputs_embeds": embeds}
    layers = backbone.config.get_text_config().num_hidden_layers
    return {"inputs_embeds": embeds[..., :width], "per_layer_inputs": embeds[..., width:].unflatten(-1, (layers, -1))}


def asks_for_router_scores(backbone: nn.Module) -> bool:
    """Tell whether a mixture of experts adds its routers' balance loss to each call's loss, as its config says."""
    config = getattr(backbone, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), ROUTER_SCORES, False))


def predictions_at(backbone: nn.Module, rows: Tensor, columns: Tensor, **inputs: Any) -> ModelOutput:
    """Run a pass that projects only K positions (`rows`, `columns`, [K] long) onto the vocabulary: logits [1, K, V].

    The vocabulary is often wider than all layers together, and few positions are labelled. `logits_to_keep` does not
    help: not every model takes it, and it keeps the same columns of every row. Selecting the positions before the
    output embeddings works for every model, whatever it does to the logits afterwards. The backbone is not changed:
    other threads may call it at the same time.
    """
    head, was_projected = backbone.get_output_embeddings(), []

    def project(hidden: Tensor, *others: Any, **options: Any) -> Tensor:
        was_projected.append(True)
        return head(hidden[rows, columns][None], *others, **options)

    config, called = getattr(backbone, "config", None), backbone
    if not any(getattr(config, f"output_{kind}", False) for kind in ("hidden_states", "attentions")):
        # If the config asks for these outputs, transformers hooks the layers permanently and records that on the model
        # that is called.
        called = with_part(backbone, head, calling(head, project))
    announce_pass()
    if asks_for_router_scores(backbone):
        # Routers are balanced over rows of tokens, and the mask of a packed row, or behind a cache, is another one.
        inputs[ROUTER_SCORES] = False
    outputs = called(**inputs, return_dict=True)
    if not was_projected:  # a custom or compiled `forward`, which calls the backbone's own head
        outputs.logits = outputs.logits[rows, columns][None]
    return outputs


def take_columns(x: Tensor, order: Tensor) -> Tensor:
    """Reorder dimension 1 of `x` ([B, T, ...]) row by row; `order` is [B, T] long."""
    index = order.reshape(order.shape + (1,) * (x.dim() - 2)).expand(*order.shape, *x.shape[2:])
    return x.gather(1, index)
