"""Training, evaluation and prediction as a user's script does them."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import TrainerCallback, TrainingArguments

from hf_prompt_tuning import (
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.models.scoring import longest_target
from tests.shared.reference import row_encoder_of, tiny_prompt_model
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import FREE, TEMPLATE, arguments, losses, make


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_training_is_adamw_with_a_linear_schedule_on_the_prompt(name, tmp_path, tokenizers, messages):
    """The Trainer's result against the loop that the PEFT example writes by hand."""
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    trainer = make(
        tmp_path,
        tokenizer,
        messages,
        model=tiny_prompt_model(name),
        eval_rows=messages,
        num_train_epochs=5,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
    )
    before = trainer.evaluate()
    model = tiny_prompt_model(name)
    rows = [trainer.train_dataset[i] for i in range(12)]
    optimizer = torch.optim.AdamW([model.prompt], lr=3e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 15)
    expected = []
    for _ in range(5):
        for start in (0, 4, 8):
            batch = trainer.data_collator(rows[start : start + 4])
            batch.pop("label")
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            expected.append(loss.item())
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trainer.model.prompt, model.prompt, rtol=1e-4, atol=1e-4)
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.1
    assert after["eval_perplexity"] == pytest.approx(math.exp(after["eval_loss"]))
    assert trainer.model.info.metrics["eval_accuracy"] == after["eval_accuracy"]


@pytest.mark.parametrize("template", [TEMPLATE, FREE])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_evaluation_does_not_depend_on_batches_or_padding(template, name, tmp_path, tokenizers, messages):
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    rows = [row | {"answer": row["message"][-9:].strip()} for row in messages]
    results = []
    for side in ("right", "left"):
        for size in (1, 5, 12):
            tokenizer.padding_side = side
            trainer = make(
                tmp_path, tokenizer, None, template, tiny_prompt_model(name), rows, per_device_eval_batch_size=size
            )
            metrics = trainer.evaluate()
            results.append({k: v for k, v in metrics.items() if "time" not in k and "second" not in k})
    tokenizer.padding_side = "right"
    names = ["eval_accuracy", "eval_f1"] if template is TEMPLATE else ["eval_exact_match", "eval_rougeL"]
    assert {"eval_loss", "eval_perplexity", *names} <= set(results[0])
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


def test_accuracy_is_the_share_of_right_labels(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, None, eval_rows=messages)
    output = trainer.predict(messages)
    gold = np.array([int(row["label"]) - 1 for row in messages])
    assert output.predictions.shape == (12, 2)
    assert output.label_ids.tolist() == gold.tolist()
    assert output.metrics["test_accuracy"] == pytest.approx((output.predictions.argmax(1) == gold).mean())
    # the loss is that of the right labels, per token
    sizes = np.array([len(ids) for ids in row_encoder_of(trainer).label_token_ids])
    expected = -output.predictions[np.arange(12), gold].sum() / sizes[gold].sum()
    assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)


def test_rows_without_a_label_are_predicted(tmp_path, tokenizer, messages):
    unlabelled = [{"message": row["message"]} for row in messages]
    output = make(tmp_path, tokenizer, messages).predict(Dataset.from_list(unlabelled))
    assert output.predictions.shape == (12, 2)
    assert set(output.label_ids.tolist()) == {-1}
    assert not {"test_accuracy", "test_loss"} & set(output.metrics)


def test_classlabel_names_that_no_row_uses_are_no_candidates(tmp_path, tokenizer):
    features = Features({"text": Value("string"), "Label": ClassLabel(names=["Unlabeled", "bad_thing", "fine"])})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "Label": [1, 2, 1]}, features=features)
    trainer = make(tmp_path, tokenizer, data, PromptTemplate(source="{text} :", label_column="Label"))
    assert trainer.model.info.template.label_words == {"1": "bad thing", "2": "fine"}
    assert trainer.predict(data).predictions.shape == (3, 2)
    hidden = Dataset.from_dict({"text": ["d", "e"], "Label": [0, 2]}, features=features)
    assert trainer.predict(hidden).label_ids.tolist() == [-1, 1]


def test_free_text_is_judged_by_what_is_generated(tmp_path, tokenizer, messages):
    rows = [{"message": row["message"], "answer": "a small dog" if i % 2 else "yes"} for i, row in enumerate(messages)]
    trainer = make(tmp_path, tokenizer, rows, FREE, eval_rows=rows)
    output = trainer.predict(rows)
    assert output.label_ids == [row["answer"] for row in rows]
    # against one row at a time
    for row, text in zip(rows, output.predictions, strict=True):
        ids = torch.tensor([row_encoder_of(trainer).source_ids(row)[0]])
        alone = trainer.model.generate(
            input_ids=ids,
            max_new_tokens=longest_target(trainer.train_dataset),
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True).strip() == text
    quiet = make(tmp_path, tokenizer, None, FREE, eval_rows=rows, predict_with_generate=False).evaluate()
    assert "eval_exact_match" not in quiet and quiet["eval_loss"] == pytest.approx(output.metrics["test_loss"])


def test_a_text_ends_where_the_backbone_has_no_more_positions(tmp_path, tokenizer):
    """And the others of its batch are as long as ever."""
    rows = [{"message": "day " * 104, "answer": "a"}, {"message": "day", "answer": "night " * 18}]
    texts = []
    for size, data in ((2, rows), (1, rows), (2, rows[::-1])):
        model = tiny_prompt_model("gpt2", num_virtual_tokens=4)
        trainer = make(tmp_path, tokenizer, rows, FREE, model, per_device_eval_batch_size=size)
        texts.append(trainer.predict(data).predictions)
    assert texts[0] == texts[1] == texts[2][::-1]
    ids = [torch.tensor([row_encoder_of(trainer).source_ids(row)[0]]) for row in rows]
    limits = [124 - ids[0].shape[1], longest_target(trainer.train_dataset)]
    assert limits[0] < 15 < limits[1]
    for text, source, limit in zip(texts[0], ids, limits, strict=True):
        alone = model.generate(input_ids=source, max_new_tokens=limit, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert tokenizer.decode(alone[0, source.shape[1] :], skip_special_tokens=True).strip() == text


def test_rows_of_token_ids_need_no_template(tmp_path, tokenizer):
    rows = Dataset.from_list(
        [{"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8]}, {"input_ids": [9, 10], "labels": [-100, 10]}]
    )
    seen = {}

    def metrics(prediction):
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"mine": 0.5}

    trainer = make(tmp_path, tokenizer, rows, None, eval_rows=rows, trainer={"compute_metrics": metrics})
    trainer.train()
    result = trainer.evaluate()
    assert result["eval_mine"] == 0.5
    assert seen["logits"].shape == (2, 4, 400)
    assert seen["labels"].tolist() == [[5, -100, 7, 8], [-100, 10, -100, -100]]
    # logits stand where their input stands: column t predicts column t+1
    with torch.no_grad():
        alone = trainer.model(input_ids=torch.tensor([[9, 10]])).logits[0, 4:]
    np.testing.assert_allclose(seen["logits"][1, :2], alone, rtol=1e-4, atol=1e-4)


def test_gradient_accumulation_is_one_big_batch(tmp_path, tokenizer, messages):
    """Labels have two and three tokens, so a mean of batch means would differ."""

    def prompt(size, steps):
        trainer = make(
            tmp_path,
            tokenizer,
            messages,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=3,
        )
        trainer.train()
        return trainer.model.prompt.detach(), losses(trainer)

    big, big_losses = prompt(12, 1)
    small, small_losses = prompt(3, 4)
    torch.testing.assert_close(small, big, rtol=1e-4, atol=1e-4)
    assert small_losses == pytest.approx(big_losses, rel=1e-4)


def test_the_first_tokens_label_counts(tmp_path, tokenizer):
    rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}]
    trainer = make(tmp_path, tokenizer, Dataset.from_list(rows), None, max_steps=1)
    batch = trainer.data_collator(rows)
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert count == 3
    expected = trainer.evaluate(Dataset.from_list(rows))["eval_loss"]
    assert trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).item() == pytest.approx(expected)


def test_label_smoothing_is_transformers(tmp_path, tokenizer):
    from transformers.trainer_pt_utils import LabelSmoother

    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [7, 8], "labels": [-100, 8]}]
    trainer = make(tmp_path, tokenizer, Dataset.from_list(rows), None, label_smoothing_factor=0.2)
    batch = trainer.data_collator(rows)
    logits = trainer.model(**batch).logits[:, 4:]
    expected = LabelSmoother(0.2)({"logits": logits}, batch["labels"], shift_labels=True)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_best_prompt_is_kept_and_training_stops_early(tmp_path, tokenizer, messages):
    class Spoil(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if state.epoch >= 3:
                model.prompt.data.normal_(std=5.0)

    trainer = make(
        tmp_path,
        tokenizer,
        messages,
        eval_rows=messages,
        num_train_epochs=30,
        early_stopping_patience=2,
        save_total_limit=1,
    )
    trainer.add_callback(Spoil())
    trainer.train()
    assert trainer.state.epoch == 5
    found = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == min(found) == found[2]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(found[2], rel=1e-5)


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path, tokenizer, messages):
    whole = make(tmp_path / "a", tokenizer, messages, num_train_epochs=4, save_strategy="epoch")
    whole.train()
    again = make(tmp_path / "a", tokenizer, messages, num_train_epochs=4, save_strategy="epoch")
    again.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-6"))
    assert again.state.global_step == 12
    assert torch.equal(again.model.prompt, whole.model.prompt)


def test_what_a_run_leaves(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, messages, eval_rows=messages, save_strategy="epoch")
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    saved = {f.name for f in tmp_path.iterdir() if f.is_file()}
    prompt = {"README.md", "adapter_config.json", "adapter_model.safetensors", "prompt_tuning.json"}
    prompt |= {"initial_prompt.safetensors"}
    assert saved == prompt | {"results.json", "loss.png", "confusion_matrix.png"}
    checkpoint = {f.name for f in (tmp_path / "checkpoint-3").iterdir()}
    assert "training_args.bin" not in checkpoint and "tokenizer.json" not in checkpoint
    info = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert info["training"]["learning_rate"] == 3e-2
    assert set(info["metrics"]) == {"eval_loss", "eval_perplexity", "eval_accuracy", "eval_f1"}
    card = (tmp_path / "README.md").read_text()
    assert "More Information Needed" not in card
    assert f"| accuracy | {info['metrics']['eval_accuracy']:.4f} |" in card


def test_a_plain_backbone_and_vanilla_arguments(tmp_path, tokenizer, messages):
    trainer = PromptTuningTrainer(
        model=tiny_model("gpt2"),
        args=TrainingArguments(output_dir=str(tmp_path), max_steps=2, disable_tqdm=True, use_cpu=True),
        train_dataset=messages,
        eval_dataset=messages,
        processing_class=tokenizer,
        template=TEMPLATE,
        prompt_config=PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="CLASS_LABELS"),
    )
    trainer.train()
    assert trainer.model.prompt.shape == (3, 32)
    assert "eval_accuracy" in trainer.evaluate()


def test_a_models_own_template_is_used(tmp_path, tokenizer, messages):
    model = get_prompt_tuning_model(tiny_model("gpt2"), PromptTuningConfig(), tokenizer, TEMPLATE)
    assert "eval_f1" in make(tmp_path, tokenizer, None, None, model, eval_rows=messages).evaluate()


def test_several_evaluation_sets(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, messages, eval_rows={"a": messages, "b": messages[:4]})
    metrics = trainer.evaluate()
    assert {"eval_a_accuracy", "eval_b_f1", "eval_b_loss"} <= set(metrics)


class TestRefusals:
    def test_rows_longer_than_the_backbones_positions(self, tmp_path, tokenizer):
        rows = [{"message": "day", "label": "1"}, {"message": "night " * 150, "label": "2"}]
        with pytest.raises(PromptTuningError, match=r"row 2 of the training data has 308 tokens, .* for 124"):
            make(tmp_path, tokenizer, rows)

    def test_no_rows(self, tmp_path, tokenizer):
        with pytest.raises(PromptTuningError, match="the training data has no rows"):
            make(tmp_path, tokenizer, [])

    def test_no_tokenizer(self, tmp_path, messages):
        with pytest.raises(PromptTuningError, match="processing_class is not given"):
            make(tmp_path, None, messages)

    def test_a_model_without_a_prompt(self, tmp_path, tokenizer, messages):
        with pytest.raises(PromptTuningError, match="model is a GPT2LMHeadModel; give one from"):
            make(tmp_path, tokenizer, messages, model=tiny_model("gpt2"))

    def test_a_field_that_is_no_column(self, tmp_path, tokenizer, messages):
        template = PromptTemplate(source="{text}", label_column="label", label_words={"1": "a", "2": "b"})
        with pytest.raises(PromptTuningError, match=r"field \{text\} is no column of the training data"):
            make(tmp_path, tokenizer, messages, template)

    def test_raw_columns_without_a_template(self, tmp_path, tokenizer, messages):
        with pytest.raises(PromptTuningError, match="the columns 'message', 'label' and no 'input_ids'"):
            make(tmp_path, tokenizer, messages, None)

    def test_patience_of_nothing(self, tmp_path):
        with pytest.raises(PromptTuningError, match="early_stopping_patience is 0"):
            arguments(tmp_path, early_stopping_patience=0)

    @pytest.mark.parametrize("tokens", [0, -5])
    def test_a_row_budget_of_nothing(self, tmp_path, tokenizer, messages, tokens):
        with pytest.raises(PromptTuningError, match=f"max_packed_tokens is {tokens}; give 1 token or more"):
            make(tmp_path, tokenizer, messages, max_packed_tokens=tokens)
