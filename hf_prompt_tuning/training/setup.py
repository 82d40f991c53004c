"""Check a trainer's arguments before anything changes, and choose its template, model and callbacks."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..data.answer_collator import DataCollatorForAnswers
from ..data.chat_tokenization import with_own_chat_template
from ..data.collator import DataCollatorForPromptTuning
from ..data.encoded_rows import PICTURES, TYPES
from ..data.encoding import check_kind, text_rows, with_label_words
from ..data.head_collator import DataCollatorForHeads
from ..data.head_template import HeadTemplate
from ..data.template import PromptTemplate, sources_of
from ..errors import PromptTuningError
from ..layouts import check_layout_name, check_row_budget
from ..models.classifiers import QUESTION_ANS, TOKEN_CLS, classification_task
from ..models.create import get_prompt_tuning_model
from ..models.initialization import saved_info
from ..models.metric_direction import check_direction
from ..models.model_classes import check_writes_text
from ..models.soft_prompts import SoftPrompts
from ..models.text_layouts import check_layout
from ..prompts.config import PromptTuningConfig, PromptTuningInit
from ..prompts.privacy import private_start
from .callbacks import DivergenceCallback, PromptAveragingCallback
from .head_rows import head_template
from .recipes import AUTO, RECIPES
from .teacher import started_by

logger = logging.getLogger(__name__)


OTHER_NAMES = {"tokenizer": "processing_class", "peft_config": "prompt_config"}
"""Names that earlier versions of `Trainer`, and TRL's trainers, have for arguments of this trainer."""


OF_TEACHERS = (
    *("distillation_temperature", "distillation_weight", "distill_over", "teacher_top_k", "teacher_writes"),
    *("teacher_temperature", "teacher_top_p", "teacher_max_new_tokens", "publish_teacher_text"),
)
"""The arguments that only a teacher reads."""


def check_argument_names(options: Mapping[str, Any]) -> None:
    """Raise PromptTuningError for an argument that has another name here."""
    if given := [name for name in OTHER_NAMES if name in options]:
        raise PromptTuningError(f"{given[0]} is given, and here it is called {OTHER_NAMES[given[0]]}; give it so.")


def check_kinds(train_dataset: Any, eval_dataset: Any) -> None:
    """Raise PromptTuningError if a trainer's data is no set of rows (`check_kind`)."""
    check_kind(train_dataset, "training")
    check_kind(eval_dataset, "evaluation", may_be_several=True)


def check_recipe(args: TrainingArguments, trainer: Any) -> None:
    """Log what a named recipe sets. Raise PromptTuningError if it is auto and the trainer does not find settings."""
    if values := getattr(args, "set_by_recipe", None):
        told = ", ".join(f"{name}={value}" for name, value in values.items())
        logger.info("The recipe %s sets %s.", args.recipe, told)
    if getattr(args, "recipe", None) == AUTO and not trainer.finds_settings:
        raise PromptTuningError(
            "recipe is auto, which trains a field of prompts; use FieldTrainer(backbone, args, prompt_config, …), or "
            "give another recipe."
        )


def check_together(
    model: Any,
    model_init: Any,
    config: Any,
    args: TrainingArguments,
    callbacks: Sequence[Any],
    train_dataset: Any,
    options: Mapping[str, Any],
) -> None:
    """Raise PromptTuningError for conflicting arguments, or if neither `model` nor `model_init` is given.

    `options` are the other arguments of `Trainer`.
    """
    check_argument_names(options)
    if model is None and model_init is None:
        raise PromptTuningError("neither model nor model_init is given; give one of them.")
    if model is not None and model_init is not None:
        raise PromptTuningError("both model and model_init are given; give one of them.")
    if config is not None and (model_init is not None or isinstance(model, SoftPrompts)):
        what = "model_init" if model_init is not None else "a model that has its prompt"
        raise PromptTuningError(
            f"prompt_config is given together with {what}; give it to get_prompt_tuning_model, or a backbone here."
        )
    patience = getattr(args, "early_stopping_patience", None)
    if patience and any(kind_of(callback) is EarlyStoppingCallback for callback in callbacks):
        raise PromptTuningError(
            f"an EarlyStoppingCallback is given beside early_stopping_patience, {patience}; give one of them."
        )
    if train_dataset is not None and not hasattr(train_dataset, "__len__") and args.max_steps <= 0:
        raise PromptTuningError(
            f"the training data is a stream and max_steps is {args.max_steps}; a stream has no length to count "
            "epochs by: give max_steps, 1 or more."
        )
    check_direction(args)
    check_layout_name(getattr(args, "layout", "auto"))
    check_row_budget(getattr(args, "max_packed_tokens", None))


def check_devices(model: Any, args: TrainingArguments) -> None:
    """Raise PromptTuningError if Trainer would copy the model to several GPUs of one process."""
    places = set((getattr(model, "hf_device_map", None) or {}).values())  # a model split over GPUs is not copied
    if args.n_gpu > 1 and len(places) < 2:
        raise PromptTuningError(
            f"this process has {args.n_gpu} GPUs, over which Trainer would copy the model (nn.DataParallel). Start a "
            "process for each, with accelerate launch or torchrun, or let it see one (CUDA_VISIBLE_DEVICES)."
        )


def check_noise(model: Any, args: TrainingArguments) -> None:
    """Raise PromptTuningError for NEFTune's noise, if Trainer does not find the backbone's embeddings."""
    backbone = model.get_base_model() if isinstance(model, SoftPrompts) else model
    if args.neftune_noise_alpha is not None and not hasattr(getattr(backbone, "model", None), "get_input_embeddings"):
        raise PromptTuningError(
            f"neftune_noise_alpha is {args.neftune_noise_alpha}, and Trainer looks for the embeddings of a PEFT model "
            f"in its backbone's attribute model, which {type(backbone).__name__} does not have; leave it out."
        )


def check_model(model: Any, args: TrainingArguments, teacher: Any) -> None:
    """Raise PromptTuningError as `check_devices`, and for what a model with a classification head does not take.

    Arguments of a teacher are refused without one, and noise as in `check_noise`.
    """
    check_devices(model, args)
    check_noise(model, args)
    of_teacher = [name for name in OF_TEACHERS if name in getattr(args, "given", ())]
    if teacher is None and of_teacher:
        raise PromptTuningError(
            f"{of_teacher[0]} is given, and no teacher; give one (teacher=Teacher(…)), or leave the argument out."
        )
    if head_task(model) is None:
        return
    if teacher is not None:
        raise PromptTuningError("teacher is given, and a head learns labels; leave it out, or load a language model.")
    check_layout(model.get_base_model() if isinstance(model, SoftPrompts) else model, getattr(args, "layout", "auto"))


def kind_of(callback: Any) -> type:
    """Return the class of a callback, which may be given in its place."""
    return callback if isinstance(callback, type) else type(callback)


def check_options(
    args: TrainingArguments, options: Mapping[str, Any], compute_metrics: Any, template: PromptTemplate | None
) -> None:
    """Raise PromptTuningError for an argument of `Trainer`'s that this trainer does not support."""
    refused = {
        "compute_loss_func": (
            options.get("compute_loss_func"),
            "the loss is that of the labelled tokens; override compute_loss, or use transformers' Trainer",
        ),
        "batch_eval_metrics": (
            args.batch_eval_metrics,
            "compute_metrics is given all rows at once, as label scores or texts; leave it out",
        ),
        "eval_do_concat_batches=False": (
            not args.eval_do_concat_batches,
            "compute_metrics is given all rows at once; leave it out",
        ),
        "eval_use_gather_object": (
            args.eval_use_gather_object,
            "what it gathers are tensors, of which Accelerate would lose some; leave it out",
        ),
        "preprocess_logits_for_metrics": (
            template is not None and options.get("preprocess_logits_for_metrics"),
            "with a template metrics are of label scores or texts; leave it out, or give rows of token ids",
        ),
    }
    for name, (asked, why) in refused.items():
        if asked:
            raise PromptTuningError(f"{name} is given, and this trainer does without: {why}.")
    if args.label_names not in (None, ["labels"]):
        raise PromptTuningError(f"label_names is {args.label_names}; labels are in the column 'labels': leave it out.")
    writes = template is not None and not template.is_classification and not isinstance(template, HeadTemplate)
    if compute_metrics is not None and writes and not getattr(args, "predict_with_generate", True):
        raise PromptTuningError(
            "compute_metrics is given and predict_with_generate is False, so there are no texts for it; leave one out."
        )


def warn_of_template(model: SoftPrompts, name: str, template: PromptTemplate | None) -> None:
    """Warn if the given template replaces a different template of the prompt `name` of a model."""
    own = model.prompt_info[name].template
    if own is not None and template is not None and parts(own) != parts(template):
        before, after = (" + ".join(map(repr, sources_of(each))) for each in (own, template))
        change = f"with the source {before}, is replaced by the one that the trainer is given, {after}"
        which = "The prompt's template" if len(model.prompt_info) == 1 else f"The template of the prompt {name!r}"
        logger.warning(f"{which}, {change}.")


def parts(template: PromptTemplate) -> tuple[Any, ...]:
    """Return the parts of a template except its label words, which may come from the data."""
    return *sources_of(template), template.target, template.label_column


def check_trains(model: Any, names: Sequence[str]) -> None:
    """Raise PromptTuningError if a prompt was loaded without `is_trainable=True`."""
    for name in names:
        if not model.prompt_encoder[name].embedding.weight.requires_grad:
            raise PromptTuningError(
                f"the prompt {name!r} does not train: it was loaded without is_trainable=True. Load it with that, or "
                f"call model.set_requires_grad({name!r})."
            )


def choose_template(
    template: PromptTemplate | None, model: nn.Module, config: Any, tokenizer: Any, train: Any, evaluation: Any
) -> PromptTemplate | HeadTemplate | None:
    """Return the template for the data: the given one, or the prompt's; None if all data are token ids.

    The prompt is the model's, or the one that `config` starts from.

    Raise PromptTuningError if the data is text and there is no tokenizer, or the template is for another kind of
    backbone.
    """
    template = head_template(template, head_task(model))
    own = _own_template(model, config)
    if isinstance(model, SoftPrompts) and own is not None:
        warn_of_template(model, model.active_adapter, template)
    chosen = template if template is not None else own
    if chosen is None or tokenizer is not None:
        return with_own_chat_template(with_label_words(chosen, train, evaluation), tokenizer)
    data = [rows for rows in (train, evaluation) if rows is not None]
    if template is not None or not data or any(text_rows(rows, chosen) is not None for rows in data):
        raise PromptTuningError("processing_class is not given; give the backbone's tokenizer.")
    return None


def _own_template(model: nn.Module, config: Any) -> Any:
    """Return the template of the model's prompt, or of the one that a new prompt starts from; None without one."""
    if isinstance(model, SoftPrompts):
        return model.info.template
    info = saved_info(config) if isinstance(config, PromptTuningConfig) else None
    return None if info is None else info.template


def head_task(model: nn.Module) -> str | None:
    """Return SEQ_CLS, TOKEN_CLS or QUESTION_ANS for a model, or a backbone, with such a head; None for a writer.

    Raise PromptTuningError for a base model.
    """
    backbone = model.get_base_model() if isinstance(model, SoftPrompts) else model
    task = classification_task(backbone) if isinstance(backbone, PreTrainedModel) else None
    if task is not None:
        return task
    check_writes_text(model)
    return None


def collator(model: nn.Module, tokenizer: Any) -> DataCollatorForPromptTuning:
    """Return the default collator of a run: of a language model, or of a head's task."""
    task_type = head_task(model)
    if task_type is None:
        return DataCollatorForPromptTuning(tokenizer)
    if task_type == QUESTION_ANS:
        return DataCollatorForAnswers(tokenizer)
    return DataCollatorForHeads(tokenizer, tags=task_type == TOKEN_CLS)


def prompt_model(
    model: nn.Module,
    config: PromptTuningConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: PromptTemplate | None = None,
    args: TrainingArguments | None = None,
    train_dataset: Any = None,
    teacher: Any = None,
) -> SoftPrompts:
    """Return the model with its prompt. A plain backbone gets a prompt from the config, and is not frozen yet.

    The prompt's vectors are drawn after `set_seed(args.seed)`. `train_dataset` is for a prompt that starts from rows,
    `teacher` for one that starts from a teacher's text. Raise PromptTuningError if a plain backbone has no config, or
    the prompt cannot be made.
    """
    if not isinstance(model, SoftPrompts):
        if config is None or args is None:
            raise PromptTuningError(
                f"model is a {type(model).__name__}; give one from get_prompt_tuning_model, "
                "or a transformers backbone together with prompt_config."
            )
        set_seed(args.seed)
        options = {"frozen": False, "train_dataset": train_dataset}
        model = get_prompt_tuning_model(model, started_by(teacher, config), tokenizer, template, **options)
    return model


def warn_of_starts(args: TrainingArguments, model: SoftPrompts, trained: Sequence[str]) -> None:
    """Warn if the recipe is for prompts that start from training rows, and one of those that train started otherwise.

    A prompt that goes on from such a prompt has rows in it, too.
    """
    name = getattr(args, "recipe", None)
    if name not in RECIPES or RECIPES[name].prompt.get("prompt_tuning_init") != PromptTuningInit.EXAMPLES:
        return
    for prompt in trained:
        start = model.prompt_info[prompt].initialization
        if private_start(start) != PromptTuningInit.EXAMPLES:
            logger.warning(
                "The recipe %s is for a prompt that starts from training rows, and %r started from %s; give "
                'PromptTuningConfig(prompt_tuning_init="EXAMPLES") (--prompt_tuning_init), or another recipe.',
                *(name, prompt, start.get("prompt_tuning_init", "what is not recorded")),
            )


def all_callbacks(callbacks: Sequence[Any] | None, args: TrainingArguments) -> list[Any]:
    """Return the caller's callbacks, those that arguments ask for, and a `DivergenceCallback` if there is none."""
    callbacks = list(callbacks or [])
    if getattr(args, "average_last", 0.0):
        callbacks.append(PromptAveragingCallback(args.average_last))
    if getattr(args, "early_stopping_patience", None):
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    if not any(issubclass(kind_of(callback), DivergenceCallback) for callback in callbacks):
        callbacks.append(DivergenceCallback())
    return callbacks


def leave_loss_to_the_model(trainer: Trainer) -> None:
    """Let the model's `forward` smooth the labels, and divide by `num_items_in_batch`, whatever the backbone's does.

    The label of the first token counts, because the prompt's last vector predicts it.
    """
    trainer.model_accepts_loss_kwargs = True
    trainer._loss_shifts_labels = False
    trainer.label_smoother = None
    trainer.label_names = ["labels"]
    trainer.compute_loss_func = trainer.head_loss
    if trainer.rows.tokenizer is not None:
        # Keep only the columns that the collator reads. Rows of token ids keep more (a sampler may need `length`).
        trainer._signature_columns = ["input_ids", "attention_mask", "labels", "label"]
        trainer._signature_columns += [PICTURES, *TYPES] if trainer.rows.sees else []
        trainer._signature_columns += trainer.rows.columns.made
    if trainer.teaching is not None:
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += trainer.teaching.columns
