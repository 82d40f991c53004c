"""What a prompt's vectors do to rows with pictures, read with the backbone's processor."""

import json

import pytest
import torch

from hf_prompt_tuning import PromptTuningConfig, get_prompt_tuning_model, inspect_prompt
from hf_prompt_tuning.cli.inspect import main
from hf_prompt_tuning.data.collator import DataCollatorForPromptTuning
from hf_prompt_tuning.data.encoding import from_list
from hf_prompt_tuning.models.scoring import rank_labels
from tests.shared.picture_rows import LABELS, ROWS
from tests.shared.tiny_processors import seeing_model, tiny_processor

KINDS = ["llava", "idefics3", "qwen2_5_vl", "gemma3"]


def seeing_prompt(name, processor):
    config = PromptTuningConfig(num_virtual_tokens=3)
    return get_prompt_tuning_model(seeing_model(name, processor), config, processor.tokenizer, LABELS)


def encoded_rows(model, processor):
    return list(model.row_encoder(processor).encode_dataset(from_list(ROWS, "given"), "given"))


def quality_of(model, processor):
    """Loss and accuracy, row by row."""
    encoder, collate, losses, right = model.row_encoder(processor), DataCollatorForPromptTuning(processor), [], 0
    for encoded in encoded_rows(model, processor):
        batch = collate([encoded])
        gold, tokens = batch.pop("label").item(), len(encoder.label_token_ids[encoded["label"]])
        (scores,) = rank_labels(model, batch, encoder.label_token_ids, False)
        losses.append((-scores[gold].item(), tokens))
        right += int(scores.argmax()) == gold
    return sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses), right / len(ROWS)


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_seen(name):
    """A text without queries looks at all tokens alike, those of its picture among them."""
    processor = tiny_processor(name)
    model = seeing_prompt(name, processor).eval()
    for part, weight in model.base_model.named_parameters():
        if "q_proj" in part and "vision" not in part:
            weight.data.zero_()
    (found,) = inspect_prompt(model, processor, ROWS).prompts
    assert found.notes == {} and found.rows == found.labelled_rows == len(ROWS)
    loss, accuracy = quality_of(model, processor)
    assert found.loss == pytest.approx(loss, rel=1e-5) and found.accuracy == accuracy
    if name in ("llava", "idefics3"):  # Gemma's tokens of a picture see each other, and Qwen's have biases
        lengths = [len(row["input_ids"]) for row in encoded_rows(model, processor)]
        expected = sum(sum(1 / (3 + t + 1) for t in range(length)) / length for length in lengths) / len(ROWS)
        assert [p.attention for p in found.positions] == pytest.approx([expected] * 3, rel=1e-4)


def test_another_picture_changes_what_is_found():
    processor = tiny_processor("llava")
    model = seeing_prompt("llava", processor)
    first, _, second = ROWS
    found = [
        inspect_prompt(model, processor, [first | {"image": row["image"]}]).prompts[0].positions[0].attention
        for row in (first, second, first)
    ]
    assert found[0] == found[2] != found[1]


def test_the_command_reads_files_of_pictures(tmp_path):
    processor = tiny_processor("llava")
    model = seeing_prompt("llava", processor)
    model.base_model.save_pretrained(tmp_path / "backbone")
    processor.save_pretrained(tmp_path / "backbone")
    model.info.data["processor"] = "backbone"  # as training with one records it
    model.save_pretrained(tmp_path / "prompt")
    lines = []
    for number, row in enumerate(ROWS):
        name = "" if row["image"] is None else f"{number}.png"
        if name:
            row["image"].save(tmp_path / name)
        lines.append(json.dumps(row | {"image": name}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path / "prompt"), "--backbone", str(tmp_path / "backbone")]
    arguments += ["--data", str(tmp_path / "rows.jsonl"), "--json", str(tmp_path / "found.json")]
    main([*arguments, "--image_columns", "image"])
    (found,) = json.loads((tmp_path / "found.json").read_text())["prompts"]
    loss, accuracy = quality_of(model.eval(), processor)
    assert found["loss"] == pytest.approx(loss, rel=1e-5) and found["accuracy"] == accuracy
    assert all(torch.tensor(found["attention_by_layer"]).sum(1) < 1)
