"""A prompt on disk: PEFT's two files, and `prompt_tuning.json` for what PEFT has no word for.

A prompt's folder holds `adapter_config.json` and `adapter_model.safetensors` (tensor `prompt_embeddings`, [P, H]),
which PEFT reads, and `prompt_tuning.json`: template, label words, initialisation, backbone and results. A prompt whose
first vectors no one could make again (drawn at random, or another prompt's) has them in `initial_prompt.safetensors`,
under the same name. What is read here may come from anyone: whatever is wrong with it ends in a `PromptLoadError`.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftType
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PromptLoadError, PromptTuningError
from ..hub.files import OPTIONS, Folder, HubFolder, Place, named, read_whole
from ..hub.names import hub_id
from .config import PromptTuningConfig
from .info import INFO_FILE, PromptInfo

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
START_FILE = "initial_prompt.safetensors"
MAX_NUMBERS = 2**27
"""Of a prompt; larger ones are refused before memory is taken. The largest backbones' widest prompts have 2**24."""
MAX_JSON_BYTES = 2**22
FLOATING = ("F64", "F32", "F16", "BF16")
TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


class SavedPrompt(NamedTuple):
    """What a prompt's folder or repository holds.

    Attributes:
        vectors: [P, H] fp32, on the CPU.
        config: PEFT's.
        info: what the prompt says of itself; None where it has no `prompt_tuning.json` (PEFT's own).
        source: the folder or Hub id that it came from.
        backbone: what the files tell of the backbone that it was trained on, by the names of `PromptInfo.backbone`.
        start: [P, H] fp32, the vectors that its training started from; None where the files do not hold them.
    """

    vectors: Tensor
    config: PromptTuningConfig
    info: PromptInfo | None
    source: str
    backbone: dict[str, Any]
    start: Tensor | None = None


def open_place(prompt: str | Path, **hub: Any) -> Place:
    """Return where a prompt's files are: a folder of this machine, or a Hub repository at one commit.

    Args:
        prompt: a folder or a Hub id.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`, `force_download` as
            `hf_hub_download` takes them.

    Raises:
        PromptLoadError: there is no such folder, and the name is no Hub id.
    """
    hub = {name: value for name, value in hub.items() if name in OPTIONS and value is not None}
    if Path(prompt).is_dir():
        return Folder(prompt, hub.get("subfolder", ""))
    if hub_id(str(prompt)) is None:
        raise PromptLoadError(f"{str(prompt)!r} is neither a folder on this machine nor a Hub id; check it.")
    return HubFolder(str(prompt), **hub)


def read_prompt(prompt: str | Path, **hub: Any) -> SavedPrompt:
    """A saved prompt, read and checked; of a Hub repository, all its files at one commit.

    Args:
        prompt: a folder or a Hub id.
        **hub: as in `open_place`.

    Raises:
        PromptLoadError: a file is missing, cannot be had, is damaged or unsafe, or is not a prompt's.
    """
    saved, place = read_whole(open_place(prompt, **hub), lambda place: _read(place, prompt))
    place.remember()
    return saved


def _read(place: Place, prompt: str | Path) -> SavedPrompt:
    config_file = _needed(place, prompt, CONFIG_FILE)
    config = read_json(config_file, partial(adapter_config, source=prompt))
    weights_file = _needed(place, prompt, WEIGHTS_FILE)
    vectors = used_rows(read_vectors(weights_file), config, prompt)
    info_file = place.find(INFO_FILE)
    info = None if info_file is None else read_json(info_file, PromptInfo.from_json)
    # Taken now: a model that is made of the config puts its own backbone's sizes into it.
    backbone = {
        "name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "num_layers": config.num_layers,
        "embedding_width": config.token_dim,
    }
    if info is not None:
        backbone |= {name: value for name, value in info.backbone.items() if value is not None}
    return SavedPrompt(vectors, config, info, str(prompt), backbone, _start(place, vectors, info))


def _needed(place: Place, prompt: str | Path, name: str) -> Path:
    """The path of a file that every prompt has."""
    if (file := place.find(name)) is not None:
        return file
    folders: list[str] = []
    if name == CONFIG_FILE:
        with suppress(PromptLoadError):  # that there is no such file is known, whatever else there is
            folders = sorted({path.rpartition("/")[0] for path in place.names() if path.endswith(f"/{CONFIG_FILE}")})
    if folders:
        shown = ", ".join(map(repr, folders[:5])) + (", …" if len(folders) > 5 else "")
        raise PromptLoadError(
            f"{prompt} has no {name}, but prompts in {shown}; name one of these folders by subfolder=…."
        )
    raise PromptLoadError(
        f"{prompt} has no {name}; a prompt's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}. Check the path, and "
        "subfolder=… where it holds several; prompts in other formats are read by import_prompt."
    )


def _start(place: Place, vectors: Tensor, info: PromptInfo | None) -> Tensor | None:
    """The vectors that training started from, where the prompt says that it has them."""
    if info is None or info.initialization.get("hash") is None:
        return None
    file = place.find(START_FILE)
    start = None if file is None else read_vectors(file)
    if start is not None and start.shape != vectors.shape:
        raise PromptLoadError(
            f"{named(file)} holds {list(start.shape)} numbers and {WEIGHTS_FILE} {list(vectors.shape)}. "
            "The two files are not of one prompt; remove the first, which nothing but the inspector reads."
        )
    return start


def used_rows(vectors: Tensor, config: PromptTuningConfig, source: str | Path) -> Tensor:
    """The P rows that a prompt's config speaks of.

    Raises:
        PromptLoadError: there are more or fewer.
    """
    if config.task_type == "SEQ_2_SEQ_LM" and len(vectors) == 2 * config.num_virtual_tokens:
        # PEFT keeps a second half for the decoder by default, and never trains nor uses it.
        vectors = vectors[: config.num_virtual_tokens].clone()
    if len(vectors) != config.num_virtual_tokens:
        raise PromptLoadError(
            f"{source}: {CONFIG_FILE} says {config.num_virtual_tokens} virtual tokens and {WEIGHTS_FILE} holds "
            f"{len(vectors)}. The two files are not of one prompt: take both from the same save."
        )
    return vectors


def read_json(file: Path, build: Callable[[dict[str, Any]], Any]) -> Any:
    """What `build` makes of a JSON object; its refusals become a `PromptLoadError` that names the file."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise PromptTuningError(f"it is larger than {MAX_JSON_BYTES // 2**20} MB")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise PromptTuningError(f"it holds a {type(values).__name__}, not an object")
        return build(values)
    except PromptLoadError:  # it says all that there is to say
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise PromptLoadError(
            f"{named(file)} is not a prompt's {file.name}: {error}. Take it anew from where it was saved."
        ) from error


def adapter_config(values: dict[str, Any], source: str | Path = "this") -> PromptTuningConfig:
    """PEFT's config, of the fields that a trained prompt needs; whatever made the vectors is history.

    Args:
        values: of `adapter_config.json`.
        source: the prompt, for messages.

    Raises:
        PromptLoadError: it is an adapter of another kind.
        PromptTuningError: a field is not of its type.
    """
    kind = values.get("peft_type")
    if kind != "PROMPT_TUNING" and kind in [known.value for known in PeftType]:
        raise PromptLoadError(
            f"{source} is a {kind} adapter, not a soft prompt (PROMPT_TUNING). Load it with PEFT's own class: "
            f"PeftModel.from_pretrained(backbone, {str(source)!r})."
        )
    if kind != "PROMPT_TUNING":
        raise PromptTuningError(f"its peft_type is {kind!r:.80}, not PROMPT_TUNING")
    kinds: dict[str, tuple[type, ...]] = {
        "task_type": (str, type(None)),
        "base_model_name_or_path": (str, type(None)),
        "revision": (str, type(None)),
        "num_virtual_tokens": (int,),
        "token_dim": (int, type(None)),
        "num_layers": (int, type(None)),
        "num_attention_heads": (int, type(None)),
    }
    kept = {name: values.get(name) for name in kinds}
    for name, value in kept.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise PromptTuningError(
                f"{name} is {value!r:.80}, and must be {' or '.join(k.__name__ for k in kinds[name])}"
            )
    if kept["task_type"] not in (None, *TASK_TYPES):
        raise PromptTuningError(f"task_type is {kept['task_type']!r:.80}, not {' or '.join(TASK_TYPES)}")
    return PromptTuningConfig(**kept, prompt_tuning_init="RANDOM", num_transformer_submodules=1)


def read_vectors(file: Path, key: str = "prompt_embeddings") -> Tensor:
    """One tensor of a safetensors file, [P, H] in fp32; its size is looked at before it is read.

    Raises:
        PromptLoadError: the file is damaged, has no such tensor, or one that is no prompt.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            if key not in tensors.keys():  # noqa: SIM118  (it is no mapping)
                raise PromptLoadError(
                    f"{named(file)} has no tensor `{key}`; it holds {sorted(tensors.keys())[:5]}. Give a prompt's "
                    "file."
                )
            piece = tensors.get_slice(key)
            shape, dtype = piece.get_shape(), piece.get_dtype()
            if len(shape) != 2 or not 0 < shape[0] * shape[1] <= MAX_NUMBERS:
                raise PromptLoadError(
                    f"{named(file)} holds an array of shape {list(shape)}; a prompt is [P, H], at most {MAX_NUMBERS} "
                    "numbers: give such a file."
                )
            if dtype not in FLOATING:
                raise PromptLoadError(
                    f"{named(file)} holds numbers of type {dtype}; a prompt's are one of {FLOATING}: save them so."
                )
            vectors = tensors.get_tensor(key).float()
    except PromptLoadError:
        raise
    except Exception as error:  # safetensors has an error type of its own, and raises others for damaged headers
        raise PromptLoadError(
            f"{named(file)} is not a whole safetensors file: {error}. Take it anew from where it was saved."
        ) from error
    return checked(vectors, file)


def write_start(folder: Path, start: Tensor | None) -> None:
    """Writes the vectors that a prompt started from, [P, H] fp32; None removes those of an earlier prompt there."""
    if start is None:
        (folder / START_FILE).unlink(missing_ok=True)
    else:
        save_file({"prompt_embeddings": start.contiguous()}, folder / START_FILE)


def checked(vectors: Tensor, file: str | Path) -> Tensor:
    """The vectors, if they are a prompt: [P, H], not empty, all finite.

    Raises:
        PromptLoadError: they are not.
    """
    if vectors.dim() != 2 or not vectors.numel():
        raise PromptLoadError(
            f"{named(file)} holds an array of shape {list(vectors.shape)}; a prompt is [P, H]: give such a file."
        )
    if not bool(torch.isfinite(vectors).all()):
        raise PromptLoadError(
            f"{named(file)} holds NaN or infinite numbers; give a prompt from before they came, or train it anew."
        )
    return vectors
