"""transformers' own trainers train a prompt-tuning model that they know nothing of, as right as ours does."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_prompt_tuning import PromptTuningError, load_prompt, strip_virtual_tokens
from tests.shared.foreign_trainers import COMMON, as_tensors, by_hand, ours, rows_of, targets_of
from tests.shared.reference import reference_loss, tiny_prompt_model
from tests.shared.trainers import losses


def vanilla(folder, tokenizer, model, data, collator=None, trainer=Trainer, arguments=TrainingArguments, **values):
    options = {
        name: values.pop(name) for name in ("compute_metrics", "preprocess_logits_for_metrics") if name in values
    }
    return trainer(
        model=model,
        args=arguments(output_dir=str(folder), **COMMON | {"dataloader_pin_memory": False} | values),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator or DataCollatorForSeq2Seq(tokenizer),
        **options,
    )


def seq2seq_loss(model, rows):
    """As `reference_loss`, for an encoder-decoder."""
    backbone, total, count = model.get_base_model(), 0.0, 0
    for ids, labels in rows:
        embeds = torch.cat([model.prompt[None], backbone.get_input_embeddings()(ids[None])], dim=1)
        logits = backbone(inputs_embeds=embeds, labels=labels[None].clone()).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "t5"])
def test_training_is_the_hand_written_loop_and_ours(name, side, tmp_path, tokenizer):
    """Ragged rows in accumulated batches: a mean of batch means, or a wrong count, would differ."""
    seq2seq = name == "t5"
    tokenizer.padding_side = side
    data = targets_of(rows_of()) if seq2seq else rows_of()
    kind = {"trainer": Seq2SeqTrainer, "arguments": Seq2SeqTrainingArguments} if seq2seq else {}
    trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model(name), data, **kind)
    trainer.train()
    expected, prompt = by_hand(tiny_prompt_model(name), data, seq2seq_loss if seq2seq else reference_loss)
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trainer.model.prompt.detach(), prompt, rtol=1e-3, atol=1e-4)
    own = ours(tmp_path, tokenizer, tiny_prompt_model(name), data)
    assert losses(own) == pytest.approx(losses(trainer), rel=1e-4)
    torch.testing.assert_close(own.model.prompt, trainer.model.prompt, rtol=1e-3, atol=1e-4)
    assert trainer.model.prompt.requires_grad and not any(
        p.requires_grad for p in trainer.model.base_model.parameters()
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_metrics_align_with_labels(side, tmp_path, tokenizer):
    tokenizer.padding_side = side
    seen = {}

    def metrics(prediction):
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        scored = prediction.label_ids[:, 1:] != -100
        right = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": float(right[scored].mean())}

    model, data = tiny_prompt_model("llama"), rows_of()
    trainer = vanilla(
        tmp_path,
        tokenizer,
        model,
        data,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=strip_virtual_tokens,
        per_device_eval_batch_size=5,
    )
    # Something to be right about: the tokens that the model itself would say.
    for _ in range(2):
        found = trainer.evaluate()
        assert seen["logits"].shape == (12, 12, 400) and seen["labels"].shape == (12, 12)
        right = total = 0
        for (ids, labels), logits, padded in zip(as_tensors(data), seen["logits"], seen["labels"], strict=True):
            with torch.no_grad():
                alone = model(input_ids=ids[None]).logits[0, 5:]
            columns = np.arange(len(ids)) + (0 if side == "right" else (padded_width(padded) - len(ids)))
            np.testing.assert_allclose(logits[columns], alone, rtol=1e-4, atol=1e-4)
            keep = labels[1:] != -100
            right += int((alone[:-1].argmax(-1) == labels[1:])[keep].sum())
            total += int(keep.sum())
        assert found["eval_accuracy"] == pytest.approx(right / total)
        data = said_by(model, data)
        trainer.eval_dataset = data
    assert found["eval_accuracy"] > 0.3
    assert trainer.predict(data).metrics["test_accuracy"] == pytest.approx(found["eval_accuracy"])


def padded_width(labels):
    """How wide a row's batch was: Trainer pads gathered rows further with -100, at the right."""
    return 1 + int(np.flatnonzero(labels != -100)[-1])


def said_by(model, data):
    """The same rows, half of whose labels are what the model predicts there."""
    rows = []
    for ids, labels in as_tensors(data):
        with torch.no_grad():
            said = model(input_ids=ids[None]).logits[0, 5:-1].argmax(-1)
        mixed = torch.where((labels[1:] != -100) & (torch.arange(len(said)) % 2 == 1), said, labels[1:])
        rows.append({"input_ids": ids.tolist(), "labels": [-100, *mixed.tolist()]})
    return Dataset.from_list(rows)


class TestStripping:
    def test_every_tensor_of_a_tuple_is_cut(self):
        logits, hidden = torch.arange(24.0).view(1, 6, 4), torch.arange(12.0).view(1, 6, 2)
        attention, labels = torch.zeros(1, 6, 6, 6), torch.zeros(1, 4, dtype=torch.long)
        cut = strip_virtual_tokens((logits, (hidden, hidden), (attention,)), labels)
        assert torch.equal(cut[0], logits[:, 2:]) and torch.equal(cut[1][1], hidden[:, 2:])
        assert cut[2][0] is attention
        assert torch.equal(strip_virtual_tokens(logits, labels), logits[:, 2:])

    def test_decoder_logits_and_generated_ids_have_none(self):
        logits, encoded, labels = torch.zeros(2, 3, 5), torch.zeros(2, 9, 4), torch.zeros(2, 3)
        found = strip_virtual_tokens((logits, encoded), labels)
        assert found[0].shape == (2, 3, 5) and found[1].shape == (2, 9, 4)
        ids = torch.zeros(2, 7)
        assert strip_virtual_tokens(ids, labels) is ids

    def test_without_labels_nothing_is_guessed(self):
        with pytest.raises(PromptTuningError, match="got no labels"):
            strip_virtual_tokens(torch.zeros(2, 3, 5), None)
        with pytest.raises(PromptTuningError, match="got 3 columns of logits for 4 of labels"):
            strip_virtual_tokens(torch.zeros(2, 3, 5), torch.zeros(2, 4))


def test_seq2seq_trainer_generates_behind_the_prompt(tmp_path, tokenizer):
    model, data = tiny_prompt_model("t5"), rows_of([6, 4, 9])
    trainer = vanilla(
        tmp_path,
        tokenizer,
        model,
        data,
        trainer=Seq2SeqTrainer,
        arguments=Seq2SeqTrainingArguments,
        predict_with_generate=True,
        generation_max_length=7,
        preprocess_logits_for_metrics=strip_virtual_tokens,
    )
    found = trainer.predict(data).predictions
    for (ids, _), row in zip(as_tensors(data), found, strict=True):
        alone = model.generate(input_ids=ids[None], max_length=7)[0]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_a_resumed_run_is_the_whole_one(tmp_path, tokenizer):
    values = {"save_strategy": "steps", "save_steps": 1}
    whole = vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), rows_of(), **values)
    whole.train()
    again = vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), rows_of(), **values)
    again.model.prompt.data.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 6
    assert torch.equal(again.model.prompt, whole.model.prompt)


def test_the_best_prompt_comes_back_and_its_folder_loads(tmp_path, tokenizer):
    class Spoil(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if state.epoch >= 2:
                model.prompt.data.normal_(std=5.0)

    values = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = vanilla(tmp_path / "run", tokenizer, tiny_prompt_model("llama"), rows_of(), **values)
    trainer.add_callback(Spoil())
    trainer.train()
    found = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert min(found) == found[1] and trainer.evaluate()["eval_loss"] == pytest.approx(found[1], rel=1e-5)
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-4"):
        model, _, template = load_prompt(str(folder), backbone=trainer.model.get_base_model())
        assert torch.equal(model.prompt, trainer.model.prompt) and template is None


class TestFirstTokens:
    """Trainer does not count the label of a row's first token where the backbone's own loss shifts labels."""

    def test_it_is_refused(self, tmp_path, tokenizer):
        data = rows_of(first_labelled=True)
        trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), data)
        for act in (trainer.train, trainer.evaluate):
            with pytest.raises(PromptTuningError, match="a row's very first token has a label"):
                act()
        usual = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), data.remove_columns("labels"), usual)
        with pytest.raises(PromptTuningError, match=r"shift_labels = torch\.nn\.functional\.pad\(labels, \(0, 1\)"):
            trainer.train()

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_shift_labels_make_it_count(self, name, tmp_path, tokenizer):
        def collate(rows):
            batch = DataCollatorForSeq2Seq(tokenizer)(rows)
            return batch | {"shift_labels": torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)}

        data = rows_of(first_labelled=True)
        trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model(name), data, collate)
        trainer.train()
        expected, _ = by_hand(tiny_prompt_model(name), data, reference_loss)
        assert losses(trainer) == pytest.approx(expected, rel=1e-4)
        assert losses(ours(tmp_path, tokenizer, tiny_prompt_model(name), data)) == pytest.approx(expected, rel=1e-4)
        # our trainer takes the same collator
        assert losses(ours(tmp_path, tokenizer, tiny_prompt_model(name), data, collate)) == pytest.approx(
            expected, rel=1e-4
        )

    def test_where_it_is_counted_it_counts(self, tmp_path, tokenizer):
        """GPT-2's class has no loss of its own, so Trainer counts every label."""
        data = rows_of(first_labelled=True)
        trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model("gpt2"), data)
        trainer.train()
        expected, _ = by_hand(tiny_prompt_model("gpt2"), data, reference_loss)
        assert losses(trainer) == pytest.approx(expected, rel=1e-4)

    def test_behind_pads_it_is_counted_too(self, tmp_path, tokenizer):
        """At the left only the longest row begins in the first column."""
        tokenizer.padding_side = "left"
        data = rows_of([5, 9], first_labelled=True)
        trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), data, gradient_accumulation_steps=1)
        expected = reference_loss(trainer.model, as_tensors(data)).item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_shift_labels_are_transformers_own(self):
        model = tiny_prompt_model("llama")
        ids, labels = as_tensors(rows_of([6]))[0]
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[None, 1:]
        with torch.no_grad():
            expected = model(input_ids=ids[None], labels=labels[None]).loss
            assert torch.equal(model(input_ids=ids[None], shift_labels=shifted).loss, expected)
            for wrong, message in (
                (shifted[:, 2:], "has 4 columns for 6 tokens; give 6, or 7"),
                (ids[None], "a label in its last column"),
            ):
                with pytest.raises(PromptTuningError, match=message):
                    model(input_ids=ids[None], shift_labels=wrong)

    def test_without_a_count_or_a_prompt_there_is_nothing_to_refuse(self):
        model = tiny_prompt_model("llama")
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            assert model(input_ids=ids, labels=ids).loss.isfinite()
            with model.disable_adapter():
                expected = model.get_base_model()(input_ids=ids, labels=ids, num_items_in_batch=2).loss
                assert model(input_ids=ids, labels=ids, num_items_in_batch=2).loss == pytest.approx(expected)


def test_labels_on_pads_are_refused(tmp_path, tokenizer):
    """Trainer counts them, and nothing predicts them."""
    data = Dataset.from_list([{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": [-100, 6, 0]}] * 2)
    with pytest.raises(PromptTuningError, match="labels are given on pads"):
        vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), data).train()


@pytest.mark.parametrize("options", [{}, {"return_position_ids": False, "return_flash_attn_kwargs": True}])
def test_flattened_batches_are_refused(options, tmp_path, tokenizer):
    collator = DataCollatorWithFlattening(**options)
    with pytest.raises(PromptTuningError, match=r"position_ids are given|packed into a row"):
        vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), rows_of(), collator).train()


def test_label_smoothing_fails_where_logits_have_virtual_tokens(tmp_path, tokenizer):
    """Trainer's smoother compares them with the text's labels; it must not be able to."""
    trainer = vanilla(tmp_path, tokenizer, tiny_prompt_model("llama"), rows_of(), label_smoothing_factor=0.1)
    with pytest.raises(RuntimeError, match="size"):
        trainer.train()
