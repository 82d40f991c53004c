"""Rows of questions and contexts, with a tokenizer and backbones for them, and short runs."""

from tokenizers.processors import TemplateProcessing
from transformers import set_seed

from hf_prompt_tuning import AnswerTemplate, PromptTuningArguments, PromptTuningConfig, PromptTuningTrainer
from tests.shared.classifiers import tiny_classifier
from tests.shared.tiny_models import make_tokenizer

LONG = (
    "the parcel never came and nobody answers , so why is my line down again , third time this week ! "
    "a small dog and a big cat live in the old town , thank you for the quick help , great film"
)
ROWS = [
    ("what never came", LONG, "the parcel", 0),
    ("who is big", LONG, "a big cat", LONG.index("a big cat")),
    ("who answers", "nobody answers", "nobody", 0),
    ("what is old", "a small dog and a big cat in the old town", "town", 37),
    ("what is great", "great film", "film", 6),
]
TEMPLATE = AnswerTemplate(max_length=40, stride=8, longest_answer=6)


def answer_tokenizer(kind="llama"):
    """A tokenizer that writes `<s> question </s> context </s>`, with types 0 and 1."""
    tokenizer = make_tokenizer(kind)
    special = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B:1 </s>:1", "special_tokens": [("<s>", 1), ("</s>", 2)]}
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**special)
    return tokenizer


def answer_rows(without=()):
    """Five rows in SQuAD's columns; those `without` an answer have empty lists."""
    rows = []
    for i, (question, context, text, start) in enumerate(ROWS):
        answers = {"text": [], "answer_start": []} if i in without else {"text": [text], "answer_start": [start]}
        rows.append({"question": question, "context": context, "answers": answers})
    return rows


def answer_backbone(name="bert", **changes):
    return tiny_classifier(name, "QUESTION_ANS", **{"max_position_embeddings": 128, **changes})


def answer_trainer(
    folder, name="bert", rows=None, eval_rows=None, backbone=None, side="right", prompt=None, own=None, **values
):
    """A trainer of rows with answers, its arguments being `values`."""
    set_seed(1)
    tokenizer = answer_tokenizer()
    tokenizer.padding_side = side
    quiet = dict(use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", logging_steps=1)
    given = {"template": TEMPLATE} | (own or {})
    return PromptTuningTrainer(
        answer_backbone(name) if backbone is None else backbone,
        PromptTuningArguments(str(folder), **quiet | values),
        train_dataset=answer_rows() if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        prompt_config=PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM", **prompt or {}),
        **given,
    )
