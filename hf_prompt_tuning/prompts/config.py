"""Define the config of a prompt, which is PEFT's with more initialisations, and check a prompt's name."""

import copy
import dataclasses
import enum
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import peft
from torch import nn

from ..compat.peft import SAVES_MODULES
from ..errors import PromptTuningError
from ..hub.files import hub_id

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TAKEN = ("default", "__base__", "unfinished", "last-checkpoint")
POSITIONS = ("start", "after_bos", "system")
AUTO = "auto"
"""The `prompt_position` that is chosen when a prompt is made."""


class PromptTuningInit(str, enum.Enum):
    """Initialisations of the P vectors (Lester et al. 2021, section 3.2, and those of other codebases)."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    FIRST_VOCAB = "FIRST_VOCAB"
    CLASS_LABELS = "CLASS_LABELS"
    RANDOM = "RANDOM"
    PROMPT = "PROMPT"
    TEACHER = "TEACHER"
    EXAMPLES = "EXAMPLES"

    __str__ = str.__str__


PRIVATE_STARTS = (PromptTuningInit.TEACHER, PromptTuningInit.EXAMPLES)
"""Initialisations from words that may be private, of a teacher's text or of training rows."""

LENGTHS = {PromptTuningInit.EXAMPLES: 160}
"""The number of vectors by default, of initialisations that need more than 20."""


@dataclass
class PromptTuningConfig(peft.PromptTuningConfig):
    """PEFT's prompt-tuning config with more initialisations.

    Fields that PEFT does not have are never written to `adapter_config.json` (see `to_dict`), but to
    `prompt_tuning.json`.

    Args:
        num_virtual_tokens: P, the number of learned vectors. Default 20, of `EXAMPLES` 160, or the length of
            `init_prompt`.
        prompt_tuning_init: one of `PromptTuningInit`. Default `TEXT` if a text is given, `PROMPT` if a prompt is
            given, else `SAMPLE_VOCAB`.
        prompt_tuning_init_text: the words for `TEXT`, repeated or cut to P tokens. `TEACHER` takes them from the text
            that teaches, and saves neither the words nor the vectors that they give. Of `EXAMPLES`, what stands before
            the examples.
        random_range: `RANDOM` is uniform in ±random_range.
        vocab_sample_size: `SAMPLE_VOCAB` draws from this number of most common tokens.
        init_prompt: for `PROMPT`, a prompt's folder or file (in any format that `import_prompt` reads), or its Hub id.
        init_prompt_revision: the revision of that prompt's repository.
        init_prompt_subfolder: that prompt's folder in its repository or folder.
        init_prompt_token: a Hub token for that prompt, if it is private; never saved, and a model does not keep it.
        label_words: for `CLASS_LABELS`, the words of each label. `get_prompt_tuning_model` reads them from the
            template.
        tokenizer: the tokenizer to use instead of `tokenizer_name_or_path`; never saved.
        backbone_dropout: keep the backbone's dropout on while the prompt trains.
        prompt_position: "start", in front of everything; "after_bos", behind the token that the tokenizer writes first
            (or the model's BOS token); or "system", in a chat template's system turn before its text (in the first
            turn, if the template has no system role). "auto", which is the command's default, chooses "after_bos" for
            a decoder whose tokenizer writes BOS, else "start". Default "start", or the place of `init_prompt`.
        sink_token: for "after_bos", the token to stand behind, if the tokenizer writes none.
        train_head: for a backbone with a classification head: whether the prompt's copy of it trains. False is for a
            head that is trained already.
        chat: for "system", the `ChatFormat` of the data; default the tokenizer's own chat template. Never saved.
        head_token_ids: the prompt's head, the tokens that it stands behind; found when the prompt is made.
        example_token_ids: for `EXAMPLES`, the tokens of rows; drawn when the prompt is made. Never saved.
        classes: the names of the classes of the data, to compare with those of the head of `init_prompt`.
            `get_prompt_tuning_model` reads them from the template. Never saved.
        classifier_modules: the names of the classification head's modules, which are saved with the prompt; found
            when the prompt is made.

    Raises:
        PromptTuningError: P < 1, an unknown initialisation or position, a missing argument of the initialisation, or
            `init_prompt` beside another one.
    """

    num_virtual_tokens: int | None = None
    prompt_tuning_init: PromptTuningInit | str | None = None
    prompt_tuning_init_text: str | None = None
    random_range: float = 0.5
    vocab_sample_size: int = 5000
    init_prompt: str | None = None
    init_prompt_revision: str | None = None
    init_prompt_subfolder: str | None = None
    init_prompt_token: str | bool | None = field(default=None, repr=False, compare=False)
    label_words: list[str] | None = None
    tokenizer: Any = field(default=None, repr=False, compare=False)
    backbone_dropout: bool = False
    prompt_position: str | None = None
    sink_token: str | None = None
    chat: Any = field(default=None, repr=False, compare=False)
    head_token_ids: tuple[int, ...] | None = None
    train_head: bool = True
    example_token_ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    classes: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    classifier_modules: tuple[str, ...] = ()

    def __post_init__(self):
        # Skip PEFT's check: it rejects TEXT without a `tokenizer_name_or_path`, but here `tokenizer` may be given.
        super(peft.PromptTuningConfig, self).__post_init__()
        self.peft_type = peft.PeftType.PROMPT_TUNING
        self.prompt_tuning_init = self._checked_init()
        self._check_position()
        if self.num_virtual_tokens is None and self.prompt_tuning_init != PromptTuningInit.PROMPT:
            self.num_virtual_tokens = LENGTHS.get(self.prompt_tuning_init, 20)
        if self.num_virtual_tokens is not None and (
            type(self.num_virtual_tokens) is not int or self.num_virtual_tokens < 1
        ):
            raise PromptTuningError(
                f"num_virtual_tokens is {self.num_virtual_tokens!r}; a prompt has at least 1 virtual token. "
                "Give a whole number of 1 or more (20 is a good start)."
            )

    def _check_position(self) -> None:
        if self.prompt_position is None and self.prompt_tuning_init != PromptTuningInit.PROMPT:
            self.prompt_position = "start"
        if self.prompt_position not in (*POSITIONS, AUTO, None):
            raise PromptTuningError(
                f"prompt_position is {self.prompt_position!r:.80}; use one of {', '.join((*POSITIONS, AUTO))}."
            )
        if self.sink_token is not None and self.prompt_position != "after_bos":
            raise PromptTuningError(
                f"sink_token is {self.sink_token!r:.80}, and prompt_position is {self.prompt_position}; give it with "
                "after_bos alone."
            )
        if self.head_token_ids and self.prompt_position == "start":
            raise PromptTuningError("head_token_ids is given, and nothing stands before a prompt at start; give one.")

    @property
    def head(self) -> tuple[int, ...]:
        """Return the tokens that the prompt stands behind; none at the start."""
        return tuple(self.head_token_ids or ())

    def place(self) -> dict[str, Any]:
        """Return the prompt's place as written to `prompt_tuning.json`; empty for one at the start."""
        return {"prompt_position": self.prompt_position, "head_token_ids": list(self.head)} if self.head else {}

    def _checked_init(self) -> PromptTuningInit:
        init = self.prompt_tuning_init
        if init is None:
            if self.prompt_tuning_init_text is not None:
                init = PromptTuningInit.TEXT
            else:
                init = PromptTuningInit.SAMPLE_VOCAB if self.init_prompt is None else PromptTuningInit.PROMPT
        try:
            init = PromptTuningInit(init)
        except ValueError:
            raise PromptTuningError(
                f"prompt_tuning_init is {init!r}; use one of {', '.join(PromptTuningInit)}."
            ) from None
        if init == PromptTuningInit.TEXT and not self.prompt_tuning_init_text and not self.inference_mode:
            raise PromptTuningError(
                f"prompt_tuning_init is TEXT and prompt_tuning_init_text is {self.prompt_tuning_init_text!r}. "
                "Give the words to start from, or use SAMPLE_VOCAB."
            )
        if self.init_prompt and init != PromptTuningInit.PROMPT:
            why = "" if self.prompt_tuning_init else ", because prompt_tuning_init_text is given"
            other = "the text" if why else "prompt_tuning_init"
            raise PromptTuningError(
                f"init_prompt is {self.init_prompt!r}, and prompt_tuning_init is {init}{why}; a prompt has one start: "
                f"leave init_prompt or {other} out."
            )
        for name in ("init_prompt_revision", "init_prompt_subfolder"):
            if getattr(self, name) and not self.init_prompt:
                raise PromptTuningError(f"{name} is {getattr(self, name)!r} without a prompt. Give init_prompt, too.")
        if init == PromptTuningInit.PROMPT and not self.init_prompt and not self.inference_mode:
            raise PromptTuningError(
                "prompt_tuning_init is PROMPT and init_prompt is not given. Give a prompt's folder, its Hub id, "
                "or a file of [P, H]."
            )
        return init

    @classmethod
    def from_peft(cls, config: peft.PromptTuningConfig) -> "PromptTuningConfig":
        """Copy a PEFT config into this class. A model changes its own copy, not the caller's config."""
        if isinstance(config, cls):
            return copy.copy(config)
        # The config of multitask prompt tuning is a subclass, but its prompts are of another kind.
        if not isinstance(config, peft.PromptTuningConfig) or config.peft_type != peft.PeftType.PROMPT_TUNING:
            raise PromptTuningError(
                f"got a {type(config).__name__}; this model holds soft prompts: give a PromptTuningConfig."
            )
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return cls(**values)

    def forget_what_is_private(self) -> None:
        """Drop what a made prompt no longer needs and others may not read: trackers write a model's configs down.

        These are tokens of the Hub, and the words of a private start.
        """
        self.init_prompt_token = self.tokenizer_kwargs = self.example_token_ids = None
        if self.prompt_tuning_init in PRIVATE_STARTS:
            self.prompt_tuning_init_text = None

    def to_dict(self) -> dict[str, Any]:
        """Return only PEFT's fields and values, for `adapter_config.json`.

        PEFT warns about unknown keys and rejects `TEXT` without a tokenizer's name. So any initialisation except
        `SAMPLE_VOCAB` is written as `RANDOM`. This is safe: PEFT loads the trained vectors and does not initialise
        again.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(peft.PromptTuningConfig)}
        if self.num_virtual_tokens is not None:
            values["num_virtual_tokens"] += len(self.head)  # to PEFT, the head is the prompt's first vectors
        if SAVES_MODULES:
            values["modules_to_save"] = list(self.classifier_modules) or None
        if self.prompt_tuning_init != PromptTuningInit.SAMPLE_VOCAB:
            values["prompt_tuning_init"] = PromptTuningInit.RANDOM
        values["prompt_tuning_init"] = values["prompt_tuning_init"].value
        # PEFT writes the backbone's path here. Keep only a Hub id: a local path is private.
        values["base_model_name_or_path"] = hub_id(values["base_model_name_or_path"])
        values.update(prompt_tuning_init_text=None, tokenizer_name_or_path=None, tokenizer_kwargs=None)
        return values

    def initialization(self) -> dict[str, Any]:
        """Return the initialisation as written to `prompt_tuning.json`."""
        values = {"num_virtual_tokens": self.num_virtual_tokens, "prompt_tuning_init": self.prompt_tuning_init.value}
        detail = {
            PromptTuningInit.TEXT: "prompt_tuning_init_text",
            PromptTuningInit.RANDOM: "random_range",
            PromptTuningInit.SAMPLE_VOCAB: "vocab_sample_size",
            PromptTuningInit.CLASS_LABELS: "label_words",
        }.get(self.prompt_tuning_init)
        if detail == "label_words":  # those that vectors started from
            return values | {detail: (self.label_words or [])[: self.num_virtual_tokens]}
        return values | ({detail: getattr(self, detail)} if detail else {})


def check_adapter_name(name: Any, others: Collection[str]) -> None:
    """Raise PromptTuningError for an invalid adapter name. The name is used for a module and a folder."""
    text = isinstance(name, str)
    if not text or not name.strip() or not name.isprintable() or any(c in name for c in "./\\"):
        raise PromptTuningError(
            f"adapter_name is {name!r:.80}; a prompt's name is a text without '.', '/' and '\\', because it names a "
            "module and a folder."
        )
    if name == "__base__" or hasattr(nn.ModuleDict(), name):
        raise PromptTuningError(f"adapter_name is {name!r}, a name that PyTorch or PEFT needs; give another one.")
    if name in others:
        raise PromptTuningError(
            f"there is a prompt {name!r} already; give another name, or call delete_adapter({name!r}) first."
        )


def check_name(name: Any) -> None:
    """Raise PromptTuningError for an invalid prompt name. The name is used for a folder, metrics and a module."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptTuningError(
            f"the name is {name!r:.80}; a prompt's name is 1 to 64 letters, digits, '_' and '-' (it names a folder)."
        )
    # PyTorch rejects a module with the name of an attribute of its container ("train", "type").
    if name in TAKEN or name.startswith("checkpoint-") or hasattr(nn.ModuleDict(), name):
        raise PromptTuningError(f"the name {name!r} is taken by PyTorch, PEFT or the Trainer; give another one.")
