"""A prompt on disk: PEFT's two files, and `prompt_tuning.json` for what PEFT has no word for.

A prompt's folder holds `adapter_config.json` and `adapter_model.safetensors` (tensor `prompt_embeddings`, [P, H]),
which PEFT reads, and `prompt_tuning.json`: template, label words, initialisation, backbone and metrics.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from .config import PromptTuningConfig
from .errors import PromptTuningError
from .template import PromptTemplate

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
INFO_FILE = "prompt_tuning.json"
FORMAT_VERSION = 1


@dataclass
class PromptInfo:
    """What a prompt says of itself in `prompt_tuning.json`.

    Attributes:
        template: the formatting that it was trained with; None where only token ids were seen.
        initialization: how it started.
        backbone: what it was trained on (id, revision, architecture, sizes).
        metrics: the last evaluation, by the Trainer's names.
        training: the hyperparameters that made it.
    """

    template: PromptTemplate | None = None
    initialization: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Writes `prompt_tuning.json` into `folder`."""
        values = {"format_version": FORMAT_VERSION, "hf_prompt_tuning_version": version("hf_prompt_tuning")}
        values |= asdict(self)
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / INFO_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, file: str | Path) -> "PromptInfo":
        """Reads `prompt_tuning.json`.

        Raises:
            PromptTuningError: it is no JSON object, or of a later format than this version knows.
        """
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
            format_version = values["format_version"]
            template = values["template"]
            if format_version > FORMAT_VERSION:
                raise PromptTuningError(
                    f"{file} is of format {format_version}; this version reads up to {FORMAT_VERSION}. "
                    "Upgrade hf_prompt_tuning."
                )
            return cls(
                template=None if template is None else PromptTemplate(**template),
                **{name: values[name] for name in ("initialization", "backbone", "metrics", "training")},
            )
        except PromptTuningError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise PromptTuningError(f"{file} is not a prompt's description: {error!r}.") from error


def find_file(prompt: str | Path, name: str, **hub: Any) -> Path | None:
    """The local path of one file of a prompt's folder or Hub repository, None where it has no such file."""
    file = cached_file(str(prompt), name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if file is None else Path(file)


def read_prompt(prompt: str | Path, **hub: Any) -> tuple[Tensor, PromptTuningConfig, PromptInfo]:
    """A saved prompt's vectors ([P, H] fp32, on the CPU), PEFT config and description.

    Args:
        prompt: a folder or a Hub id.
        **hub: `revision`, `token`, `cache_dir`, `subfolder` as `hf_hub_download` takes them.

    Raises:
        PromptTuningError: a file is missing or is not a prompt's.
    """
    files = {name: find_file(prompt, name, **hub) for name in (CONFIG_FILE, WEIGHTS_FILE, INFO_FILE)}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if files[name] is None:
            raise PromptTuningError(
                f"{prompt} has no {name}; a prompt's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}. Check the path."
            )
    config = _read_config(files[CONFIG_FILE])
    vectors = _vectors_of(files[WEIGHTS_FILE])
    if config.task_type == "SEQ_2_SEQ_LM" and len(vectors) == 2 * config.num_virtual_tokens:
        # PEFT keeps a second half for the decoder by default, and never trains nor uses it.
        vectors = vectors[: config.num_virtual_tokens].clone()
    if len(vectors) != config.num_virtual_tokens:
        raise PromptTuningError(
            f"{prompt}: {CONFIG_FILE} says {config.num_virtual_tokens} virtual tokens and {WEIGHTS_FILE} holds "
            f"{len(vectors)}. The two files are not of one prompt."
        )
    info = PromptInfo() if files[INFO_FILE] is None else PromptInfo.read(files[INFO_FILE])
    return vectors, config, info


def _read_config(file: Path) -> PromptTuningConfig:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["peft_type"] != "PROMPT_TUNING":
            raise PromptTuningError(f"{file} is a {values['peft_type']} adapter, not a soft prompt (PROMPT_TUNING).")
        known = {name for name in PromptTuningConfig.__dataclass_fields__ if name != "tokenizer"}
        kept = {key: value for key, value in values.items() if key in known} | {
            # The vectors are there already: whatever made them is history, told by `prompt_tuning.json`.
            "prompt_tuning_init": "RANDOM",
            "num_transformer_submodules": 1,
        }
        return PromptTuningConfig(**kept)
    except PromptTuningError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise PromptTuningError(f"{file} is not an adapter's config: {error!r}.") from error


def read_prompt_vectors(prompt: str | Path) -> Tensor:
    """The vectors alone, [P, H] fp32: of a prompt's folder, its Hub id, or a `.npy` file."""
    if str(prompt).endswith(".npy"):
        try:
            array = np.load(prompt, allow_pickle=False)
            vectors = torch.from_numpy(array).float()
        except (OSError, ValueError, TypeError) as error:
            raise PromptTuningError(f"{prompt} cannot be read as a .npy array of [P, H]: {error}.") from error
        return _checked(vectors, prompt)
    try:
        file = find_file(prompt, WEIGHTS_FILE)
    except OSError as error:
        raise PromptTuningError(
            f"{prompt} is neither a prompt's folder nor a Hub id that can be read: {error}"
        ) from error
    if file is None:
        raise PromptTuningError(f"{prompt} has no {WEIGHTS_FILE}: give a prompt's folder, its Hub id, or a .npy file.")
    return _vectors_of(file)


def _vectors_of(file: Path) -> Tensor:
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors raises its own error type, and OSError, on a damaged file
        raise PromptTuningError(f"{file} is not a whole safetensors file: {error}.") from error
    if "prompt_embeddings" not in tensors:
        raise PromptTuningError(f"{file} has no tensor `prompt_embeddings`; it holds {sorted(tensors)}.")
    return _checked(tensors["prompt_embeddings"].float(), file)


def _checked(vectors: Tensor, source: str | Path) -> Tensor:
    if vectors.dim() != 2 or not math.prod(vectors.shape):
        raise PromptTuningError(f"{source} holds an array of shape {list(vectors.shape)}; a prompt is [P, H].")
    if not bool(torch.isfinite(vectors).all()):
        raise PromptTuningError(f"{source} holds NaN or infinite numbers; it cannot be used.")
    return vectors
