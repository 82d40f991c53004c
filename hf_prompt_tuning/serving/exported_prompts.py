"""Load the prompts of an export on one backbone, each under the name that it will have there."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.sharing import of_all_parts
from ..models.load import check_for_one, for_other_prompts, load_prompt
from ..models.model_classes import check_writes_text
from ..models.soft_prompts import SoftPrompts
from ..prompts.info import PromptInfo

Prompts = str | Path | SoftPrompts | Iterable[str | Path] | Mapping[str, str | Path]
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class ExportedPrompt:
    """A prompt that is exported.

    Attributes:
        name: its name, of which its tokens are made.
        model: holds it, on the backbone.
        adapter: its name in the model.
        tokenizer: the backbone's, without the prompt's tokens.
    """

    name: str
    model: SoftPrompts
    adapter: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def vectors(self) -> Tensor:
        """The trained vectors, [P, H] fp32."""
        return self.model.prompt_encoder[self.adapter].embedding.weight.detach()

    @property
    def info(self) -> PromptInfo:
        """The description that was saved with it."""
        return self.model.prompt_info[self.adapter]

    @property
    def head(self) -> list[int]:
        """The token ids that it stands behind."""
        return list(self.model.peft_config[self.adapter].head)

    @property
    def position(self) -> str:
        """Its `prompt_position`."""
        return self.model.peft_config[self.adapter].prompt_position or "start"

    @property
    def tokens(self) -> list[str]:
        """Its tokens, P texts such as `<|complaints_0|>`."""
        return [f"<|{self.name}_{i}|>" for i in range(len(self.vectors))]

    def encoder(self) -> PromptTokenizer:
        """Return what turns rows into token ids, without cutting them. A prompt without a template takes `{text}`."""
        template = self.info.template or PromptTemplate(source="{text}", target="{target}")
        return self.model.row_encoder(self.tokenizer, replace(template, max_source_length=None), self.adapter)


def load_prompts(
    prompts: Prompts,
    backbone: PreTrainedModel | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **load: Any,
) -> list[ExportedPrompt]:
    """Load prompts on one backbone.

    Args:
        prompts: a Hub id or folder, or several, named by their last part, or by the keys of a mapping; or a model, of
            which all prompts are taken.
        backbone: as in `load_prompt`; default the one that the first prompt names.
        tokenizer: the backbone's, in place of its own.
        **load: passed to `load_prompt`.

    Raises:
        PromptTuningError: no prompt is given, two have one name, a name is not made of letters, digits, `_` and `-`,
            there is no tokenizer, or a prompt has a classification head.
        PromptLoadError: as in `load_prompt`.
        PromptMismatchError: a prompt is of another backbone.
    """
    if isinstance(prompts, SoftPrompts):
        check_writes_text(prompts)
        if backbone is not None or load:
            name = "backbone" if backbone is not None else next(iter(load))
            raise PromptTuningError(f"{name} is given, and the prompts are on a backbone already; leave it out.")
        prompts = of_all_parts(prompts).eval()  # dropout would change what is measured; the caller's keeps its mode
        names = {_checked(name): name for name in prompts.peft_config}
        tokenizer = _needed(tokenizer, prompts.base_model)
        return [ExportedPrompt(name, prompts, adapter, tokenizer) for name, adapter in names.items()]
    exported: list[ExportedPrompt] = []
    named = named_prompts(prompts)
    check_for_one(load, len(named))
    for name, prompt in named.items():
        loaded = load_prompt(prompt, backbone=backbone, tokenizer=tokenizer, **load)
        check_writes_text(loaded.model)
        backbone, tokenizer = loaded.model.get_base_model(), _needed(loaded.tokenizer, backbone)
        exported.append(ExportedPrompt(name, loaded.model, "default", tokenizer))
        load = for_other_prompts(load)
    return exported


def named_prompts(prompts: str | Path | Iterable[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Return the folders or Hub ids of prompts by name. Raise PromptTuningError as `load_prompts` does."""
    if isinstance(prompts, Mapping):
        return by_name(prompts.items())
    listed = [prompts] if isinstance(prompts, str | Path) or not isinstance(prompts, Iterable) else list(prompts)
    return by_name((_last_part(prompt), prompt) for prompt in listed)


def by_name(pairs: Iterable[tuple[str, str | Path]]) -> dict[str, str | Path]:
    """Return prompts by name, given as pairs of both. Raise PromptTuningError as `load_prompts` does."""
    named: dict[str, str | Path] = {}
    for name, prompt in pairs:
        if _checked(name) in named:
            raise PromptTuningError(
                f"two prompts are named {name!r}, {str(named[name])!r} and {str(prompt)!r}; give names of their own: "
                "{name: prompt}, on the command line NAME=PROMPT."
            )
        named[name] = prompt
    if not named:
        raise PromptTuningError("no prompt is given; give at least one.")
    return named


def _last_part(prompt: Any) -> str:
    if not isinstance(prompt, str | Path):
        raise PromptTuningError(
            f"a prompt is given as a {type(prompt).__name__}; give a folder or a Hub id, or a model of this package."
        )
    return Path(prompt).resolve().name if Path(prompt).exists() else Path(prompt).name


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptTuningError(
            f"the prompt's name is {name!r:.80}; its tokens are made of it, so it is 1 to 64 letters, digits, '_' and "
            "'-': give one, {name: prompt}, on the command line NAME=PROMPT."
        )
    return name


def _needed(tokenizer: PreTrainedTokenizerBase | None, backbone: Any) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise PromptTuningError(
            f"there is no tokenizer for {getattr(backbone, 'name_or_path', backbone)!r:.80}; give it as tokenizer=…."
        )
    return tokenizer
