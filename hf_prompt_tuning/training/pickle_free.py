"""A checkpoint without pickles: optimizer, scheduler and generators as safetensors and JSON.

transformers pickles them. That is well on one's own disk; what goes to the Hub, for resuming elsewhere, is written
here in files that are safe to read, and put back before transformers resumes from them.
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
from ..prompts.places import without_place
from ..prompts.repository_files import STATE
from .checkpoint_folder import MANIFEST, seal

PICKLES = (".pt", ".pth", ".bin", ".pkl")
ARGUMENTS = "training_args.bin"


def without_pickles(checkpoint: str | Path, folder: str | Path) -> Path:
    """Copies a checkpoint's files, each pickle as `NAME.json` and, where it holds tensors, `NAME.safetensors`.

    Returns where the copy is.

    Args:
        checkpoint: a folder that `Trainer` wrote on this machine.
        folder: where the copy goes; the arguments, which name folders and tokens, are left out.
    """
    for file in sorted(Path(checkpoint).iterdir()):
        if (file / "adapter_config.json").exists():
            shutil.copytree(file, Path(folder) / file.name)  # one of several prompts
        if file.name in (ARGUMENTS, MANIFEST) or not file.is_file():
            continue
        if file.name == STATE:
            # It names the best checkpoint by its path on this machine, where alone it can be found. Callbacks' own
            # states may name folders, too.
            state = json.loads(file.read_text(encoding="utf-8")) | {"best_model_checkpoint": None}
            state["stateful_callbacks"] = without_place(state.get("stateful_callbacks", {}))
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
    # Of its own files: by the manifest of the folder that it was copied from it would be damaged.
    seal(Path(folder))
    return Path(folder)


@contextmanager
def with_pickles(checkpoint: str | Path | None) -> Iterator[str | None]:
    """A folder that transformers can resume optimizer and generators from: the checkpoint itself, or a copy of it.

    Args:
        checkpoint: None, where a run starts afresh, stays None.

    Raises:
        PromptTuningError: one of the files is damaged.
    """
    found = [] if checkpoint is None else Path(checkpoint).glob("*.json")
    made = [file for file in found if Path(file.stem).suffix in PICKLES]
    if not made:
        yield checkpoint
        return
    with TemporaryDirectory() as folder:
        for file in Path(checkpoint).iterdir():
            if file.is_file():
                shutil.copy(file, folder)
        for file in made:
            try:
                pairs = file.with_name(f"{file.stem}.safetensors")
                tensors = load_file(pairs) if pairs.exists() else {}
                state = _from_json(json.loads(file.read_text(encoding="utf-8")), tensors)
            except Exception as error:  # safetensors raises an error type of its own
                raise PromptTuningError(f"{file} cannot be resumed from: {error}") from error
            torch.save(state, Path(folder) / file.stem)
        yield folder


def _to_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A JSON tree that names tensors (moved into `tensors`), tuples, and dicts whose keys are no texts."""
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
        return tensors[value].numpy()
    if kind == "dict":
        return {_from_json(k, tensors): _from_json(v, tensors) for k, v in value}
    items = [_from_json(v, tensors) for v in value]
    return tuple(items) if kind == "tuple" else items
