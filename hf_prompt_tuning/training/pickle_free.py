"""Convert checkpoints between pickles and safe files (safetensors and JSON).

transformers pickles the optimizer, the scheduler and the random generators. That is fine on your own disk, but files
from the Hub must be safe to read. So checkpoints are pushed without pickles. To resume from one, its pickles are
written again in a temporary folder.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_pt_utils import safe_globals

from ..errors import PromptTuningError
from ..prompts.local_paths import without_local_paths
from ..prompts.repository_files import STATE
from .checkpoint_folder import MANIFEST, seal

PICKLES = (".pt", ".pth", ".bin", ".pkl")
ARGUMENTS = "training_args.bin"


def without_pickles(checkpoint: str | Path, folder: str | Path) -> Path:
    """Copy a checkpoint of this machine into a folder, and return the folder. Convert each pickle to safe files.

    They are `NAME.json` and, for its tensors, `NAME.safetensors`. `training_args.bin` is left out, because it names
    folders and tokens. Raise PromptTuningError if a pickle holds a value of an unsupported type.
    """
    for file in sorted(Path(checkpoint).iterdir()):
        if (file / "adapter_config.json").exists():
            shutil.copytree(file, Path(folder) / file.name)  # a run of several prompts has a folder for each
        if file.name in (ARGUMENTS, MANIFEST) or not file.is_file():
            continue
        if file.name == STATE:
            # The path of the best checkpoint is only valid on this machine. The states of callbacks may name folders,
            # too.
            state = json.loads(file.read_text(encoding="utf-8")) | {"best_model_checkpoint": None}
            state["stateful_callbacks"] = without_local_paths(state.get("stateful_callbacks", {}))
            (Path(folder) / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            continue
        if file.suffix not in PICKLES:
            shutil.copy(file, folder)
            continue
        with safe_globals():
            state = torch.load(file, map_location="cpu", weights_only=True)
        tensors: dict[str, torch.Tensor] = {}
        tree = _to_json(state, tensors)
        (Path(folder) / f"{file.name}.json").write_text(json.dumps(tree) + "\n", encoding="utf-8")
        if tensors:
            save_file(tensors, Path(folder) / f"{file.name}.safetensors")
    # Write a new manifest. By the original's manifest the copy would count as damaged.
    seal(Path(folder))
    return Path(folder)


@contextmanager
def with_pickles(checkpoint: str | Path | None) -> Iterator[str | None]:
    """Yield a folder from which transformers can resume: the checkpoint itself, or a copy with its pickles restored.

    None (a run that starts from the beginning) stays None. Raise PromptTuningError if a file is damaged.
    """
    files = [] if checkpoint is None else Path(checkpoint).glob("*.json")
    converted = [file for file in files if Path(file.stem).suffix in PICKLES]
    if not converted:
        yield checkpoint
        return
    with TemporaryDirectory() as folder:
        for file in Path(checkpoint).iterdir():
            if file.is_file():
                shutil.copy(file, folder)
        for file in converted:
            try:
                pairs = file.with_name(f"{file.stem}.safetensors")
                tensors = load_file(pairs) if pairs.exists() else {}
                state = _from_json(json.loads(file.read_text(encoding="utf-8")), tensors)
            except Exception as error:  # safetensors has its own error type
                raise PromptTuningError(f"{file} cannot be resumed from: {error}") from error
            torch.save(state, Path(folder) / file.stem)
        yield folder


def _to_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a JSON tree of a value, and put its tensors into `tensors`.

    The tree can represent tensors (by name), tuples, and dicts whose keys are not strings.
    """
    if (
        isinstance(value, np.ndarray) and value.dtype == np.uint32
    ):  # NumPy's generator; safetensors 0.4.3 has no uint32
        return _to_json(value.view(np.int32), tensors) | {"read_as": "uint32"}
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(value).detach().clone().contiguous()
        return {kind: name}
    if isinstance(value, dict):
        return {"dict": [[_to_json(k, tensors), _to_json(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_to_json(v, tensors) for v in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PromptTuningError(f"a checkpoint holds a {type(value).__name__}, which is not sent to the Hub.")


def _from_json(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    (kind, value), *_ = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        array = tensors[value].numpy()
        return array.view(tree["read_as"]) if "read_as" in tree else array
    if kind == "dict":
        return {_from_json(k, tensors): _from_json(v, tensors) for k, v in value}
    items = [_from_json(v, tensors) for v in value]
    return tuple(items) if kind == "tuple" else items
