"""What differs between versions of transformers."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from platform import python_version
from typing import Any

import torch
import transformers
from packaging.version import InvalidVersion, Version
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, RepetitionPenaltyLogitsProcessor, Trainer
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import is_gguf_available

from ..errors import PromptLoadError, PromptTuningError

TRANSFORMERS = Version(transformers.__version__)
SYNC = "_sync_replicated_trainable_parameters"
CACHE_NAMES = ("cache", "past_key_values")
CACHE = CACHE_NAMES[0] if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else CACHE_NAMES[1]
"""What transformers calls a cache of keys and values: `cache` from 5.24, `past_key_values` before."""

GGUF = "gguf"
"""What transformers calls the quantization of a backbone from a GGUF file. It leaves this mark from 5.17 only."""

SAVES_ON_EVERY_PROCESS = Version("5.23") <= TRANSFORMERS
"""Whether `Trainer.save_model` calls `_save` on every process (from 5.23), and not only where it writes. What is
gathered from shards is gathered on all of them.
"""

COUNTS_CHUNKS_ON = Version("5.21") <= TRANSFORMERS
"""Whether `generate` counts a first pass in chunks on from a given cache (from 5.21), and not from its beginning."""

NO_CHUNKS = f"transformers {TRANSFORMERS} counts chunks behind a prompt wrongly, which 5.21 and newer do not"
"""Why a first pass is in one piece where it does not."""

RESUMES_THE_ROOT = Version("5.23") <= TRANSFORMERS
"""Whether `Trainer` resumes the prompt in a checkpoint's root, beside those in its folders (from 5.23). Before, the
prompt stays as it is, without a word.
"""

CHECKPOINTS_ACTIVATIONS = next(
    name for name in ("is_activation_checkpointing", "is_gradient_checkpointing") if hasattr(PreTrainedModel, name)
)
"""A model's property that tells whether the backward pass computes activations again; the first name is of 5.23."""


def cache_name(backbone: PreTrainedModel) -> str | None:
    """Return the argument of `forward` that takes a cache of keys and values; None if there is no such argument.

    From transformers 5.24 the states of Mamba and its like are called `cache`, too (`cache_params` before). Such
    models have no attention heads.
    """
    parameters = inspect.signature(backbone.forward).parameters
    name = next((name for name in (CACHE, "past_key_values") if name in parameters), None)
    if name == "cache" and backbone._is_stateful:
        return name if hasattr(backbone.config.get_text_config(), "num_attention_heads") else None
    return name


def cache_in(values: Mapping[str, Any]) -> Any:
    """Return the cache among a model's outputs or arguments, under either name; None if there is none."""
    return next((values[name] for name in values.keys() if name in CACHE_NAMES and values[name] is not None), None)  # noqa: SIM118


def as_cache(backbone: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """Return the backbone's argument for a cache; no argument for None."""
    return {} if cache is None else {cache_name(backbone): cache}


def with_cache_renamed(backbone: PreTrainedModel, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the cache among a caller's arguments the name that this backbone takes. Both names are for one thing.

    Raises:
        PromptTuningError: two caches are given.
    """
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise PromptTuningError(f"{' and '.join(given)} are given, which are one; leave one out.")
    name = cache_name(backbone)
    if not given or name is None:
        return dict(arguments)
    return {key: value for key, value in arguments.items() if key not in CACHE_NAMES} | {name: arguments[given[0]]}


def repetition_penalty(penalty: float, ignored: Tensor) -> LogitsProcessor:
    """Return a repetition penalty that ignores the first `ignored` ([B] long) ids of each row.

    The processor of transformers takes a number for each row from 5.23, and one for all rows before.
    """
    if Version("5.23") <= TRANSFORMERS:
        return RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=ignored)
    return RowsRepetitionPenalty(penalty, ignored)


class RowsRepetitionPenalty(LogitsProcessor):
    """The repetition penalty of `repetition_penalty` before transformers 5.23."""

    def __init__(self, penalty: float, ignored: Tensor):
        self.penalty, self.ignored = penalty, ignored

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, V] after ids [B, N], lower for tokens that occur among them."""
        counts = torch.arange(input_ids.shape[1], device=scores.device) >= self.ignored.to(scores.device)[:, None]
        occurs = torch.zeros_like(scores, dtype=torch.long).scatter_add(1, input_ids, counts.long()) > 0
        return torch.where(occurs, torch.where(scores < 0, scores * self.penalty, scores / self.penalty), scores)


def check_drafts(option: str) -> None:
    """Raise PromptTuningError if transformers checks drafts at the wrong places after a given cache (before 5.18)."""
    if Version("5.18") > TRANSFORMERS:
        raise PromptTuningError(
            f"{option} is given, and transformers {TRANSFORMERS} checks drafts at the wrong places behind a prompt; "
            "install transformers 5.18 or newer, or leave it out."
        )


def check_averages_prompts(trainer: Trainer) -> None:
    """Raise PromptTuningError if `Trainer` does not average what FSDP2 does not shard, a prompt (before 5.19)."""
    if not hasattr(trainer, SYNC):
        raise PromptTuningError(
            f"FSDP2 is on, whose processes would train different prompts with transformers {TRANSFORMERS}; install "
            "transformers 5.19 or newer, or use DDP."
        )


def check_static_chunks(backbone: PreTrainedModel, kind: str) -> None:
    """Raise PromptTuningError if `generate` cannot mask a cache of fixed size for layers that see chunks.

    With transformers 5.16 and 5.17 it gives an argument to the masks of all layers that this one does not take.
    """
    masks = create_causal_mask, create_chunked_causal_mask
    full, chunked = ("block_sequence_ids" in inspect.signature(mask).parameters for mask in masks)
    if full and not chunked:
        raise PromptTuningError(
            f"the cache is {kind}, and transformers {TRANSFORMERS} cannot mask one for {type(backbone).__name__}, "
            "whose layers see chunks; give a dynamic one, or none, or install transformers 5.20 or newer."
        )


def average_prompts_over_processes(trainer: Trainer) -> None:
    """Make FSDP2 average the gradients of parameters that it does not shard, such as a prompt, or refuse it."""
    check_averages_prompts(trainer)
    trainer._sync_replicated_trainable_parameters(trainer.model)


def needed_hooks(hooks: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return those of `Trainer`'s hooks, each with its oldest version, that the installed version must have.

    `average_prompts_over_processes` refuses FSDP2 without the hook that it calls. Before transformers 5.10, `Trainer`
    counts every label and has no `_loss_shifts_labels`.
    """
    return [name for name, (since, _) in hooks.items() if Version(since) <= TRANSFORMERS]


def check_finds_gguf(what: str) -> None:
    """Raise PromptLoadError if transformers cannot tell which gguf is installed: 5.20 and older cannot on Python 3.10.

    `what` would be loaded from a GGUF file.
    """
    try:
        is_gguf_available()
    except InvalidVersion as error:
        raise PromptLoadError(
            f"{what} could not be loaded: transformers {TRANSFORMERS} does not find the version of the library gguf "
            f"on Python {python_version()}, and reads no GGUF file. Use Python 3.11 or newer, or load the backbone "
            "from safetensors."
        ) from error


def picture_token(processor: Any) -> Any:
    """Return the token that stands for a picture in the texts that a processor reads; None if it has none.

    In older versions the `image_token` of Gemma 3 is that of a picture's features.
    """
    return getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
