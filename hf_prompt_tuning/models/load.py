"""Load a published prompt with the backbone, revision and template that it was trained with."""

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data.processors import own_chat_template
from ..data.template import PromptTemplate, sources_of
from ..errors import PromptLoadError, PromptTuningError
from ..hub.auto_classes import named_auto_class, reads_pictures
from ..hub.backbones import commit_of, load_backbone, load_processor, load_tokenizer
from ..hub.files import hub_id
from ..prompts.files import SavedPrompt, read_prompt
from .backbone import check_backbone
from .classifiers import QUESTION_ANS, label_options
from .model_classes import MODEL_CLASSES, PromptTuningModel
from .soft_prompts import SoftPrompts

logger = logging.getLogger(__name__)

Coder = PreTrainedTokenizerBase | ProcessorMixin
ADVICE = "Give it as tokenizer=…."


@dataclass(frozen=True, repr=False)
class LoadedPrompt:
    """A prompt on its backbone. It can be unpacked: `model, tokenizer, template = load_prompt(…)`.

    Attributes:
        model: the prompt-tuning model, in eval mode unless it is trainable.
        tokenizer: the backbone's, with the chat template that the prompt was trained with, so that
            `apply_chat_template` writes what training wrote; None if a given backbone's tokenizer is not on this
            machine.
        template: turns a row into text; None if the prompt has none.
        source: the prompt's Hub id or folder.
        processor: the backbone's, of a prompt that was trained with one, or the one given, with the chat template as
            the tokenizer; None for texts alone, or if it could not be loaded.
    """

    model: PromptTuningModel
    tokenizer: PreTrainedTokenizerBase | None
    template: PromptTemplate | None
    source: str
    processor: ProcessorMixin | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer, self.template))

    def __getitem__(self, index: int) -> Any:
        return tuple(self)[index]

    def __repr__(self) -> str:
        described = describe_parts(self.model, self.tokenizer, self.template)
        return f"LoadedPrompt({self.source!r}: {len(self.model.prompt)} virtual tokens on {described})"


def describe_parts(
    model: SoftPrompts, tokenizer: PreTrainedTokenizerBase | None, template: PromptTemplate | None
) -> str:
    """Return in one line, for people: a model's backbone, a template and a tokenizer."""
    backbone, text = model.get_base_model(), "no template"
    if template is not None:
        targets = [template.target] if template.target else (template.label_words or {}).values()
        text = f"{' + '.join(map(repr, sources_of(template)))} -> {' | '.join(targets)}"
    name = f" {backbone.name_or_path!r}" if backbone.name_or_path else ""
    coder = "no tokenizer" if tokenizer is None else type(tokenizer).__name__
    return f"{type(backbone).__name__}{name}, {text}, {coder}"


def check_for_one(options: Mapping[str, Any], count: int) -> None:
    """Raise PromptTuningError for an option of `load_prompt` that says where one prompt is, if several are loaded."""
    for option in ("revision", "subfolder") if count > 1 else ():
        if options.get(option):
            raise PromptTuningError(
                f"{option} is {options[option]!r}, and {count} prompts are given; give their folders, of snapshots."
            )


def for_other_prompts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `load_prompt`'s options for a first prompt that hold for the next ones on its backbone, too."""
    kept = ("token", "cache_dir", "local_files_only", "ignore_mismatch")
    return {name: value for name, value in options.items() if name in kept}


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
) -> LoadedPrompt:
    """Load a saved prompt and its backbone.

    No code from the Hub is run and no pickle is read, neither the prompt's nor its backbone's.

    Args:
        prompt: a Hub id or a folder; PEFT's prompt-tuning adapters too.
        revision: of the prompt's repository.
        token: for private repositories.
        device_map: the backbone's devices, as in `from_pretrained`.
        backbone: in place of the one that the prompt names: a loaded model (then only the prompt is downloaded), or
            the folder or Hub id of a model.
        tokenizer: in place of the backbone's, or its processor; copied, with a warning, if its chat template differs.
        is_trainable: make the prompt trainable.
        ignore_mismatch: warn about another backbone than the prompt was trained on, instead of raising an error.
        cache_dir: as in `from_pretrained`.
        subfolder: of the prompt's repository or folder.
        local_files_only: do not use the network, neither for the prompt nor for its backbone.
        **backbone_kwargs: passed to the backbone's `from_pretrained` (`dtype`, `quantization_config`, …).

    Raises:
        PromptLoadError: the prompt or its backbone could not be loaded, or is damaged or unsafe.
        PromptMismatchError: the backbone is not the one that the prompt was trained on.
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    options = backbone_kwargs | ({} if device_map is None else {"device_map": device_map})
    if backbone is not None and not isinstance(backbone, str | Path):
        check_backbone(backbone)
    again = options.get("force_download")
    saved = read_prompt(prompt, revision=revision, subfolder=subfolder, force_download=again, **hub)
    is_given = tokenizer is not None
    backbone, tokenizer = _backbone_and_tokenizer(saved, backbone, tokenizer, hub, options)
    cls = MODEL_CLASSES[check_backbone(backbone)]
    model = cls.from_pretrained(backbone, saved, "default", is_trainable, ignore_mismatch, _tokenizer_of(tokenizer))
    tokenizer = _with_chat_template(tokenizer, model.info.template, is_given)
    return LoadedPrompt(model, _tokenizer_of(tokenizer), model.info.template, saved.source, _processor_of(tokenizer))


def _processor_of(tokenizer: Coder | None) -> ProcessorMixin | None:
    return tokenizer if isinstance(tokenizer, ProcessorMixin) else None


def _tokenizer_of(tokenizer: Coder | None) -> PreTrainedTokenizerBase | None:
    return tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer


def _with_chat_template(tokenizer: Coder | None, template: Any, is_given: bool) -> Coder | None:
    """Return a tokenizer, or processor, whose chat template is that of a prompt's: a copy if the caller gave it."""
    chat = getattr(template, "chat", None)
    if tokenizer is None or chat is None or chat.chat_template is None:
        return tokenizer
    if is_given:
        own = own_chat_template(tokenizer)
        if chat.chat_template == (_tokenizer_of(tokenizer).chat_template if own is None else own):
            return tokenizer
        logger.warning(
            "The prompt was trained with another chat template than that of the tokenizer given. Use the tokenizer "
            "that is returned, a copy with the prompt's: apply_chat_template of yours writes other tokens."
        )
        tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = _tokenizer_of(tokenizer).chat_template = chat.chat_template
    return tokenizer


def _backbone_and_tokenizer(
    saved: SavedPrompt,
    backbone: PreTrainedModel | str | Path | None,
    tokenizer: PreTrainedTokenizerBase | None,
    hub: dict[str, Any],
    options: dict[str, Any],
) -> tuple[PreTrainedModel, Coder | None]:
    """Return the backbone, and its tokenizer or processor: the caller's, or those that the prompt names.

    Arguments are those of `load_prompt`; `hub` and `options` are for `load_backbone`.
    """
    if isinstance(backbone, PreTrainedModel):
        if options:
            name = next(iter(options))
            raise PromptLoadError(f"{name} is given for a backbone that is loaded already; leave it out.")
        _compare_commits(saved, backbone)
        return backbone, tokenizer if tokenizer is not None else _tokenizer_here(saved, backbone, hub)
    is_named_by_prompt = backbone is None
    if is_named_by_prompt:  # by its Hub id: the prompt is untrusted, so that it may not name a local folder
        backbone, hub = saved.backbone.get("name_or_path"), hub | {"revision": saved.backbone["revision"]}
        if hub_id(backbone) is None:
            fault = f"names {backbone!r:.80}, which is not a Hub id" if backbone else "does not name its backbone"
            raise PromptLoadError(f"{saved.source} {fault}; {_how_to_load(saved)}, on the command line --backbone.")
    name, advice = str(backbone), "Load it yourself and give it as backbone=…."
    if options.get("use_safetensors") is None:
        options["use_safetensors"] = True
    if saved.info is not None and saved.info.classifier:
        options = label_options(saved.info.classifier) | options
    backbone, place = load_backbone(
        name, saved.config.task_type, hub, advice, adapters=not is_named_by_prompt, **options
    )
    if not is_named_by_prompt:
        _compare_commits(saved, backbone)
    if tokenizer is None:
        tokenizer = _coder(saved, backbone, name, place, hub, options.get("gguf_file"))
    return backbone, tokenizer


def _how_to_load(saved: SavedPrompt) -> str:
    """Return in words with which call a prompt's backbone is loaded, with the number of labels of a classifier."""
    info, task = saved.info, saved.config.task_type
    if info is not None and info.data.get("processor"):
        return "load the backbone with AutoModelForImageTextToText.from_pretrained(…) and give it as backbone=…"
    labels = {} if info is None or task == QUESTION_ANS else info.classifier.get("id2label", {})
    kind = named_auto_class(task, saved.backbone.get("architecture"))
    call = f"{kind.__name__}.from_pretrained(…{f', num_labels={len(labels)}' if labels else ''})"
    return f"load the backbone with {call} and give it as backbone=…, or its folder"


def _coder(saved: SavedPrompt, backbone: PreTrainedModel, *place: Any) -> Coder:
    """Return the tokenizer of a backbone; of a prompt that was trained with a processor, this one if there is one.

    `place` are the arguments of `load_tokenizer` but the advice.
    """
    *place, gguf_file = place
    if gguf_file is None and saved.info is not None and saved.info.data.get("processor"):
        try:
            if reads_pictures(backbone.config) and (found := load_processor(*place, ADVICE)) is not None:
                return found
        except PromptLoadError as error:
            logger.warning("The prompt was trained with pictures, and here it reads texts alone: %s", error)
    return load_tokenizer(*place, ADVICE, gguf_file)


def _tokenizer_here(saved: SavedPrompt, backbone: PreTrainedModel, hub: dict[str, Any]) -> Coder | None:
    """Return the tokenizer, or processor, of a loaded backbone, None if it is not on this machine.

    `hub` has the `token` and `cache_dir` of `load_prompt`.
    """
    name = backbone.name_or_path
    if not name:
        return None
    hub = hub | {"local_files_only": True, "revision": commit_of(backbone)}
    try:
        return _coder(saved, backbone, name, None, hub, None)
    except PromptLoadError:
        logger.info("The tokenizer of %s is not on this machine; give load_prompt yours as tokenizer=….", name)
        return None


def _compare_commits(saved: SavedPrompt, backbone: PreTrainedModel) -> None:
    """Warn if the user's backbone is of another commit than the prompt was trained on.

    Different embeddings raise an error elsewhere, where they are compared. Different layers show only in the commit.
    """
    there, here = saved.backbone["revision"], commit_of(backbone)
    if there is None or there == here or saved.backbone["name_or_path"] != hub_id(backbone.name_or_path):
        return
    logger.warning(
        f"{saved.source} was trained on {saved.backbone['name_or_path']} at {there}, and the backbone given is of "
        f"{here or 'a commit that cannot be told'}. Embeddings are compared, layers are not."
    )
