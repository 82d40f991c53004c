"""Make a model with a soft prompt from a backbone."""

from typing import Any

from peft import PromptTuningConfig as PeftPromptTuningConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.chat_tokenization import with_own_chat_template
from ..data.examples import example_ids
from ..data.head_template import HeadTemplate
from ..data.processors import tokenizer_in
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..prompts.config import PromptTuningConfig, PromptTuningInit
from .backbone import check_backbone
from .initialization import tokenizer_of
from .model_classes import MODEL_CLASSES, PromptTuningModel
from .soft_prompts import SoftPrompts


def get_prompt_tuning_model(
    backbone: PreTrainedModel,
    config: PeftPromptTuningConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: PromptTemplate | None = None,
    adapter_name: str = "default",
    frozen: bool = True,
    train_dataset: Any = None,
) -> PromptTuningModel:
    """Put a new soft prompt in front of a backbone and freeze the backbone.

    Args:
        backbone: a causal or encoder-decoder language model, one for sequence or token classification or for question
            answering, or a base model, that takes `inputs_embeds`; frozen in place.
        config: ours or PEFT's. A missing `task_type` is taken from the backbone.
        tokenizer: for the initialisations that need one.
        template: saved with the prompt. `CLASS_LABELS` uses its label words.
        adapter_name: the prompt's name.
        frozen: False leaves the backbone unchanged until `freeze_backbone`, for a caller that has more checks to make.
        train_dataset: for `EXAMPLES`, the rows to start from, with the template's columns: a Dataset or a list.

    Raises:
        PromptTuningError: the backbone is of no such kind, does not take `inputs_embeds`, or has another
            task type; or the prompt cannot be initialised as configured. The backbone is then unchanged.
    """
    config = _completed(config, tokenizer, template, train_dataset)
    task_type = check_backbone(backbone, config.task_type)
    config.task_type = task_type
    model = MODEL_CLASSES[task_type](backbone, config, adapter_name, frozen=frozen)
    if template is not None:
        model.info.template = template
    return model


def add_prompt(
    model: SoftPrompts,
    adapter_name: str,
    config: PeftPromptTuningConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: PromptTemplate | None = None,
    train_dataset: Any = None,
) -> None:
    """Add a soft prompt on the same backbone. The active prompt stays active.

    Arguments and errors are those of `get_prompt_tuning_model`.
    """
    config = _completed(config, tokenizer, template, train_dataset)
    config.task_type = config.task_type or model.task_type
    model.add_adapter(adapter_name, config)
    if template is not None:
        model.prompt_encoder[adapter_name].info.template = template


def _completed(
    config: PeftPromptTuningConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    template: PromptTemplate | None,
    train_dataset: Any,
) -> PromptTuningConfig:
    """Return our config, with the tokenizer, label words and examples that an initialisation may need."""
    config, template = PromptTuningConfig.from_peft(config), with_own_chat_template(template, tokenizer)
    config.tokenizer = tokenizer_in(tokenizer if tokenizer is not None else config.tokenizer)
    config.chat = config.chat or getattr(template, "chat", None)
    if config.prompt_position == "system" and template is not None and config.chat is None:
        raise PromptTuningError(
            "prompt_position is system, and the template makes plain text, in which there are no turns. Give it "
            "chat=ChatFormat() (--chat true), or give after_bos."
        )
    if config.label_words is None and template is not None and template.label_words:
        config.label_words = list(template.label_words.values())
    if config.classes is None and isinstance(template, HeadTemplate) and template.labels is not None:
        config.classes = tuple(template.labels)
    if config.example_token_ids is None:
        config.example_token_ids = drawn_examples(config, config.tokenizer, template, train_dataset)
    return config


def drawn_examples(
    config: PromptTuningConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    template: PromptTemplate | None,
    train_dataset: Any,
) -> tuple[int, ...] | None:
    """Draw the tokens that a prompt of `EXAMPLES` starts from; None for other starts, and without rows.

    Raise PromptTuningError if there is no tokenizer, or as `example_ids` does.
    """
    if config.prompt_tuning_init != PromptTuningInit.EXAMPLES or train_dataset is None:
        return None
    if tokenizer is None:
        tokenizer = tokenizer_of(config, "prompt_tuning_init is EXAMPLES")
    length, text = config.num_virtual_tokens, config.prompt_tuning_init_text
    return tuple(example_ids(train_dataset, template, tokenizer_in(tokenizer), length, text))
