"""Load a published prompt with the backbone, revision and template that it was trained with."""

import logging
import threading
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.template import PromptTemplate
from ..errors import PromptLoadError, PromptTuningError, first_line
from ..hub.backbones import (
    TOKENIZER_FILES,
    OnceMore,
    backbone_place,
    commit_of,
    is_adapter,
    must_be_known,
    remember_commit,
    source,
)
from ..hub.errors import raise_fault
from ..hub.files import HubFolder, named
from ..hub.names import hub_id
from ..prompts.files import SavedPrompt, read_prompt
from .causal_lm import PromptTuningModelForCausalLM
from .seq2seq_lm import PromptTuningModelForSeq2SeqLM
from .wrapping import check_backbone

logger = logging.getLogger(__name__)

ONE_AT_A_TIME = threading.Lock()
"""Held while a backbone is loaded. transformers replaces `PreTrainedModel.tie_weights` for the whole process while it
loads a model, and two loads at once can leave the replacement behind: no later model would tie its weights."""


def load_prompt(
    prompt: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    device_map: Any = None,
    backbone: PreTrainedModel | str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    is_trainable: bool = False,
    ignore_mismatch: bool = False,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    **backbone_kwargs: Any,
) -> tuple[
    PromptTuningModelForCausalLM | PromptTuningModelForSeq2SeqLM, PreTrainedTokenizerBase | None, PromptTemplate | None
]:
    """Load a saved prompt and its backbone: `(model, tokenizer, template)`.

    No code from the Hub is run and no pickle is read, neither the prompt's nor its backbone's.

    Args:
        prompt: a Hub id or a folder; PEFT's prompt-tuning adapters too.
        revision: of the prompt's repository.
        token: for private repositories.
        device_map: the backbone's devices, as in `from_pretrained`.
        backbone: in place of the one that the prompt names: a loaded model (then only the prompt is downloaded), or
            the folder or Hub id of a model.
        tokenizer: in place of the backbone's.
        is_trainable: make the prompt trainable.
        ignore_mismatch: warn about another backbone than the prompt was trained on, instead of raising an error.
        cache_dir: as in `from_pretrained`.
        subfolder: of the prompt's repository or folder.
        local_files_only: do not use the network, neither for the prompt nor for its backbone.
        **backbone_kwargs: passed to the backbone's `from_pretrained` (`dtype`, `quantization_config`, …).

    Returns:
        The model, in eval mode unless it is trainable; its tokenizer, or None if a given backbone's tokenizer is not
        on this machine; and the template, or None if the prompt has none.

    Raises:
        PromptLoadError: the prompt or its backbone could not be loaded, or is damaged or unsafe.
        PromptMismatchError: the backbone is not the one that the prompt was trained on.
    """
    if backbone is not None and not isinstance(backbone, str | Path):
        check_backbone(backbone)
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    again = backbone_kwargs.get("force_download")
    saved = read_prompt(prompt, revision=revision, subfolder=subfolder, force_download=again, **hub)
    if isinstance(backbone, PreTrainedModel):
        if backbone_kwargs or device_map is not None:
            name = next(iter(backbone_kwargs), "device_map")
            raise PromptLoadError(f"{name} is given for a backbone that is loaded already; leave it out.")
        name, required, place = backbone.name_or_path, False, None
        origin = source(None, token=token, local_files_only=True, revision=commit_of(backbone))
        _compare_commits(saved, backbone)
    elif backbone is not None:
        name, required = str(backbone), True
        backbone, place = _load_backbone(name, saved, hub, device_map=device_map, **backbone_kwargs)
        _compare_commits(saved, backbone)
    else:
        name, required = _named_backbone(prompt, saved), True
        hub["revision"] = saved.backbone["revision"]
        backbone, place = _load_backbone(name, saved, hub, True, device_map=device_map, **backbone_kwargs)
    if place is not None or required:
        origin = source(place, **hub)
    if "gguf_file" in backbone_kwargs:  # a GGUF file contains the tokenizer, too
        origin["gguf_file"] = backbone_kwargs["gguf_file"]
    if tokenizer is None and name:
        if "gguf_file" not in origin:
            must_be_known(place, TOKENIZER_FILES)
        tokenizer = _tokenizer(name, required, **origin)
    cls = PromptTuningModelForSeq2SeqLM if backbone.config.is_encoder_decoder else PromptTuningModelForCausalLM
    model = cls.from_saved(backbone, saved, "default", is_trainable, ignore_mismatch, tokenizer)
    return model, tokenizer, model.info.template


def _named_backbone(prompt: str | Path, saved: SavedPrompt) -> str:
    """Return the Hub id of the backbone that a prompt names. Local folders are refused: the prompt is untrusted."""
    name = saved.backbone.get("name_or_path")
    if hub_id(name) is None:
        named = f"names {name!r:.80}, which is not a Hub id" if name else "does not name its backbone"
        raise PromptLoadError(f"{prompt} {named}; load the backbone and give it as backbone=….")
    return name


def _load_backbone(
    name: str, saved: SavedPrompt, hub: dict[str, Any], strangers: bool = False, **kwargs: Any
) -> tuple[PreTrainedModel, HubFolder | None]:
    """Load the backbone. Return it with its folder on the Hub, or None if it is local.

    Args:
        name: its Hub id or folder.
        saved: the prompt.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.
        strangers: whether the prompt, and not the user, names the backbone.
        **kwargs: passed to `from_pretrained`.
    """
    if kwargs.pop("trust_remote_code", False):
        raise PromptLoadError(
            f"trust_remote_code is given for the backbone {name!r}, and no code from the Hub is run here. Load it "
            "yourself and give it as backbone=…."
        )
    place = backbone_place(name, kwargs.get("gguf_file"), **hub)
    if strangers and place is not None and is_adapter(place):
        raise PromptLoadError(
            f"the backbone {name!r} cannot be loaded: it is an adapter itself, of a backbone of its own. Load it "
            "yourself and give it as backbone=…."
        )
    auto_class = AutoModelForSeq2SeqLM if saved.config.task_type == "SEQ_2_SEQ_LM" else AutoModelForCausalLM
    options = {"dtype": "auto", "use_safetensors": True, "tqdm_class": OnceMore}
    options |= {name: value for name, value in kwargs.items() if value is not None}
    try:
        with ONE_AT_A_TIME:
            backbone = auto_class.from_pretrained(name, trust_remote_code=False, **options, **source(place, **hub))
    except PromptTuningError:
        raise
    except Exception as error:  # an untrusted repository can raise any error
        raise_fault(f"the backbone {name!r}", error)
        raise PromptLoadError(
            f"the backbone {name!r} cannot be loaded: {named(first_line(error))} Load it yourself and give it as "
            "backbone=…."
        ) from error
    remember_commit(backbone, place)
    return backbone, place


def _compare_commits(saved: SavedPrompt, backbone: PreTrainedModel) -> None:
    """Warn if the user's backbone is of another commit than the prompt was trained on.

    Different embeddings raise an error elsewhere, where they are compared. Different layers show only in the commit.
    """
    there, here = saved.backbone["revision"], commit_of(backbone)
    if there is None or there == here or saved.backbone["name_or_path"] != hub_id(backbone.name_or_path):
        return
    logger.warning(
        "%s was trained on %s at %s, and the backbone given is of %s. Embeddings are compared, layers are not.",
        saved.source,
        saved.backbone["name_or_path"],
        there,
        here or "a commit that cannot be told",
    )


def _tokenizer(name: str, required: bool, **origin: Any) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **origin)
    except Exception as error:
        if required:
            raise_fault(f"the tokenizer of {name!r}", error)
            raise PromptLoadError(
                f"the tokenizer of {name!r} cannot be loaded: {named(first_line(error))} Give it as tokenizer=…."
            ) from error
        logger.info("The tokenizer of %s is not on this machine; give load_prompt yours as tokenizer=….", name)
        return None
