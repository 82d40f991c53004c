"""Token ids and labels are padded; nothing else happens."""

import pytest
import torch

from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTuningError
from hf_prompt_tuning.data.collator import TAUGHT_ROWS, label_columns, split_teachers

ROWS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "label": 1}, {"input_ids": [8], "labels": [8], "label": 0}]


def test_right(tokenizer):
    batch = DataCollatorForPromptTuning(tokenizer)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["label"].tolist() == [1, 0]


def test_left_and_a_multiple(tokenizer):
    tokenizer.padding_side = "left"
    batch = DataCollatorForPromptTuning(tokenizer, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].tolist() == [[0, 5, 6, 7], [0, 0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 7], [-100, -100, -100, 8]]


def test_no_pad_token_is_needed(tokenizer):
    tokenizer.pad_token = None
    assert DataCollatorForPromptTuning(tokenizer)(ROWS)["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]


def test_a_decoders_labels_are_padded_at_the_right(tokenizer):
    tokenizer.padding_side = "left"
    rows = [{"input_ids": [5, 6, 7], "labels": [1, 2]}, {"input_ids": [8], "labels": [3, 4, 5]}]
    assert DataCollatorForPromptTuning(tokenizer)(rows)["labels"].tolist() == [[1, 2, -100], [3, 4, 5]]


def test_masks_of_rows_padded_before_are_kept(tokenizer):
    rows = [{"input_ids": [0, 5], "attention_mask": [0, 1], "labels": [-100, 5]}, {"input_ids": [6], "labels": [6]}]
    assert torch.equal(DataCollatorForPromptTuning(tokenizer)(rows)["attention_mask"], torch.tensor([[0, 1], [1, 0]]))


@pytest.mark.parametrize("missing", ["input_ids", "labels"])
def test_what_is_missing_is_named(tokenizer, missing):
    with pytest.raises(PromptTuningError, match=f"no '{missing}'"):
        DataCollatorForPromptTuning(tokenizer)([{k: v for k, v in ROWS[0].items() if k != missing}])


def test_the_rows_of_teachers_are_split_off_and_columns_of_others_stay(tokenizer):
    row = ROWS[0] | {f"teacher_{i}_{name}": [i, 5] for i in (0, 10, 2) for name in ("input_ids", "labels")}
    batch = DataCollatorForPromptTuning(tokenizer)([row])
    others = {"teacher_logits": 1, "teacher_of_row": 2, "teacher_0_name": 3}
    own, teachers = split_teachers(batch | others)
    assert own.keys() == {"input_ids", "attention_mask", "labels", "label", *others}
    assert [teacher["input_ids"].tolist() for teacher in teachers] == [[[i, 5]] for i in (0, 2, 10)]
    assert all(teacher.keys() == {"input_ids", "attention_mask", "labels", TAUGHT_ROWS} for teacher in teachers)
    counted = label_columns(batch | {"teacher_soft_labels": torch.zeros(1)})
    assert [column.tolist() for column in counted] == [batch["labels"].tolist(), [[0, 5]], [[2, 5]], [[10, 5]], [[0]]]
