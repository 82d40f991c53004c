"""What the tests themselves need of the libraries, by version. The package's own differences are in `compat`."""

import inspect
from importlib import import_module
from importlib.util import find_spec

import huggingface_hub
import pandas
import pytest
import torch
from huggingface_hub import get_session
from packaging.version import InvalidVersion, Version
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, T5ForConditionalGeneration
from transformers.initialization import orthogonal_
from transformers.utils import is_gguf_available

from hf_prompt_tuning.compat.transformers import TRANSFORMERS

HUB = Version(huggingface_hub.__version__)
HTTP = import_module(type(get_session()).__module__.partition(".")[0])
"""The HTTP library of huggingface_hub: httpx2 from 2.0, httpx before."""

LISTS_FILES_IN_CACHE = find_spec("huggingface_hub._tree_cache") is not None
"""Whether `hf download` writes to the cache which files a commit has: huggingface_hub from 1.22."""

TRIES_AGAIN = Version("1.20") <= HUB
"""Whether a download that breaks off is tried again: huggingface_hub from 1.20."""

UPLOADS_AGAIN = Version("1.21") <= HUB
"""Whether an upload that breaks off is tried again, as any other request is: huggingface_hub from 1.21."""

PANDAS_READS_NULS = Version("3") <= Version(pandas.__version__)
"""Whether pandas reads a NUL in a table as it stands: pandas 2 leaves it out."""

HAS_TRL = find_spec("trl") is not None
WITHOUT_TRL = "TRL from 1.0 asks for datasets 4.7 or newer"
"""Why TRL cannot be installed beside older ones."""

CHECKS_DRAFTS = Version("5.18") <= TRANSFORMERS
"""Whether transformers checks drafts at the right places behind a cache that is given; below it they are refused."""

MASKS_STATIC_CHUNKS = Version("5.10") > TRANSFORMERS or Version("5.20") <= TRANSFORMERS
"""Whether transformers masks a cache of fixed size for layers that see chunks: not with 5.16 and 5.17, at least."""

AVERAGES_PROMPTS = Version("5.19") <= TRANSFORMERS
"""Whether `Trainer` averages what FSDP2 does not shard; below it FSDP2 is refused."""

RESUMES_ON_CPUS = Version("5.18") <= TRANSFORMERS
"""Whether several processes on CPUs can resume: an older `Trainer` asks torch.load for "cpu:0", and fails."""

SHARDS_ON_CPUS = hasattr(torch.cpu.Stream, "record_event")
"""Whether a model that FSDP2 shards runs on CPUs: not with torch 2.6, whose streams of CPUs lack a method of it."""

SHARDS_AT_LOADING = Version("5.13") <= TRANSFORMERS
"""Whether transformers shards a backbone by FSDP2 as it loads it."""

COMPILES_OUTPUTS = Version("2.10") <= Version(torch.__version__)
"""Whether PyTorch compiles transformers 5.6's models: 2.6 loses the decoder's outputs, without this package, too; 2.10
does not.
"""

T5_ATTENTIONS = ("sdpa", "eager") if T5ForConditionalGeneration._supports_sdpa else ("eager",)
"""The implementations of attention that T5 and mT5 have: transformers 5.6 has no sdpa for them."""

LAYERS_DRAW = Version("5.23") > TRANSFORMERS
"""Whether BART, its like and OPT draw a number for each layer in training mode though they drop none: transformers
5.20 does, 5.23 does not. A seed then draws other tokens.
"""

STATES_CONTINUE = {"granitemoehybrid": Version("5.13"), "lfm2": Version("5.15")}
"""The first transformers whose pass of several tokens goes on from a cache of these models' states. An older one
starts them anew, or leaves a part out.
"""


def since(version: str) -> pytest.MarkDecorator:
    """Skip a test of what transformers has from this version on."""
    return pytest.mark.skipif(Version(version) > TRANSFORMERS, reason=f"transformers has it from {version}")


def states_continue(name: str) -> bool:
    """Tell whether a model with states goes on from a cache, and so may get the cached layout."""
    return STATES_CONTINUE.get(name, Version("99")) <= TRANSFORMERS


def needs_states_of(name: str) -> pytest.MarkDecorator:
    """Skip a test that needs a model with states and the cached layout."""
    return pytest.mark.skipif(
        not states_continue(name), reason=f"{name} goes on from a cache from transformers {STATES_CONTINUE[name]}"
    )


def finds_gguf() -> bool:
    """Tell whether transformers can read which gguf is installed: one of 5.16 or older cannot on Python 3.10."""
    try:
        return is_gguf_available()
    except InvalidVersion:
        return False


def initial_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to draw a model's weights in, this one where it can be: transformers 5.6 cannot draw RWKV's
    orthogonal ones in bf16 on a CPU.
    """
    if name == "rwkv":
        try:
            orthogonal_(torch.empty(2, 2, dtype=dtype))
        except RuntimeError:
            return torch.float32
    return dtype


def per_layer_inputs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the per-layer vectors of token ids from Gemma's decoder; an older one wants its other argument said."""
    names = inspect.signature(model.get_per_layer_inputs).parameters
    return model.get_per_layer_inputs(ids, *[None] * (len(names) - 1))


def checkpoint_activations(model: PreTrainedModel | PeftModel) -> None:
    """Compute activations again in the backward pass, by the method's name from transformers 5.23 or the older one."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


def forget_lists_of_files() -> None:
    """Forget the lists that huggingface_hub has read from a cache and keeps in memory."""
    if LISTS_FILES_IN_CACHE:
        import_module("huggingface_hub._tree_cache")._IN_MEMORY_TREE_CACHE.clear()
