"""A published prompt in one line: with the backbone, revision and template that it was trained with."""

import logging
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .backbone import hub_id
from .causal_lm import PromptTuningModelForCausalLM
from .errors import PromptLoadError, first_line
from .prompt_files import SavedPrompt, read_prompt
from .seq2seq_lm import PromptTuningModelForSeq2SeqLM
from .template import PromptTemplate

logger = logging.getLogger(__name__)


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
    **backbone_kwargs: Any,
) -> tuple[
    PromptTuningModelForCausalLM | PromptTuningModelForSeq2SeqLM, PreTrainedTokenizerBase | None, PromptTemplate | None
]:
    """A saved prompt on its backbone, ready to use: `(model, tokenizer, template)`.

    No code from the Hub is run and no pickle is read, neither the prompt's nor its backbone's.

    Args:
        prompt: a Hub id or a folder; PEFT's prompt-tuning adapters too.
        revision: of the prompt's repository.
        token: for private repositories.
        device_map: where the backbone goes, as in `from_pretrained`.
        backbone: in place of the one that the prompt names: a model that is loaded already (then nothing but the
            prompt is downloaded), or the folder or Hub id of one.
        tokenizer: in place of the backbone's.
        is_trainable: go on training the prompt.
        ignore_mismatch: warn of another backbone than the prompt was trained on, rather than refuse it.
        cache_dir: as in `from_pretrained`.
        subfolder: of the prompt's repository or folder.
        **backbone_kwargs: to the backbone's `from_pretrained` (`dtype`, `quantization_config`, …).

    Returns:
        The model, in eval mode unless it is trainable; its tokenizer, None where a given backbone's is not on this
        machine; and the template, None where the prompt has none.

    Raises:
        PromptLoadError: the prompt or its backbone cannot be had, or is damaged or unsafe.
        PromptMismatchError: the backbone is not the one that the prompt was trained on.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "subfolder": subfolder}
    hub = {name: value for name, value in hub.items() if value not in (None, "")}
    saved = read_prompt(prompt, **hub)
    source = {} if token is None else {"token": token}
    if isinstance(backbone, PreTrainedModel):
        if backbone_kwargs or device_map is not None:
            name = next(iter(backbone_kwargs), "device_map")
            raise PromptLoadError(f"{name} is given for a backbone that is loaded already; leave it out.")
        name, source = backbone.name_or_path, source | {"local_files_only": True}
        if revision_here := getattr(backbone.config, "_commit_hash", None):
            source["revision"] = revision_here
    else:
        name = str(backbone) if backbone is not None else _named_backbone(prompt, saved)
        if backbone is None and saved.backbone.get("revision"):
            source["revision"] = saved.backbone["revision"]
        backbone = _load_backbone(name, saved.config.task_type, device_map=device_map, **source, **backbone_kwargs)
    if "gguf_file" in backbone_kwargs:  # it holds the tokenizer, too
        source["gguf_file"] = backbone_kwargs["gguf_file"]
    if tokenizer is None and name:
        tokenizer = _tokenizer(name, required="local_files_only" not in source, **source)
    cls = PromptTuningModelForSeq2SeqLM if backbone.config.is_encoder_decoder else PromptTuningModelForCausalLM
    model = cls.from_saved(backbone, saved, "default", is_trainable, ignore_mismatch)
    return model, tokenizer, model.info.template


def _named_backbone(prompt: str | Path, saved: SavedPrompt) -> str:
    """The Hub id of the backbone that a prompt names; a stranger's prompt names no folder of this machine."""
    name = saved.backbone.get("name_or_path")
    if hub_id(name) is None:
        named = f"names {name!r:.80}, which is not a Hub id" if name else "does not name its backbone"
        raise PromptLoadError(f"{prompt} {named}; load the backbone and give it as backbone=….")
    return name


def _load_backbone(name: str, task_type: str | None, **kwargs: Any) -> PreTrainedModel:
    auto_class = AutoModelForSeq2SeqLM if task_type == "SEQ_2_SEQ_LM" else AutoModelForCausalLM
    kwargs = {"dtype": "auto", "use_safetensors": True} | {k: v for k, v in kwargs.items() if v is not None}
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **kwargs)
    except Exception as error:  # a repository that anyone may have made raises anything
        raise PromptLoadError(
            f"the backbone {name!r} cannot be loaded: {first_line(error)} Load it yourself and give it as backbone=…."
        ) from error


def _tokenizer(name: str, required: bool, **source: Any) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source)
    except Exception as error:
        if required:
            raise PromptLoadError(
                f"the tokenizer of {name!r} cannot be loaded: {first_line(error)} Give it as tokenizer=…."
            ) from error
        logger.info("The tokenizer of %s is not on this machine; give load_prompt yours as tokenizer=….", name)
        return None
