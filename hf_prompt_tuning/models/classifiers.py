"""Tell which backbones have a classification head that can be read exactly behind a prompt, and copy their heads.

A head is all that a model for classification has beside its base model: `classifier` in BERT, `pooler` and
`classifier` in DeBERTa, `score` in Llama. PEFT would train a copy of it inside the backbone, which all other users of
the backbone would then get. So each prompt holds its own copy, and a call puts it into a stand-in of the backbone.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from ..data.backbone_classes import classes_of_backbone, classes_of_prompt
from ..data.class_names import MULTI, REGRESSION
from ..errors import PromptLoadError, PromptMismatchError, PromptTuningError
from ..layouts.traits import has_per_layer_inputs, with_own_positions
from ..prompts.files import SavedPrompt
from .decoded_texts import reads_decoder

logger = logging.getLogger(__name__)

SEQ_CLS, TOKEN_CLS, QUESTION_ANS = "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"
CLASS_NAMES = {
    SEQ_CLS: frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()),
    TOKEN_CLS: frozenset(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()),
    QUESTION_ANS: frozenset(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()),
}
POOLER_NUMBERS, POOLER_TOLERANCE = 8, 0.02
"""How many numbers of a pooler are compared, and how far they may differ (in other dtypes), by the largest."""
GENERIC = GenericForSequenceClassification, GenericForTokenClassification, GenericForQuestionAnswering
"""The heads of most decoders (Llama, Qwen, Gemma, …): one class for all of them."""
ENCODERS = (
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet"),
    *("deberta", "deberta-v2", "modernbert"),
)
CHECKED = {
    SEQ_CLS: (*ENCODERS, "gpt2", "t5", "mt5", "umt5", "bart"),
    TOKEN_CLS: (*ENCODERS, "gpt2", "t5", "mt5", "umt5"),
    QUESTION_ANS: (*ENCODERS, "gpt2", "bart"),
}
"""Models with a class of their own whose head reads nothing but the base model's hidden states: those of the text."""
ANSWER = {0: "start", 1: "end"}
"""What a head for answers has a score of, for each token."""


def classification_task(backbone: PreTrainedModel) -> str | None:
    """Return SEQ_CLS, TOKEN_CLS or QUESTION_ANS for a model with such a head, None for another model."""
    names = {kind.__name__ for kind in type(backbone).__mro__}  # FSDP2 puts a class of its own first
    return next((task for task, classes in CLASS_NAMES.items() if names & classes), None)


def check_head_reads_text(backbone: PreTrainedModel, task_type: str) -> None:
    """Raise PromptTuningError if the head of a backbone is not known to read exactly the same behind a prompt."""
    name, kind = type(backbone).__name__, backbone.config.model_type
    if backbone.config.is_encoder_decoder and kind not in CHECKED[task_type]:
        raise PromptTuningError(
            f"the backbone is a {name}, an encoder-decoder whose head is not known to read the same behind a prompt "
            f"in the encoder; load one of {', '.join(CHECKED[task_type])} with this Auto class, or the language model "
            "with AutoModelForSeq2SeqLM."
        )
    if not (isinstance(backbone, GENERIC) and is_plain(backbone)) and kind not in CHECKED[task_type]:
        raise PromptTuningError(
            f"the backbone is a {name} (model_type {kind!r}), whose head is not known to read the same behind a "
            f"prompt; use one of {', '.join(CHECKED[task_type])}, or a decoder with transformers' generic head."
        )
    parts = head_parts(backbone)
    if not parts:
        raise PromptTuningError(
            f"the backbone is a {name} without a classification head; load it with its Auto class."
        )
    if task_type == QUESTION_ANS and (count := outputs_of(parts)) != len(ANSWER):
        raise PromptTuningError(
            f"the head of the {name} gives {count} numbers for a token, and an answer's start and end are 2; load the "
            "backbone with num_labels=2."
        )
    for part, module in parts.items():
        for parameter, weight in module.named_parameters():
            if not weight.is_floating_point() or weight.is_meta:
                where = "not in memory" if weight.is_meta else f"of dtype {weight.dtype}"
                raise PromptTuningError(
                    f"the weight {part}.{parameter} of the backbone's head is {where}, and a head trains in fp32; "
                    "load the backbone with its head whole (llm_int8_skip_modules names what is not quantized, "
                    "device_map what is in memory)."
                )


def is_plain(backbone: PreTrainedModel) -> bool:
    """Tell whether embeddings of tokens are all that a decoder reads: no images, and no inputs of single layers."""
    return not has_per_layer_inputs(backbone) and with_own_positions(backbone) is None


def peft_reads_alike(backbone: PreTrainedModel, behind_first_tokens: bool) -> bool:
    """Tell whether PEFT gives a saved head the same hidden states of an unpadded row.

    An encoder's head, or its pooler, reads a row's first column, which to PEFT is the prompt's first vector. It is the
    text's first token only if the prompt stands behind that.
    """
    task = classification_task(backbone)
    if task is not None and reads_decoder(backbone):
        return False  # PEFT gives the decoder nothing to read
    if behind_first_tokens or task in (TOKEN_CLS, QUESTION_ANS):
        return True
    if task is None:
        return getattr(backbone, "pooler", None) is None
    return isinstance(backbone, GenericForSequenceClassification) or backbone.config.model_type == "gpt2"


def head_parts(backbone: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules of a backbone's classification head by name: those with weights beside the base model."""
    base = backbone.base_model
    children = backbone._modules.items()
    return {
        name: part
        for name, part in children
        if part is not None and part is not base and any(True for _ in part.parameters())
    }


def copied_head(backbone: PreTrainedModel) -> nn.ModuleDict:
    """Return a copy in fp32 of the modules of a backbone's head, by name."""
    copies = {}
    for name, part in head_parts(backbone).items():
        part = remove_hook_from_module(copy.deepcopy(part), recurse=True)
        copies[name] = part.to(torch.float32)
    return nn.ModuleDict(copies)


def outputs_of(parts: Mapping[str, nn.Module]) -> int | None:
    """Return how many numbers the last layer of a head gives for a token, or None if that cannot be told."""
    layers = [layer for part in parts.values() for layer in part.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else None


def description(backbone: PreTrainedModel, task_type: str, is_trained: bool) -> dict[str, Any]:
    """Return what `prompt_tuning.json` says of a head: the labels, the problem type, and whether it trains.

    Of a head that reads the base model's pooler, some of the pooler's numbers are among it. The labels of a head for
    answers are the two that it has scores of, whatever the backbone's config says.
    """
    config = backbone.config
    pooler = pooler_sample(backbone) if task_type == SEQ_CLS else None  # other heads read none
    labels = ANSWER if task_type == QUESTION_ANS else config.id2label
    return ({} if pooler is None else {"pooler": pooler}) | {
        "id2label": {str(index): str(label) for index, label in sorted(labels.items())},
        "problem_type": None if task_type == QUESTION_ANS else getattr(config, "problem_type", None),
        "is_trained": is_trained,
    }


def pooler_sample(backbone: PreTrainedModel) -> list[float] | None:
    """Return some numbers of a base model's pooler; None if it has none, or its weights are quantized.

    The pooler belongs to the base model, so it is not saved with a prompt. transformers draws it anew in each load of
    files that lack it, which a comparison of embeddings does not show.
    """
    weight = next(iter(getattr(getattr(backbone.base_model, "pooler", None), "parameters", list)()), None)
    if weight is None or not weight.is_floating_point() or weight.is_meta:
        return None
    row = weight[len(weight) // 2].detach().flatten()[:POOLER_NUMBERS]
    return row.float().cpu().tolist()


def is_other_pooler(there: list[float] | None, backbone: PreTrainedModel) -> bool:
    """Tell whether a backbone has another pooler than one of which some numbers were recorded."""
    here = pooler_sample(backbone)
    if there is None or here is None:
        return False
    # Other dtypes round the numbers. A pooler that was drawn anew has others.
    tolerance = POOLER_TOLERANCE * max(map(abs, there), default=0.0)
    return len(there) != len(here) or any(abs(a - b) > tolerance for a, b in zip(there, here, strict=True))


def _check_pooler(saved: SavedPrompt, backbone: PreTrainedModel, ignore_mismatch: bool) -> None:
    """Raise PromptMismatchError if a backbone has another pooler than the one that a saved head was trained behind."""
    if not is_other_pooler(None if saved.info is None else saved.info.classifier.get("pooler"), backbone):
        return
    message = (
        f"the backbone's pooler, which its head reads, has other weights than the one that {saved.source} was trained "
        "behind. If the backbone's files lack it, transformers draws it anew in each load: load the backbone from a "
        "folder where it was saved once with its pooler"
    )
    if not ignore_mismatch:
        raise PromptMismatchError(f"{message}, or give ignore_mismatch=True.")
    logger.warning(f"{message}.")


def label_options(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `from_pretrained` with which a backbone has the head that is described."""
    id2label = {int(index): label for index, label in description["id2label"].items()}
    options = {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}
    # The files' own head may have another size. The saved one takes its place.
    return options | {"problem_type": description.get("problem_type"), "ignore_mismatched_sizes": True}


def fill_head(head: nn.ModuleDict, saved: SavedPrompt) -> None:
    """Replace the weights of a prompt's head by the saved ones. Raise PromptLoadError if they are of another head.

    A folder that PEFT wrote may hold none; then the head stays the backbone's.
    """
    if saved.classifier is None:
        logger.warning(
            f"{saved.source} holds no classification head, so the backbone's own is used. If it is a new one (random "
            "numbers), load the backbone that has the head that the prompt was trained with."
        )
        return
    check_same_head(head, saved)
    head.load_state_dict(saved.classifier)


def check_same_head(head: nn.ModuleDict, saved: SavedPrompt) -> None:
    """Raise PromptLoadError if a saved head has other weights, or other shapes, than this one."""
    if saved.classifier is not None and (different := _first_difference(head.state_dict(), saved.classifier)):
        raise PromptLoadError(
            f"{saved.source} holds another classification head than the backbone's: {different}. Load the backbone "
            "with the model class and the number of labels (num_labels) that the prompt was trained with."
        )


def start_head(
    head: nn.ModuleDict, saved: SavedPrompt, backbone: PreTrainedModel, classes: Sequence[str] | None
) -> dict[str, str] | None:
    """Let a new prompt's head start from that of the prompt from which its vectors start, if it is for these labels.

    Otherwise it stays the backbone's, with a warning if the other prompt has a head. `classes` are those of the data,
    if they are known.

    Return the names of the labels that the head now has (`id2label`); None if it stays, or they are not recorded.
    """
    if saved.classifier is None:
        return None
    try:
        check_labels_match(saved, backbone, classification_task(backbone), ignore_mismatch=False)
        _check_classes(saved, backbone, classes)
    except PromptMismatchError as error:
        logger.warning(f"The head does not start from that of init_prompt, but from the backbone's: {error}")
        return None
    fill_head(head, saved)
    return None if saved.info is None else saved.info.classifier.get("id2label")


def _check_classes(saved: SavedPrompt, backbone: PreTrainedModel, classes: Sequence[str] | None) -> None:
    """Raise PromptMismatchError if a saved head has other classes than the data, where the backbone names none."""
    there = None if saved.info is None else classes_of_prompt(saved.info.classifier)
    if not there or classes is None or classes_of_backbone(backbone.config) is not None:
        return
    if not set(classes) <= set(there):
        raise PromptMismatchError(
            f"{saved.source} has the classes {', '.join(map(repr, there))}, and the template's are "
            f"{', '.join(map(repr, classes))}."
        )


def _first_difference(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> str:
    for name in sorted(here.keys() | there.keys()):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (there, here)]
        if shapes[0] != shapes[1]:
            return f"{name} is {shapes[0] or 'missing'} there and {shapes[1] or 'missing'} here"
    return ""


def check_labels_match(saved: SavedPrompt, backbone: PreTrainedModel, task_type: str, ignore_mismatch: bool) -> None:
    """Raise PromptMismatchError if a saved head has other labels than the backbone, or was behind another pooler.

    Default names (LABEL_0) match all labels.

    With `ignore_mismatch`, other names only give a warning. The number of labels must agree in any case.
    """
    _check_pooler(saved, backbone, ignore_mismatch)
    there = {} if saved.info is None else saved.info.classifier.get("id2label", {})
    if not there:
        return
    here = description(backbone, task_type, True)["id2label"]
    if len(there) != len(here):
        raise PromptMismatchError(
            f"{saved.source} has {len(there)} labels, and the backbone's head {len(here)}; load the backbone with "
            f"num_labels={len(there)}, or let load_prompt load it."
        )
    default = {index: f"LABEL_{index}" for index in here}
    if there == here or default in (there, here):
        return
    index = next(index for index in there if there[index] != here.get(index))
    message = (
        f"{saved.source} calls label {index} {there[index]!r:.40}, and the backbone's config {here.get(index)!r:.40}; "
        "load the backbone with the prompt's id2label and label2id"
    )
    if not ignore_mismatch:
        raise PromptMismatchError(f"{message}, or give ignore_mismatch=True.")
    logger.warning(f"{message}.")


def tell_of_names(saved: SavedPrompt, backbone: PreTrainedModel) -> None:
    """Warn if a saved head names its labels, or needs its problem type, and the config of the backbone has neither.

    The config stays as it is, because others use the backbone, and transformers' pipelines read it.
    """
    told, config = {} if saved.info is None else saved.info.classifier, backbone.config
    names, kind = told.get("id2label", {}), told.get("problem_type")
    default = {str(index): f"LABEL_{index}" for index in range(len(names))}
    here = {str(index): str(label) for index, label in config.id2label.items()}
    decides = kind in (REGRESSION, MULTI) and getattr(config, "problem_type", None) is None
    if decides or (names != default and here == default):
        logger.warning(
            f"{saved.source} has the labels {', '.join(names.values()):.80} and the problem type {kind}, and the "
            "backbone's config does not say so. transformers' pipelines read the config: let load_prompt load the "
            "backbone, or load it with id2label, label2id and problem_type."
        )
