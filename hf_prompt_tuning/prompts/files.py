"""Read and check the files of a saved prompt.

A prompt's folder holds PEFT's two files, `adapter_config.json` and `adapter_model.safetensors` (tensor
`prompt_embeddings`, [P, H]). PEFT has no place for the template, label words, initialisation, backbone and results, so
these are in `prompt_tuning.json`. If the initial vectors cannot be computed again (they were drawn at random or came
from another prompt), `initial_prompt.safetensors` holds them under the same tensor name. The files may come from
anyone, so any fault in them raises a `PromptLoadError`.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftType
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PromptLoadError, PromptTuningError
from ..hub.files import OPTIONS, Folder, HubFolder, Place, hub_id, named, open_tensors, read_whole
from .config import PromptTuningConfig
from .info import INFO_FILE, PromptInfo, check_types

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
START_FILE = "initial_prompt.safetensors"
MAX_NUMBERS = 2**27
"""The most numbers in a prompt. A larger one is rejected before memory is allocated.

The largest prompts of the largest backbones have 2**24 numbers.
"""
MAX_JSON_BYTES = 2**22
FLOATING = ("F64", "F32", "F16", "BF16")
WITH_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", *WITH_HEADS, "FEATURE_EXTRACTION")
CLASSIFIER_PREFIX = "base_model."
"""With it begin the names of a classification head's tensors, as PEFT writes its `modules_to_save`."""


class SavedPrompt(NamedTuple):
    """The content of a prompt's folder or repository.

    Attributes:
        vectors: [P, H] fp32, on the CPU.
        config: PEFT's config.
        info: the prompt's description; None if it has no `prompt_tuning.json`, as prompts saved by PEFT.
        source: the folder or Hub id that the prompt was loaded from.
        backbone: what the files record about the prompt's backbone, with the keys of `PromptInfo.backbone`.
        start: [P, H] fp32, the vectors that training started from; None if the files do not hold them.
        head: [h, H] fp32, the embeddings of the tokens that the prompt stands behind (`config.head`).
        classifier: the weights of its classification head by name, fp32; None if the files hold none.
    """

    vectors: Tensor
    config: PromptTuningConfig
    info: PromptInfo | None
    source: str
    backbone: dict[str, Any]
    start: Tensor | None
    head: Tensor
    classifier: dict[str, Tensor] | None = None


def open_place(prompt: str | Path, **hub: Any) -> Place:
    """Return the place of a prompt's files: a local folder, or a Hub repository at one commit.

    `hub` are `revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`, `force_download` as in
    `hf_hub_download`. Raise PromptLoadError if the folder does not exist, and the name is not a valid Hub id; or a
    revision is given for a folder.
    """
    hub = {name: value for name, value in hub.items() if name in OPTIONS and value is not None}
    if not str(prompt).strip():
        raise PromptLoadError(f"the prompt is {str(prompt)!r}; give a folder or a Hub id.")  # not the current folder
    if Path(prompt).is_dir():
        if revision := hub.get("revision"):
            raise PromptLoadError(
                f"revision is {revision!r}, and {str(prompt)!r} is a folder on this machine, which has none; leave "
                "it out."
            )
        return Folder(prompt, hub.get("subfolder", ""))
    if hub_id(str(prompt)) is None:
        missing = "" if Path(prompt).exists() else ": there is no such file or folder"
        raise PromptLoadError(
            f"{str(prompt)!r} is neither a folder on this machine nor a Hub id{missing}. Check the path or the name."
        )
    return HubFolder(str(prompt), **hub)


def read_prompt(prompt: str | Path, **hub: Any) -> SavedPrompt:
    """Read and check a saved prompt, of a folder or a Hub id. All files of a Hub repository come from one commit.

    Options are those of `open_place`. Raise PromptLoadError if a file is missing, could not be loaded, is damaged or
    unsafe, or does not belong to a prompt.
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
    head, vectors = without_head(vectors, info, prompt)
    config = _at_place(config, info, len(vectors))
    # Copy these now: a model that gets this config overwrites them with its own backbone's sizes.
    backbone = {
        "name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "num_layers": config.num_layers,
        "embedding_width": config.token_dim,
    }
    if info is not None:
        backbone |= {name: value for name, value in info.backbone.items() if value is not None}
    classifier = read_classifier(weights_file) if config.task_type in WITH_HEADS else None
    return SavedPrompt(vectors, config, info, str(prompt), backbone, _start(place, vectors, info), head, classifier)


def without_head(vectors: Tensor, info: PromptInfo | None, source: str | Path) -> tuple[Tensor, Tensor]:
    """Split the rows of a saved prompt into those of its head, [h, H], and the P vectors, [P, H].

    Raises:
        PromptLoadError: the description tells of a head that is as long as the prompt, or longer.
    """
    length = len(info.place.get("head_token_ids", ())) if info is not None else 0
    if length >= len(vectors):
        raise PromptLoadError(
            f"{source}: {INFO_FILE} tells of {length} head tokens, and {WEIGHTS_FILE} holds {len(vectors)} rows with "
            "them. The two files are not of one prompt: take both from the same save."
        )
    return vectors[:length].clone(), vectors[length:].clone()


def _at_place(config: PromptTuningConfig, info: PromptInfo | None, length: int) -> PromptTuningConfig:
    """Return the config with the prompt's place, and without its head in the number of its vectors."""
    if info is not None and info.classifier:
        config = replace(config, train_head=info.classifier["is_trained"])
    if info is None or not info.place:
        return config
    ids, position = tuple(info.place["head_token_ids"]), info.place["prompt_position"]
    return replace(config, num_virtual_tokens=length, prompt_position=position, head_token_ids=ids)


def _needed(place: Place, prompt: str | Path, name: str) -> Path:
    """Return the path of a required file. Raise PromptLoadError if it is missing."""
    if (file := place.find(name)) is not None:
        return file
    folders: list[str] = []
    if name == CONFIG_FILE:
        with suppress(PromptLoadError):  # the folders only make the message more helpful
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
    """Return the vectors that training started from, if the prompt has them."""
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
    """Return the P rows of a prompt, as its config says. Raise PromptLoadError if there are more or fewer."""
    if config.task_type == "SEQ_2_SEQ_LM" and len(vectors) == 2 * config.num_virtual_tokens:
        # PEFT by default saves a second half for the decoder. It is never trained and never used.
        vectors = vectors[: config.num_virtual_tokens].clone()
    if len(vectors) != config.num_virtual_tokens:
        raise PromptLoadError(
            f"{source}: {CONFIG_FILE} says {config.num_virtual_tokens} virtual tokens and {WEIGHTS_FILE} holds "
            f"{len(vectors)}. The two files are not of one prompt: take both from the same save."
        )
    return vectors


def read_json(file: Path, build: Callable[[dict[str, Any]], Any]) -> Any:
    """Return `build(values)` for the object in a JSON file. Any fault raises a PromptLoadError that names the file."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise PromptTuningError(f"it is larger than {MAX_JSON_BYTES // 2**20} MB")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise PromptTuningError(f"it holds a {type(values).__name__}, not an object")
        return build(values)
    except PromptLoadError:  # its message is complete
        raise
    except (OSError, ValueError, RecursionError) as error:
        fault = str(error).removesuffix(".")  # some are sentences
        raise PromptLoadError(f"{named(file)} is not a prompt's {file.name}: {fault}. Download it again.") from error


def adapter_config(values: dict[str, Any], source: str | Path = "this") -> PromptTuningConfig:
    """Return PEFT's config with only the fields that a trained prompt needs, without its initialisation.

    `values` are the content of `adapter_config.json` of `source`, for messages. Raise PromptLoadError for another kind
    of adapter, and PromptTuningError for a field of the wrong type.
    """
    kind = values.get("peft_type")
    if kind != "PROMPT_TUNING" and kind in [adapter.value for adapter in PeftType]:
        raise PromptLoadError(
            f"{source} is a {kind} adapter, not a soft prompt (PROMPT_TUNING). Load it with PEFT's own class: "
            f"PeftModel.from_pretrained(backbone, {str(source)!r})."
        )
    if kind != "PROMPT_TUNING":
        raise PromptTuningError(f"its peft_type is {kind!r:.80}, not PROMPT_TUNING")
    types: dict[str, tuple[type, ...]] = {
        "task_type": (str, type(None)),
        "base_model_name_or_path": (str, type(None)),
        "revision": (str, type(None)),
        "num_virtual_tokens": (int,),
        "token_dim": (int, type(None)),
        "num_layers": (int, type(None)),
        "num_attention_heads": (int, type(None)),
    }
    kept = {name: values.get(name) for name in types}
    check_types(kept, types)
    if kept["task_type"] not in (None, *TASK_TYPES):
        raise PromptTuningError(f"task_type is {kept['task_type']!r:.80}, not {' or '.join(TASK_TYPES)}")
    return PromptTuningConfig(**kept, prompt_tuning_init="RANDOM", num_transformer_submodules=1)


def read_vectors(file: Path, key: str = "prompt_embeddings") -> Tensor:
    """Return a tensor of a safetensors file as fp32 [P, H]. Its size is checked before it is read.

    Raise PromptLoadError if the file is damaged, the tensor is missing, or it is not a prompt.
    """
    with open_tensors(file) as tensors:
        if key not in tensors.keys():  # noqa: SIM118  (not a mapping)
            raise PromptLoadError(
                f"{named(file)} has no tensor `{key}`; it holds {sorted(tensors.keys())[:5]}. Give a prompt's file."
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
        return checked(tensors.get_tensor(key).float(), file)


def read_classifier(file: Path) -> dict[str, Tensor] | None:
    """Return the weights of a classification head in a safetensors file by name, as fp32; None if there are none.

    Raise PromptLoadError if they are not finite floating-point numbers, or too many.
    """
    with open_tensors(file) as tensors:
        names = [name for name in tensors.keys() if name.startswith(CLASSIFIER_PREFIX)]  # noqa: SIM118
        pieces = {name: tensors.get_slice(name) for name in names}
        count = sum(math.prod(piece.get_shape()) for piece in pieces.values())
        if count > MAX_NUMBERS or any(piece.get_dtype() not in FLOATING for piece in pieces.values()):
            raise PromptLoadError(
                f"{named(file)} holds {count} numbers of a classification head, of the types "
                f"{sorted({piece.get_dtype() for piece in pieces.values()})}; at most {MAX_NUMBERS} of {FLOATING} are "
                "read: save the head alone, so."
            )
        weights = {name.removeprefix(CLASSIFIER_PREFIX): tensors.get_tensor(name).float() for name in names}
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise PromptLoadError(
                f"{named(file)} holds NaN or infinite numbers in {name}; give a prompt from before they came, or "
                "train it again."
            )
    return weights or None


def write_rows(folder: Path, rows: Tensor, classifier: Mapping[str, Tensor]) -> None:
    """Write a prompt with its head, [h+P, H] fp32, and its classification head's weights by name, as PEFT does."""
    tensors = {"prompt_embeddings": rows} | {CLASSIFIER_PREFIX + name: weight for name, weight in classifier.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def write_start(folder: Path, start: Tensor | None) -> None:
    """Write the initial vectors of a prompt, [P, H] fp32. None removes an earlier prompt's file."""
    if start is None:
        (folder / START_FILE).unlink(missing_ok=True)
    else:
        save_file({"prompt_embeddings": start.contiguous()}, folder / START_FILE)


def checked(vectors: Tensor, file: str | Path) -> Tensor:
    """Return the vectors if they are a valid prompt: [P, H], not empty, all finite. Else raise PromptLoadError."""
    if vectors.dim() != 2 or not vectors.numel():
        raise PromptLoadError(
            f"{named(file)} holds an array of shape {list(vectors.shape)}; a prompt is [P, H]: give such a file."
        )
    if not bool(torch.isfinite(vectors).all()):
        raise PromptLoadError(
            f"{named(file)} holds NaN or infinite numbers; give a prompt from before they came, or train it again."
        )
    return vectors
