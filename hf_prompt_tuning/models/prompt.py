"""Make a prompt, new or from its files, and check that its backbone is the one that it was trained on.

A soft prompt is useless with another model, even one of the same shape. No error would be raised, but the output
would be bad. So a prompt records a fingerprint of its backbone: the architecture, the sizes and the embedding matrix.
The matrix is recorded in two ways: a hash of all its bits recognises the same checkpoint in the same dtype, and a
sample of rows recognises the same checkpoint in another dtype or quantized.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from peft import PromptEmbedding
from peft import PromptTuningConfig as PeftPromptTuningConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compat.transformers import GGUF
from ..errors import PromptLoadError, PromptMismatchError, PromptTuningError
from ..layouts.computed import BITS
from ..layouts.sharing import embedding_device, whole
from ..layouts.traits import token_scale
from ..prompts.config import PromptTuningConfig
from ..prompts.files import SavedPrompt
from ..prompts.info import PromptInfo
from .backbone import is_from_gguf
from .classifiers import fill_head
from .initialization import can_be_made_again, inherited_start, initial_prompt, saved_start
from .places import head_embeddings

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 1024
SIZES = ("architecture", "vocab_size", "num_layers", "embedding_width")
SAMPLED_ROWS = 16
SAMPLED_COLUMNS = 16
QUANTIZED_TOLERANCE = 0.15
"""The largest relative error accepted for a quantized embedding.

With four bits (16 levels), a block of 32 normally distributed numbers has an error of about 0.09 of its norm.
"""


class SoftPrompt(PromptEmbedding):
    """Hold one prompt. It is PEFT's module for a prompt, so PEFT moves, saves and deletes it as a whole.

    The vectors are in fp32, whatever dtype the model is cast to. `model.half()`, and a Trainer's `--bf16_full_eval`,
    cast every parameter in place. A cast prompt would lose half of its bits, and the next save would write the rest.
    The backbone loses nothing, because its weights are also on disk.

    Attributes:
        embedding: its `weight` is the prompt's vectors, [P, H] fp32, the parameter that is trained.
        start: [P, H] fp32 on the CPU, the vectors before training; None if they are not known.
        head_ids: the tokens that the prompt stands behind, as a tensor [h] long; none at the start.
        head: [h, H] fp32 on the CPU, the embeddings of these tokens when the prompt was made, which are saved with it.
            A call looks them up in the backbone.
        info: the description that is saved with the prompt (template, metrics, …).
        classifier: the prompt's own classification head, its modules in fp32 by their names in the backbone; None in
            a language model.
    """

    def __init__(
        self,
        vectors: Tensor,
        config: PromptTuningConfig,
        info: PromptInfo,
        start: Tensor | None,
        head: Tensor,
    ):
        own = {"prompt_tuning_init": "RANDOM", "num_virtual_tokens": len(vectors)}
        super().__init__(PeftPromptTuningConfig(**config.to_dict() | own), None)
        self.embedding.weight = nn.Parameter(vectors, requires_grad=not config.inference_mode)
        self.info, self.start, self.head = info, start, head
        self.classifier: nn.ModuleDict | None = None
        self.register_buffer("head_ids", torch.tensor(config.head, device=vectors.device).long(), persistent=False)

    def rows_to_save(self) -> Tensor:
        """Return the head and the vectors as PEFT saves them, [h+P, H] fp32, on the CPU."""
        return torch.cat([self.head, self.embedding.weight.detach().cpu()])

    def classifier_to_save(self) -> dict[str, Tensor]:
        """Return the weights of the classification head by name, fp32, on the CPU; none in a language model."""
        state = {} if self.classifier is None else self.classifier.state_dict()
        return {name: weight.detach().cpu() for name, weight in state.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SoftPrompt":
        def move_only(vectors: Tensor) -> Tensor:
            moved = fn(vectors)
            return moved if moved.dtype == vectors.dtype else vectors.to(moved.device)

        return super()._apply(move_only, recurse)


class PromptConfigs(dict[str, PromptTuningConfig]):
    """The configs of a model's prompts by name: PEFT's `peft_config`. The error for a missing name lists the names."""

    def check(self, name: Any) -> None:
        """Raise PromptTuningError if there is no such prompt."""
        if not isinstance(name, str) or name not in self:
            self.__missing__(name)

    def __missing__(self, name: Any) -> NoReturn:
        """Raise PromptTuningError: there is no such prompt."""
        hint = ""
        if name == "default":
            hint = (
                " TRL's trainers copy 'default' as what they measure training against: make the prompt with "
                "adapter_name='default', or give ref_model."
            )
        raise PromptTuningError(
            f"this model has no prompt {name!r:.80}; its prompts are {', '.join(map(repr, self))}.{hint}"
        )


def make_prompt(config: PromptTuningConfig, backbone: PreTrainedModel, fingerprint: dict[str, Any]) -> SoftPrompt:
    """Make a prompt as its completed config says, from the backbone's embeddings; the config forgets what is private.

    With `inference_mode`, the vectors are zeros: they are loaded later. Raise PromptTuningError if the initialisation
    fails.
    """
    words, start, saved = backbone.get_input_embeddings(), None, None
    head = torch.zeros(len(config.head), words.embedding_dim)
    if config.inference_mode:
        vectors = torch.zeros(config.num_virtual_tokens, words.embedding_dim)
    else:
        head = head_embeddings(config.head, backbone) if config.head else head
        vectors = initial_prompt(config, words, token_scale(backbone))
        if (saved := saved_start(config)) is not None:  # vectors of another backbone are a start, and no more
            check_match(saved, words.embedding_dim, fingerprint, ignore_mismatch=True)
    vectors = vectors.to(embedding_device(words), torch.float32)
    initialization = config.initialization()
    if not config.inference_mode:
        start = vectors.detach().cpu().clone()
        initialization |= inherited_start(None if saved is None else saved.info)
        if not can_be_made_again(initialization):
            initialization["hash"] = embedding_hash(start)
    config.forget_what_is_private()
    described = {"name_or_path": config.base_model_name_or_path, "revision": config.revision}
    place = config.place()
    if place and config.tokenizer is not None:
        place["head_text"] = config.tokenizer.decode(place["head_token_ids"])
    info = PromptInfo(initialization=initialization, backbone=fingerprint | described, place=place)
    return SoftPrompt(vectors, config, info, start, head)


def config_to_fill(saved: SavedPrompt, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptTuningConfig:
    """Return the config of a prompt that is not initialised, because its vectors are loaded from a file."""
    return replace(saved.config, inference_mode=True, token_dim=None, tokenizer=tokenizer)


def fill(prompt: SoftPrompt, saved: SavedPrompt, name: str) -> None:
    """Replace what a prompt holds by what was saved. Raise PromptLoadError if their lengths or places differ."""
    if prompt.head_ids.tolist() != list(saved.config.head):
        raise PromptLoadError(
            f"{saved.source} stands behind the tokens {list(saved.config.head)}, and the prompt {name!r} behind "
            f"{prompt.head_ids.tolist()}. Load it under another adapter_name."
        )
    if prompt.embedding.weight.shape != saved.vectors.shape:
        raise PromptLoadError(
            f"{saved.source} holds {len(saved.vectors)} virtual tokens, and the prompt {name!r} has "
            f"{len(prompt.embedding.weight)}. Load it under another adapter_name."
        )
    with torch.no_grad():
        prompt.embedding.weight.copy_(saved.vectors)
    if prompt.classifier is not None:
        fill_head(prompt.classifier, saved)
    prompt.head = saved.head
    prompt.start = _start_of(saved, prompt.start)
    if saved.info is not None:
        prompt.info = saved.info


def _start_of(saved: SavedPrompt, present: Tensor | None) -> Tensor | None:
    """Return the vectors that a saved prompt started from: its own file's, or (for a checkpoint) the present prompt's.

    They must match the hash that the prompt records, because a run that is resumed with another seed starts from
    other vectors.
    """
    recorded = None if saved.info is None else saved.info.initialization.get("hash")
    starts = (start for start in (saved.start, present) if start is not None)
    return next((start for start in starts if embedding_hash(start) == recorded), None)


def fingerprint(backbone: PreTrainedModel) -> dict[str, Any]:
    """Return the architecture, sizes and embedding of a backbone as JSON values.

    Sharded and offloaded embeddings are gathered for this. One on the meta device gives no `embedding` entry. Of all
    quantizations only GGUF's changes the embedding; it is dequantized on loading.
    """
    text_config = backbone.config.get_text_config()
    embed = backbone.get_input_embeddings()
    values = {
        # `fully_shard` adds its own class first.
        "architecture": next(c.__name__ for c in type(backbone).__mro__ if not issubclass(c, FSDPModule)),
        "vocab_size": embed.num_embeddings,
        "num_layers": getattr(text_config, "num_hidden_layers", None),
        "embedding_width": embed.embedding_dim,
    }
    with whole(embed):
        if embed.weight.is_meta:
            return values
        values["embedding"] = {
            "dtype": str(embed.weight.dtype).removeprefix("torch."),
            "quantized": GGUF if is_from_gguf(backbone) else None,
            "hash": embedding_hash(embed.weight),
            "sample": [[float(f"{x:.6g}") for x in row] for row in _sample(embed).tolist()],
        }
    return values


def embedding_hash(weight: Tensor) -> str | None:
    """Return a hash of a matrix's bits, the same on every device, or None for a dtype without plain bits.

    Sum the bits of each row as integers, which is exact in any order, and hash the sums. So a matrix of a gigabyte is
    read only once.
    """
    if not weight.dtype.is_floating_point or type(weight) not in (Tensor, nn.Parameter):
        return None
    bits = weight.detach().contiguous().view(BITS[weight.element_size()])
    # Sum in pieces, because torch first converts the numbers to 64 bits.
    sums = torch.cat([piece.sum(dim=1, dtype=torch.int64) for piece in bits.split(ROWS_AT_ONCE)])
    return hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()


def _sample(embed: nn.Embedding) -> Tensor:
    """Return a sample [16, 16] fp32 of rows spread over the vocabulary. The module can read quantized rows, too."""
    rows = torch.arange(1, 2 * SAMPLED_ROWS, 2, device=embed.weight.device) * embed.num_embeddings
    return embed.forward(rows // (2 * SAMPLED_ROWS))[:, :SAMPLED_COLUMNS].float().cpu()


def check_match(saved: SavedPrompt, width: int, fingerprint: dict[str, Any], ignore_mismatch: bool) -> None:
    """Raise PromptMismatchError if the prompt was trained on another backbone, told by its width and fingerprint.

    `ignore_mismatch` only warns about another backbone. Another width is an error all the same.
    """
    name = saved.backbone["name_or_path"] or "another backbone"
    advice = f"The prompt was trained on {name}; load that one."
    if saved.vectors.shape[1] != width:
        raise PromptMismatchError(
            f"{saved.source} holds vectors of width {saved.vectors.shape[1]}, and this backbone's embeddings have "
            f"{width}. {advice}"
        )
    different = differences(saved.backbone, fingerprint)
    if different:
        message = f"{saved.source} is not a prompt of this backbone: {'; '.join(different)}. {advice}"
        if not ignore_mismatch:
            raise PromptMismatchError(f"{message} Or give ignore_mismatch=True.")
        logger.warning(message)


def differences(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Describe the differences between two fingerprints. Fields that one of them lacks are not compared."""
    pairs = {name: (recorded.get(name), present.get(name)) for name in SIZES}
    different = [
        f"{name} is {there} there and {here} here"
        for name, (there, here) in pairs.items()
        if None not in (there, here) and there != here
    ]
    if different or not recorded.get("embedding") or not present.get("embedding"):
        return different
    error, tolerance = _embedding_error(recorded["embedding"], present["embedding"])
    if error > tolerance:
        return [f"the embedding matrix differs (by {error:.1e} of its norm; {tolerance:.1e} would be rounding)"]
    return []


def _embedding_error(recorded: dict[str, Any], present: dict[str, Any]) -> tuple[float, float]:
    """Return the relative error between two embedding matrices, and the error that rounding may cause."""
    if recorded["hash"] is not None and recorded["hash"] == present["hash"]:
        return 0.0, 0.0
    there, here = torch.tensor(recorded["sample"]), torch.tensor(present["sample"])
    if there.shape != here.shape:
        return float("inf"), 0.0
    error = float((there - here).norm() / there.norm().clamp(min=1e-12))
    # Comparisons with NaN are False. Treat NaN as infinity, so that a non-finite sample matches nothing.
    error = error if error == error else float("inf")
    if recorded["quantized"] or present["quantized"]:
        return error, QUANTIZED_TOLERANCE
    if recorded["dtype"] != present["dtype"]:
        return error, max(_rounding(recorded["dtype"]), _rounding(present["dtype"]))
    # Same dtype but other bits: another checkpoint, even if close (fine-tuning changes embeddings only a little).
    return max(error, 1e-6), 0.0


def _rounding(dtype: str) -> float:
    kind = getattr(torch, dtype, None)
    floating = isinstance(kind, torch.dtype) and kind.is_floating_point
    return torch.finfo(kind).eps if floating else QUANTIZED_TOLERANCE
