"""Rows with two texts, and tokenizers that join them as those of published models do."""

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_prompt_tuning import ClassTemplate
from tests.shared.tiny_models import make_tokenizer

WITH_TYPES = ["input_ids", "token_type_ids", "attention_mask"]
"""What a tokenizer gives whose model reads token types."""
WITHOUT_TYPES = ["input_ids", "attention_mask"]
JOINS = {
    "bert": ("<s> $A </s>", "<s>:0 $A:0 </s>:0 $B:1 </s>:1", WITH_TYPES),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>", WITHOUT_TYPES),
    "t5": ("$A </s>", "$A </s> $B </s>", WITHOUT_TYPES),
    "llama": ("<s> $A", "<s> $A <s> $B", WITHOUT_TYPES),
    "glued": ("<s> $A", "<s> $A $B", WITHOUT_TYPES),
    "types alone": ("<s> $A", "<s> $A:0 $B:1", WITH_TYPES),
}
PAIRS = [
    ("the parcel never came", "why is my line down again"),
    ("great film", "a small dog and a big cat in the old town of night and day"),
    ("thank you for the quick help", "nobody answers"),
    ("great", "awful"),
    ("a small dog and a big cat in the old town", "a dog"),
]
LABELS = ["yes", "no", "maybe", "no", "yes"]
PAIR = ClassTemplate("{premise}", "label", pair="{hypothesis}")


def pair_rows():
    return [{"premise": a, "hypothesis": b, "label": label} for (a, b), label in zip(PAIRS, LABELS, strict=True)]


def pair_tokenizer(kind: str = "bert", padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer that joins two texts as a model of that kind has them: <s> has the id 1, and </s> the id 2."""
    single, pair, names = JOINS[kind]
    tokenizer = make_tokenizer("llama")
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    tokenizer.model_input_names, tokenizer.padding_side = names, padding_side
    return tokenizer


def ids_by_hand(kind: str, text: str, pair: str) -> tuple[list[int], list[int]]:
    """The token ids of two texts, put together by hand, and the token types where they differ from 0."""
    tokenizer = make_tokenizer("llama")
    a, b = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, pair))
    if kind == "bert":
        return [1, *a, 2, *b, 2], [0] * (len(a) + 2) + [1] * (len(b) + 1)
    if kind == "types alone":
        return [1, *a, *b], [0] * (len(a) + 1) + [1] * len(b)
    ids = {"roberta": [1, *a, 2, 2, *b, 2], "t5": [*a, 2, *b, 2], "llama": [1, *a, 1, *b]}[kind]
    return ids, []
