"""Load a backbone at one commit and record the commit. Find the commit of a backbone that the user loaded."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..compat.transformers import GGUF, check_finds_gguf
from ..errors import HubUnavailableError, PromptLoadError, PromptTuningError, first_line
from .auto_classes import auto_class
from .errors import raise_fault
from .files import HubFolder, Place, hub_id, named, open_tensors, read_whole
from .missing_weights import READERS, check_whole

SMALL = (".json", ".jinja", ".txt", ".model", ".spm", ".tiktoken", ".vocab", ".bpe")
"""The extensions of config, tokenizer and chat template files."""
WEIGHTS = re.compile(r"model[^/]*\.safetensors")
MODEL_FILES, TOKENIZER_FILES = ("config.json", "generation_config.json"), ("tokenizer_config.json", "tokenizer.json")
"""Files that transformers tries to load. It continues without them if they are missing."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Such files of a processor."""
COMPARED = 8
"""How many numbers of each tensor are compared to recognise a backbone's weights."""
ONE_AT_A_TIME = threading.Lock()
"""Held while a backbone is loaded. transformers replaces `PreTrainedModel.tie_weights` for the whole process while it
loads a model, and two loads at once can leave the replacement behind: no later model would tie its weights."""


def load_backbone(
    name: str,
    task_type: str | None,
    hub: Mapping[str, Any],
    advice: str,
    *,
    gguf_file: str | None = None,
    adapters: bool = True,
    trust_remote_code: bool = False,
    head: Callable[[PreTrainedConfig], dict[str, Any]] | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, HubFolder | None]:
    """Load a backbone without running code from its repository. Return it and its place, None for a folder.

    `name` is a Hub id or a folder. Without a `task_type` the backbone's config tells it. `hub` has `revision`,
    `token`, `cache_dir` and `local_files_only`; `advice` is the last sentence of an error's message; a GGUF file holds
    the whole backbone. Without `adapters`, a repository that holds an adapter and names another backbone is an error.
    So is `trust_remote_code`, which is accepted so that the error names it. Other options go to `from_pretrained`,
    unless they are None, and so does what `head` returns for the backbone's config. Raise PromptLoadError if the
    backbone could not be loaded.
    """
    what = f"the backbone {name!r}"
    if trust_remote_code:
        raise PromptLoadError(f"trust_remote_code is given for {what}, and no code from the Hub is run here. {advice}")
    if hub_id(name) is None and not Path(name).exists():
        raise PromptLoadError(f"{what} could not be loaded: there is no such folder, and it is no Hub id. {advice}")
    if gguf_file is not None:
        check_finds_gguf(what)
    place = backbone_place(name, gguf_file, **hub)
    if not adapters and place is not None and is_adapter(place):
        raise PromptLoadError(f"{what} could not be loaded: it is an adapter of another backbone itself. {advice}")
    origin = _origin(place, gguf_file, hub)
    options = {"dtype": "auto"} | {option: value for option, value in options.items() if value is not None}
    with _readable(what, advice), ONE_AT_A_TIME:
        # A GGUF file is of a text model, whose Auto class is known.
        known = gguf_file is not None and task_type is not None and head is None
        config = None if known else AutoConfig.from_pretrained(name, **origin)
        if task_type is None:
            task_type = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
        if head is not None:
            options |= head(config)
        options |= {"tqdm_class": OnceMore} | ({"output_loading_info": True} if task_type in READERS else {})
        backbone = auto_class(task_type, config).from_pretrained(name, **options, **origin)
    if task_type in READERS:
        backbone, loading = backbone
        check_whole(backbone, loading, what)
    if gguf_file is not None:
        backbone.dequantized_from = GGUF
    remember_commit(backbone, place)
    return backbone, place


def load_tokenizer(
    name: str,
    place: HubFolder | None,
    hub: Mapping[str, Any],
    advice: str,
    gguf_file: str | None = None,
    **options: Any,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer without running code from its repository, from the backbone's commit if its place is given.

    Arguments are those of `load_backbone`, and the place that it returns. Raise PromptLoadError if it could not be
    loaded.
    """
    if gguf_file is None:  # a GGUF file contains the tokenizer, too
        must_be_known(place, TOKENIZER_FILES)
    with _readable(f"the tokenizer of {name!r}", advice):
        return AutoTokenizer.from_pretrained(name, **options | _origin(place, gguf_file, hub))


def load_processor(
    name: str, place: HubFolder | None, hub: Mapping[str, Any], advice: str, **options: Any
) -> ProcessorMixin | None:
    """Load the processor of a backbone that sees as `load_tokenizer` loads a tokenizer; None if it has none."""
    must_be_known(place, PROCESSOR_FILES)
    with _readable(f"the processor of {name!r}", advice):
        processor = AutoProcessor.from_pretrained(name, **options | _origin(place, None, hub))
    return processor if isinstance(processor, ProcessorMixin) else None


def _origin(place: HubFolder | None, gguf_file: str | None, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that make `from_pretrained` load from this place, and run no code from it."""
    gguf = {} if gguf_file is None else {"gguf_file": gguf_file}
    # Without `trust_remote_code`, transformers would ask the user.
    return {"trust_remote_code": False} | source(place, **hub) | gguf


@contextmanager
def _readable(what: str, advice: str) -> Iterator[None]:
    """Turn any error of transformers into one PromptLoadError within this context."""
    try:
        yield
    except PromptTuningError:
        raise
    except Exception as error:  # an untrusted repository can raise any error
        raise_fault(what, error)
        raise PromptLoadError(f"{what} could not be loaded: {named(first_line(error))} {advice}") from error


def backbone_place(name: str, gguf_file: str | None = None, **hub: Any) -> HubFolder | None:
    """Return a Hub backbone at one commit with its small files in the cache, or None if `name` is a folder.

    If the server fails to send a file, transformers treats the file as missing and continues with another tokenizer or
    other settings of `generate`. So this downloads the small files to the cache first. For weights that are not in the
    cache (in a GGUF file, all of the backbone), it checks that the server can send them. Raise PromptLoadError if the
    repository or one of its files could not be loaded.
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
    """Raise PromptLoadError if the place is offline and the cache does not tell whether these files exist."""
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
    """Return the arguments that make `from_pretrained` of models and tokenizers load from this place only.

    They start from the caller's `revision`, `token`, `cache_dir` and `local_files_only`.
    """
    hub = {name: value for name, value in hub.items() if value is not None}  # `token` may be False
    if place is not None and place.commit is not None and not is_adapter(place):
        hub["revision"] = place.commit
        hub |= {"local_files_only": True} if place.offline else {}
    return hub


def is_adapter(place: HubFolder) -> bool:
    """Tell whether the repository holds an adapter. For one, transformers loads a second repository."""
    return place.commit is not None and place.has("adapter_config.json")


class OnceMore(tqdm):
    """Progress bar that raises HubUnavailableError when a download restarts more than twice.

    The client retries for as long as it receives data. If a server always breaks off and cannot resume, the client
    would download the same part forever.
    """

    def update(self, n: float | None = 1) -> bool | None:
        if n is not None and n < 0:
            self.again = getattr(self, "again", 0) + 1
            if self.again > 2:
                raise HubUnavailableError(
                    "the backbone's weights could not be loaded: their download breaks off again and again. "
                    "Try again later."
                )
        return super().update(n)


def remember_commit(backbone: PreTrainedModel, place: HubFolder | None) -> None:
    """Record the commit of a loaded backbone, on the model and in the cache."""
    if place is not None and not is_adapter(place):
        backbone.hub_commit = place.commit
        place.remember()


def commit_of(backbone: PreTrainedModel) -> str | None:
    """Return the commit that a backbone was loaded at, or None if it is unknown.

    transformers does not keep the commit. For a backbone that the user loaded, return the commit in the cache that has
    the same weights.
    """
    if (commit := getattr(backbone, "hub_commit", None)) is not None:
        return commit
    name = hub_id(backbone.name_or_path)
    for snapshot in _snapshots(name) if name else ():
        if _holds(snapshot, backbone):
            return snapshot.name
    return None


def _snapshots(name: str) -> Iterator[Path]:
    """Yield the cached commits of a repository: main's first, then from the newest to the oldest."""
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    main = storage / "refs" / constants.DEFAULT_REVISION
    first = main.read_text().strip() if main.is_file() else None
    snapshots = sorted(storage.glob("snapshots/*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    yield from sorted(snapshots, key=lambda folder: folder.name != first)


def _holds(snapshot: Path, backbone: PreTrainedModel) -> bool:
    """Tell whether the snapshot has the backbone's weights: compare a few numbers per tensor, in its dtype."""
    parameters, compared = dict(backbone.named_parameters()), 0
    for file in sorted(snapshot.glob("model*.safetensors")):
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                here, there = parameters.get(name), tensors.get_slice(name)
                # Skip sharded, offloaded and quantized tensors. A quantized backbone is compared by its norms.
                if not _is_plain(here) or list(here.shape) != there.get_shape():
                    continue
                if not torch.equal(_sample(there, here).to(here.dtype), _sample(here, here).cpu()):
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


def _sample(weight: Any, like: Tensor) -> Tensor:
    """Return the first `COMPARED` numbers of the middle row, or of a vector."""
    row = weight[len(like) // 2] if like.dim() > 1 else weight[:COMPARED]
    return row.detach().flatten()[:COMPARED]


def largest_shard(backbone: PreTrainedModel) -> int | None:
    """Return the bytes of the largest file of weights that a backbone was loaded from, None if it was but one."""
    folder = Path(backbone.name_or_path or ".")
    if backbone.name_or_path and not folder.is_dir():
        commit = commit_of(backbone)
        folder = next((place for place in _snapshots(backbone.name_or_path) if place.name == commit), folder)
    files = list(folder.glob("model-*.safetensors")) if backbone.name_or_path else []
    return max((file.stat().st_size for file in files), default=None)
