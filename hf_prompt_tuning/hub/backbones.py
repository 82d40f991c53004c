"""A backbone of the Hub, loaded at one commit, which is remembered; and the commit of one that others loaded."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import tqdm
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import HubUnavailableError
from ..hub.names import hub_id
from .files import HubFolder, Place, read_whole

SMALL = (".json", ".jinja", ".txt", ".model", ".spm", ".tiktoken", ".vocab", ".bpe")
"""What configs, tokenizers and chat templates are kept in."""
WEIGHTS = re.compile(r"model[^/]*\.safetensors")
MODEL_FILES, TOKENIZER_FILES = ("config.json", "generation_config.json"), ("tokenizer_config.json", "tokenizer.json")
"""Which transformers looks for, and goes on without."""
COMPARED = 8
"""Numbers of each tensor by which a backbone's weights are recognised."""


def backbone_place(name: str, gguf_file: str | None = None, **hub: Any) -> HubFolder | None:
    """Return where a backbone of the Hub is, at one commit, with all that is small in the cache; None for a folder.

    transformers takes a file that a server fails to give for one that is not there, and goes on without: with another
    tokenizer, or with other settings of `generate`. So they are in the cache before it looks, and weights that are not
    are asked for.

    Args:
        name: a Hub id or a folder.
        gguf_file: the file that holds it all, if one does.
        **hub: as in `HubFolder`.

    Raises:
        PromptLoadError: the repository, or one of its files, cannot be had.
    """
    if hub_id(name) is None:
        return None
    hub = {option: value for option, value in hub.items() if value is not None}

    def fetch(place: Place) -> None:
        if place.offline and gguf_file is None and place.commit is not None:
            must_be_known(place, MODEL_FILES)
        elif not place.offline:
            _fetch_small(place, gguf_file)

    return read_whole(HubFolder(name, "backbone", **hub), fetch)[1]


def must_be_known(place: HubFolder | None, names: tuple[str, ...]) -> None:
    """Raise PromptLoadError if the cache alone is asked, and does not tell whether there are files of these names."""
    if place is not None and place.offline:
        for name in names:
            place.find(name)


def _fetch_small(place: HubFolder, gguf_file: str | None) -> None:
    for name in place.names():
        folder = name.rpartition("/")[0]
        if name.endswith(SMALL) and folder in ("", "additional_chat_templates"):
            place.find(name)
        elif not place.has(name) and (name == gguf_file or (gguf_file is None and WEIGHTS.fullmatch(name))):
            place.probe(name)


def source(place: HubFolder | None, **hub: Any) -> dict[str, Any]:
    """Return what `from_pretrained` of models and tokenizers is given, so that it loads from this place alone.

    Args:
        place: as `backbone_place` found it.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only` as they were asked for.
    """
    hub = {name: value for name, value in hub.items() if value}
    if place is not None and place.commit is not None and not is_adapter(place):
        hub["revision"] = place.commit
        hub |= {"local_files_only": True} if place.offline else {}
    return hub


def is_adapter(place: HubFolder) -> bool:
    """Return whether the repository holds an adapter, for which transformers loads yet another repository."""
    return place.commit is not None and place.has("adapter_config.json")


class OnceMore(tqdm):
    """The progress bar of a download that may begin again, but not for ever.

    The client goes on for as long as something comes; from a server that breaks off, and cannot go on from there, the
    same half comes without end.
    """

    def update(self, n: float | None = 1) -> bool | None:
        if n is not None and n < 0:
            self.again = getattr(self, "again", 0) + 1
            if self.again > 2:
                raise HubUnavailableError(
                    "the backbone's weights cannot be had: their download breaks off again and again. Try again later."
                )
        return super().update(n)


def remember_commit(backbone: PreTrainedModel, place: HubFolder | None) -> None:
    """Notes the commit on a backbone that was loaded from there, and in the cache."""
    if place is not None and not is_adapter(place):
        backbone.hub_commit = place.commit
        place.remember()


def commit_of(backbone: PreTrainedModel) -> str | None:
    """Return the commit that a backbone was loaded at; None if that cannot be found out.

    transformers keeps none. Of a backbone that the user loaded, it is the commit in the cache whose weights are these.
    """
    if (known := getattr(backbone, "hub_commit", None)) is not None:
        return known
    name = hub_id(backbone.name_or_path)
    for snapshot in _snapshots(name) if name else ():
        if _holds(snapshot, backbone):
            return snapshot.name
    return None


def _snapshots(name: str) -> Iterator[Path]:
    """The commits of a repository that are in the cache, main's first, then the newest."""
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    main = storage / "refs" / constants.DEFAULT_REVISION
    first = main.read_text().strip() if main.is_file() else None
    found = sorted(storage.glob("snapshots/*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    yield from sorted(found, key=lambda folder: folder.name != first)


def _holds(snapshot: Path, backbone: PreTrainedModel) -> bool:
    """Whether a few numbers of every tensor that can be compared are the backbone's, in its dtype."""
    parameters, compared = dict(backbone.named_parameters()), 0
    for file in sorted(snapshot.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                here, there = parameters.get(name), tensors.get_slice(name)
                # Sharded, offloaded and quantized ones say nothing; of the latter, the norms are left.
                if not _is_plain(here) or list(here.shape) != there.get_shape():
                    continue
                if not torch.equal(_some(there, here).to(here.dtype), _some(here, here).cpu()):
                    return False
                compared += 1
    return compared > 0


def _is_plain(weight: Tensor | None) -> bool:
    return (
        type(weight) in (Tensor, nn.Parameter)
        and not weight.is_meta
        and weight.is_floating_point()
        and weight.numel() > 0
    )


def _some(weight: Any, like: Tensor) -> Tensor:
    """The first numbers of the middle row."""
    row = weight[len(like) // 2] if like.dim() > 1 else weight[:COMPARED]
    return row.detach().flatten()[:COMPARED]
