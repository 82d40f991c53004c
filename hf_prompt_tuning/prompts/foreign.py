"""Import prompts that other codebases saved, from local files, as fp32 [P, H].

The files may come from anyone. Pickles are loaded with `weights_only=True`. The sizes of safetensors and arrays are
checked before memory is allocated. A pickle takes only as much memory as its file holds, because compressed pickles
are rejected. Any fault raises a `PromptLoadError`.
"""

import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PromptLoadError, PromptTuningError, first_line
from ..hub.files import open_tensors
from .files import (
    CONFIG_FILE,
    MAX_NUMBERS,
    WEIGHTS_FILE,
    adapter_config,
    checked,
    read_json,
    read_vectors,
    used_rows,
    without_head,
)
from .info import INFO_FILE, PromptInfo

logger = logging.getLogger(__name__)

PICKLED_WEIGHTS_FILE = "adapter_model.bin"
RUPROMPTS_WEIGHTS, RUPROMPTS_CONFIG = "prompt_provider.bin", "prompt.json"
RUPROMPTS_TOKEN = re.compile(r"<\|P\|>|<P\*\d+>|<P>(?:(?!<P).*?</P>)?", re.DOTALL)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
NAMES = ("prompt_embeddings", "learned_embedding", "soft_prompt", "prompt")
"""The names of the vectors in other codebases: the last part of the key. The first name found is used."""


def import_prompt(path: str | Path, format: str | None = None) -> Tensor:
    """Return the vectors of a prompt that another codebase saved, [P, H] fp32 on the CPU.

    Args:
        path: a file or folder. The weights file of an adapter whose config lies beside it is read as the adapter.
        format: one of `FORMATS`. None detects the format from the file names and their content.
            The vectors are found by their key.

    Raises:
        PromptLoadError: the file is missing, of an unknown format, damaged or unsafe, or does not hold a prompt.
    """
    path = Path(path)
    if not path.exists():
        raise PromptLoadError(f"{path} is not there; give a file or folder (a Hub id goes to load_prompt).")
    path = adapter_folder(path) if format in (None, "peft") else path
    format = _detected_format(path) if format is None else format
    if not isinstance(format, str) or format not in FORMATS:
        raise PromptLoadError(f"format is {format!r}; give one of {', '.join(FORMATS)}, or leave it out.")
    return FORMATS[format](path)


def adapter_folder(path: Path) -> Path:
    """Return the folder of an adapter's weights file whose config lies beside it; any other path as it is.

    The config and what is recorded beside it say which of the file's vectors are the prompt's, and what they are of.
    """
    is_adapter = path.name in (WEIGHTS_FILE, PICKLED_WEIGHTS_FILE) and path.with_name(CONFIG_FILE).is_file()
    return path.parent if is_adapter and path.is_file() else path


def _detected_format(path: Path) -> str:
    if path.is_dir():
        if (path / CONFIG_FILE).exists():
            return "peft"
        if (path / RUPROMPTS_WEIGHTS).exists():
            return "ruprompts"
        files = sorted(file.name for file in path.iterdir())[:5]
        raise PromptLoadError(
            f"{path} holds no prompt that is known here, but {files}; give format=… or the file itself."
        )
    if path.suffix == ".npy":
        return "google"
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in PICKLES:
        return "soft_embedding"
    raise PromptLoadError(f"{path} is of no known kind; give format=… (one of {', '.join(FORMATS)}).")


def _peft(path: Path) -> Tensor:
    """Read the folder of a PEFT adapter, of ours without its head. Only here a pickle is read, too."""
    if (path / WEIGHTS_FILE).exists():
        vectors = read_vectors(path / WEIGHTS_FILE)
    else:
        vectors = _pickled(path / PICKLED_WEIGHTS_FILE)
    config = read_json(path / CONFIG_FILE, partial(adapter_config, source=path))
    info = read_json(path / INFO_FILE, PromptInfo.from_json) if (path / INFO_FILE).exists() else None
    return without_head(used_rows(vectors, config, path), info, path)[1]


def _google(path: Path) -> Tensor:
    """Read a numpy array. Its header is checked first, and objects are never unpickled."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise PromptLoadError(
                f"{path} holds {getattr(array, 'dtype', 'an archive')}, not floating-point numbers; save it as such."
            )
        if array.ndim != 2 or not 0 < array.size <= MAX_NUMBERS:
            raise PromptLoadError(f"{path} holds an array of shape {list(array.shape)}; a prompt is [P, H].")
        return checked(torch.from_numpy(np.array(array, dtype=np.float32)), path)
    except PromptLoadError:
        raise
    except Exception as error:  # numpy parses the header with Python's parser, which may raise any error
        raise PromptLoadError(f"{path} cannot be read as a .npy array of [P, H]: {error}.") from error


def _safetensors(path: Path) -> Tensor:
    """Read the only matrix of a safetensors file, or the one with a prompt's name."""
    with open_tensors(path) as tensors:
        dimensions = {key: len(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    return read_vectors(path, _choice(dimensions, path))


def _ruprompts(path: Path) -> Tensor:
    """Read a folder that ruPrompts' `Prompt.save_pretrained` wrote: the pickled matrix, and the format as JSON."""
    vectors = _pickled(path / RUPROMPTS_WEIGHTS)
    config = path / RUPROMPTS_CONFIG
    if config.exists():
        template = read_json(config, _ruprompts_template)
        behind = RUPROMPTS_TOKEN.sub("\0", template).lstrip("\0")
        if "\0" in behind:
            logger.warning(
                f"The prompt {path} was trained with vectors that did not all stand in front of its text "
                f"({template}). Here all {len(vectors)} do: train them further before you rely on them."
            )
    return vectors


def _ruprompts_template(values: dict[str, Any]) -> str:
    """Return the template in ruPrompts' config, empty if there is none. Raise PromptTuningError if it is no text."""
    format = values.get("format") or {}
    template = format.get("template", "") if isinstance(format, dict) else format
    if not isinstance(template, str | None) or not isinstance(format, dict):
        raise PromptTuningError(f"its format is {values['format']!r:.80}, not an object with a template")
    return template or ""


def _pickled(path: Path) -> Tensor:
    """Read the prompt in a state dict or tensor that `torch.save` wrote."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    # torch never compresses files. A compressed file could have any size when it is unpacked.
                    raise PromptTuningError("it is compressed")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise any error
        raise PromptLoadError(
            f"{path} is no file of tensors alone, and others are not read: {first_line(error)}"
        ) from error
    tensors = {"": state} if isinstance(state, Tensor) else dict(_tensors(state)) if isinstance(state, Mapping) else {}
    if any("lstm" in key.lower() or "mlp" in key.lower() for key in tensors):
        raise PromptLoadError(
            f"{path} computes its vectors with a network of its own (it has {next(iter(tensors))!r}); "
            "compute them with the code that made it, and save them as .npy."
        )
    vectors = tensors[_choice({key: tensor.dim() for key, tensor in tensors.items()}, path)]
    is_plain = vectors.layout == torch.strided and not vectors.is_nested and not vectors.is_meta
    if not is_plain:
        raise PromptLoadError(f"{path} holds a sparse, nested or empty (meta) tensor; a prompt is floats [P, H].")
    if vectors.numel() > MAX_NUMBERS or not vectors.is_floating_point():
        raise PromptLoadError(
            f"{path} holds {vectors.dtype} of shape {list(vectors.shape)}; a prompt is floats [P, H]: save it so."
        )
    return checked(vectors.detach().float().clone(), path)


def _tensors(state: Mapping, before: str = "") -> Any:
    """Yield the keys and tensors of a nested state dict."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield f"{before}{key}", value
        elif isinstance(value, Mapping) and before.count(".") < 5:
            yield from _tensors(value, f"{before}{key}.")


def _choice(dimensions: Mapping[str, int], path: Path) -> str:
    """Return the key of the prompt: the only key, else the one with a prompt's name, else the only matrix."""
    if len(dimensions) == 1:
        return next(iter(dimensions))
    for name in NAMES:
        keys = [key for key in dimensions if key == name or key.endswith(f".{name}")]
        if len(keys) == 1:
            return keys[0]
    matrices = [key for key, number in dimensions.items() if number == 2]
    if len(matrices) == 1:
        return matrices[0]
    raise PromptLoadError(
        f"{path} holds {sorted(dimensions)[:5]}, and none of them is known as a prompt; save its vectors alone."
    )


FORMATS: dict[str, Callable[[Path], Tensor]] = {
    "peft": _peft,
    "soft_embedding": _pickled,
    "google": _google,
    "ruprompts": _ruprompts,
    "safetensors": _safetensors,
}
