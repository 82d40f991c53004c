"""Every argument of Trainer's is done as Trainer does it, or refused by name; and none is ignored beside another."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_prompt_tuning import (
    DataCollatorForPromptTuning,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from tests.shared.reference import row_encoder_of, tiny_prompt_model
from tests.shared.several_prompts import arguments as arguments_of_several
from tests.shared.several_prompts import random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.tiny_pictures import by_hand, picture_batch, row_of, tiny_picture_model
from tests.shared.trainers import FREE, TEMPLATE, arguments, make
from tests.shared.vanilla_trainer import vanilla

TOKENS = [{"input_ids": [5 + i, 6, 7 + i, 8][: 2 + i], "labels": [-100, 6, 7 + i, 8][: 2 + i]} for i in range(3)]


def dummy(*args, **kwargs):
    return {}


class TestTrainers:
    """By name, what of `Trainer(...)` is not simply handed on; each has a test here or elsewhere."""

    def test_all_are_known(self):
        ours = {"model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init"}
        ours |= {"compute_metrics", "callbacks", "preprocess_logits_for_metrics"}
        refused, handed_on = {"compute_loss_func"}, {"optimizers", "optimizer_cls_and_kwargs"}
        names = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
        assert names == ours | refused | handed_on

    def test_what_evaluation_is_asked_for(self):
        """The arguments of `TrainingArguments` that change what evaluation gives; all others are the loop's."""
        known = {"batch_eval_metrics", "eval_do_concat_batches", "label_names", "include_for_metrics"}
        known |= {"prediction_loss_only", "eval_accumulation_steps", "eval_use_gather_object", "metric_for_best_model"}
        known |= {"per_device_eval_batch_size", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"}
        known |= {"fp16_full_eval", "bf16_full_eval", "do_eval", "do_predict"}
        names = {field.name for field in dataclasses.fields(TrainingArguments)}
        words = ("eval", "metric", "predict", "label_names")
        assert {name for name in names if any(word in name for word in words)} - {"skip_memory_metrics"} == known


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"compute_loss_func": dummy}, "compute_loss_func is given, and this trainer does without"),
        ({"batch_eval_metrics": True}, {"compute_metrics": dummy}, "batch_eval_metrics is given, and this trainer"),
        ({"eval_do_concat_batches": False}, {}, "eval_do_concat_batches=False is given, and this trainer"),
        ({}, {"preprocess_logits_for_metrics": dummy}, "preprocess_logits_for_metrics is given, and this trainer"),
        ({"eval_use_gather_object": True}, {}, "eval_use_gather_object is given, and this trainer does without"),
        ({"label_names": ["target"]}, {}, r"label_names is \['target'\]; labels are in the column 'labels'"),
        (
            {"predict_with_generate": False},
            {"compute_metrics": dummy, "template": FREE},
            "compute_metrics is given and predict_with_generate is False",
        ),
        (
            {"early_stopping_patience": 2},
            {"callbacks": [EarlyStoppingCallback(3)]},
            "an EarlyStoppingCallback is given beside early_stopping_patience, 2",
        ),
        ({}, {"prompt_config": random_prompt(3)}, "prompt_config is given together with a model that has its prompt"),
    ],
)
def test_refused_at_construction(values, options, message, tmp_path, tokenizer, messages):
    options = {"template": TEMPLATE} | options
    rows = [row | {"answer": "yes"} for row in messages]
    with pytest.raises(PromptTuningError, match=message):
        PromptTuningTrainer(
            tiny_prompt_model("llama"), arguments(tmp_path, **values), None, rows, rows, tokenizer, **options
        )


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_labels_are_smoothed_by_a_share(share, tmp_path):
    with pytest.raises(PromptTuningError, match=r"label_smoothing_factor is \S+; give a share of the loss"):
        arguments(tmp_path, label_smoothing_factor=share)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_noise_where_trainer_finds_the_embeddings(name, tmp_path, tokenizer, messages):
    model = tiny_prompt_model(name, num_virtual_tokens=4)
    if name == "llama":
        trainer = make(tmp_path, tokenizer, messages, model=model, neftune_noise_alpha=5.0, max_steps=1)
        trainer.train()
        assert model.chosen_layouts == ["packed"]
        return
    with pytest.raises(PromptTuningError, match=r"neftune_noise_alpha is 5.0, .* attribute model, which \w+ does not"):
        make(tmp_path, tokenizer, messages, model=model, neftune_noise_alpha=5.0)


def test_a_model_init_has_its_own_config(tmp_path, tokenizer, messages):
    with pytest.raises(PromptTuningError, match="prompt_config is given together with model_init"):
        PromptTuningTrainer(
            args=arguments(tmp_path),
            train_dataset=messages,
            processing_class=tokenizer,
            template=TEMPLATE,
            model_init=lambda trial: tiny_prompt_model("llama"),
            prompt_config=random_prompt(3),
        )


def test_nothing_to_train(tmp_path):
    with pytest.raises(PromptTuningError, match="neither model nor model_init is given; give one"):
        PromptTuningTrainer(args=arguments(tmp_path))


def test_another_template_than_the_prompts_is_said(tmp_path, tokenizer, messages, caplog):
    model = get_prompt_tuning_model(tiny_model("llama"), random_prompt(3), tokenizer, TEMPLATE)
    make(tmp_path, tokenizer, messages, TEMPLATE, model)
    assert not [record for record in caplog.records if "is replaced by" in record.getMessage()]
    other = dataclasses.replace(TEMPLATE, source="{message} film :")
    make(tmp_path, tokenizer, messages, other, model)
    assert [record for record in caplog.records if "is replaced by the one that" in record.getMessage()]
    assert model.info.template.source == "{message} film :"


class TestSeveralPrompts:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"template": TEMPLATE}, "template is given beside tasks"),
            ({"prompt_config": random_prompt(3)}, "prompt_config is given beside tasks"),
            ({"train_dataset": TOKENS}, "train_dataset is given beside tasks"),
            ({"optimizers": (torch.optim.SGD([torch.zeros(1)], 1.0), None)}, "optimizers are given, and each of"),
            ({"values": {"auto_find_batch_size": True}}, "auto_find_batch_size is on, and each of several prompts"),
        ],
    )
    def test_options_that_a_task_has(self, options, message, tmp_path, tokenizer, messages):
        values = options.pop("values", {})
        tasks = [PromptTask("one", random_prompt(3), messages, None, TEMPLATE)]
        with pytest.raises(PromptTuningError, match=message):
            MultiPromptTrainer(
                tiny_model("llama"), arguments_of_several(tmp_path, **values), tasks, tokenizer, **options
            )

    def test_a_config_that_the_models_prompt_is_not(self, tmp_path, tokenizer, messages):
        tasks = [PromptTask("one", random_prompt(3), messages, None, TEMPLATE)]
        model = MultiPromptTrainer(tiny_model("llama"), arguments_of_several(tmp_path), tasks, tokenizer).model
        other = [dataclasses.replace(tasks[0], config=random_prompt(4))]
        with pytest.raises(PromptTuningError, match="has 3 virtual tokens, and the task's config asks for 4"):
            MultiPromptTrainer(model, arguments_of_several(tmp_path), other, tokenizer)

    def test_the_optimizer_that_is_given(self, tmp_path, tokenizer, messages):
        tasks = [PromptTask("one", random_prompt(3), messages, None, TEMPLATE, learning_rate=0.5)]
        options = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"momentum": 0.5})}
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments_of_several(tmp_path), tasks, tokenizer, **options)
        optimizer = trainer.create_optimizer()
        assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["momentum"] == 0.5

    def test_no_tokenizer_where_none_is_needed(self, tmp_path, messages):
        rows = Dataset.from_list(TOKENS)
        tasks = [PromptTask(name, random_prompt(3), rows, rows, seed=i) for i, name in enumerate(("one", "two"))]
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments_of_several(tmp_path), tasks)
        trainer.train()
        assert trainer.evaluate()["eval_one_loss"] > 0
        text = [PromptTask("three", random_prompt(3), messages, None, TEMPLATE)]
        with pytest.raises(PromptTuningError, match="the task 'three' has a template, and processing_class is None"):
            MultiPromptTrainer(tiny_model("llama"), arguments_of_several(tmp_path), text)


class TestMetrics:
    """`compute_metrics` is given what the arguments ask for."""

    @pytest.mark.parametrize("values", [{}, {"eval_accumulation_steps": 1}])
    def test_inputs_and_losses(self, values, tmp_path, tokenizer, messages):
        seen = []
        rows = [*messages[:4], messages[4] | {"label": ""}, *messages[5:]]
        trainer = make(
            tmp_path,
            tokenizer,
            None,
            eval_rows=rows,
            trainer={"compute_metrics": lambda prediction: seen.append(prediction) or {"n": 1}},
            include_for_metrics=["inputs", "loss"],
            per_device_eval_batch_size=5,
            **values,
        )
        assert trainer.evaluate()["eval_n"] == 1
        (prediction,) = seen
        # the row without a label is left out
        kept = [row for i, row in enumerate(rows) if i != 4]
        assert prediction.label_ids.tolist() == [int(row["label"]) - 1 for row in kept]
        assert prediction.predictions.shape == (11, 2) and prediction.losses.shape == (11,)
        for row, ids, loss in zip(kept, prediction.inputs, prediction.losses, strict=True):
            encoded = row_encoder_of(trainer).encode(row)
            assert [i for i in ids.tolist() if i not in (-100, 0)] == encoded["input_ids"]
            alone = trainer.evaluate([row], metric_key_prefix="alone")["alone_loss"]
            assert loss == pytest.approx(alone, rel=1e-4)

    @pytest.mark.parametrize("template", [TEMPLATE, FREE, None], ids=["labels", "texts", "tokens"])
    def test_the_loss_alone(self, template, tmp_path, tokenizer, messages):
        rows = Dataset.from_list(TOKENS) if template is None else [row | {"answer": "yes"} for row in messages]
        extra = {"compute_metrics": lambda prediction: pytest.fail("it is not asked")}
        trainer = make(tmp_path, tokenizer, None, template, eval_rows=rows, trainer=extra, prediction_loss_only=True)
        metrics = {name for name in trainer.evaluate() if not name.endswith(("runtime", "second", "time", "epoch"))}
        assert metrics == {"eval_loss", "eval_perplexity"}
        output = trainer.predict(rows)
        assert output.predictions is None and output.label_ids is None and output.metrics["test_loss"] > 0
        full = make(tmp_path, tokenizer, None, template, eval_rows=rows).evaluate()["eval_loss"]
        assert output.metrics["test_loss"] == pytest.approx(full, rel=1e-5)

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_logits_of_token_rows(self, name, tmp_path, tokenizer):
        rows, seen = Dataset.from_list(TOKENS), []
        extra = {
            "compute_metrics": lambda prediction: seen.append(prediction.predictions) or {},
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        }
        model = tiny_prompt_model(name, num_virtual_tokens=4)
        whole = make(tmp_path, tokenizer, None, None, model, eval_rows=rows, per_device_eval_batch_size=2)
        logits = whole.predict(rows).predictions
        assert logits.shape == (3, 4, 400) and whole.predict(rows).label_ids.shape == (3, 4)
        trainer = make(tmp_path, tokenizer, None, None, model, eval_rows=rows, trainer=extra)
        trainer.evaluate()
        for i, row in enumerate(TOKENS):
            labelled = [t for t, label in enumerate(row["labels"]) if label != -100]
            assert seen[0][i, labelled].tolist() == logits[i, labelled].argmax(-1).tolist()
        assert trainer.predict(rows).predictions[2, 1:].tolist() == seen[0][2, 1:].tolist()


class TestTokenRows:
    """Rows of token ids without a tokenizer, without labels, with more columns."""

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_no_tokenizer(self, name, tmp_path, tokenizer):
        rows = Dataset.from_list(TOKENS)
        trained = []
        for given in (None, tokenizer):
            trainer = make(tmp_path, given, rows, None, tiny_prompt_model(name), eval_rows=rows, max_steps=3)
            trainer.train()
            trained.append((trainer.model.prompt.detach().clone(), trainer.evaluate()["eval_loss"]))
            trainer.save_model()
        assert torch.equal(trained[0][0], trained[1][0]) and trained[0][1] == trained[1][1]
        batch = DataCollatorForPromptTuning()(TOKENS)
        assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]

    def test_no_labels(self, tmp_path, tokenizer):
        bare = Dataset.from_list([{"input_ids": row["input_ids"]} for row in TOKENS])
        with pytest.raises(PromptTuningError, match="the training data has the columns 'input_ids' and no 'labels'"):
            make(tmp_path, tokenizer, bare, None)
        with pytest.raises(PromptTuningError, match="the evaluation data has the columns 'input_ids' and no 'labels'"):
            make(tmp_path, tokenizer, None, None, eval_rows=bare)
        trainer = make(tmp_path, tokenizer, Dataset.from_list(TOKENS), None)
        labelled = trainer.predict(Dataset.from_list(TOKENS))
        for rows in (bare, bare.to_iterable_dataset()):
            output = trainer.predict(rows)
            np.testing.assert_allclose(output.predictions, labelled.predictions, rtol=1e-5, atol=1e-5)
            assert "test_loss" not in output.metrics

    def test_a_collator_that_makes_labels(self, tmp_path, tokenizer):
        def collator(features):
            return DataCollatorForPromptTuning()([f | {"labels": f["input_ids"]} for f in features])

        bare = Dataset.from_list([{"input_ids": row["input_ids"]} for row in TOKENS])
        trainer = PromptTuningTrainer(tiny_prompt_model("llama"), arguments(tmp_path), collator, bare, bare)
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0

    @pytest.mark.parametrize("removes", [True, False])
    def test_token_types_are_the_backbones(self, removes, tmp_path, tokenizer):
        """GPT-2 adds the vector of a token's type: 0 for the prompt, the row's own for its text."""
        types = [[7] * len(row["input_ids"]) for row in TOKENS]
        rows = [row | {"token_type_ids": kinds} for row, kinds in zip(TOKENS, types, strict=True)]
        data = Dataset.from_list(rows)
        model = tiny_prompt_model("gpt2", num_virtual_tokens=4)
        values = dict(eval_rows=data, remove_unused_columns=removes, per_device_eval_batch_size=2)
        trainer = make(tmp_path, tokenizer, data, None, model, max_steps=1, **values)
        nll, count = 0.0, 0
        base = model.get_base_model()
        for row, kinds in zip(TOKENS, types, strict=True):
            embeds = torch.cat([model.prompt, base.get_input_embeddings()(torch.tensor(row["input_ids"]))])[None]
            ids = torch.tensor([[0] * 4 + kinds])
            with torch.no_grad():
                logits = base(inputs_embeds=embeds, token_type_ids=ids).logits[0, 3:-1]
            labels = torch.tensor(row["labels"])
            nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
        assert trainer.evaluate()["eval_loss"] == pytest.approx(nll / count, rel=1e-4)
        batch = trainer.data_collator(rows)
        assert trainer.compute_loss(model, batch).item() == pytest.approx(nll / count, rel=1e-4)
        some = torch.tensor(2 * count)
        assert trainer.compute_loss(model, batch, num_items_in_batch=some).item() == pytest.approx(
            nll / count / 2, rel=1e-4
        )
        trainer.train()

    def test_columns_that_would_be_lost(self, tmp_path, tokenizer, messages, caplog):
        pictured = [row | {"pixel_values": [[0.5, 0.25]]} for row in TOKENS]
        with pytest.raises(PromptTuningError, match="column 'pixel_values', and LlamaForCausalLM"):
            make(tmp_path, tokenizer, pictured, None)
        with pytest.raises(PromptTuningError, match=r"column 'note', and .*\.forward takes no such"):
            make(tmp_path, tokenizer, [row | {"note": "a"} for row in TOKENS], None, remove_unused_columns=False)
        make(tmp_path, tokenizer, [row | {"note": "a"} for row in TOKENS], None)
        assert any("data's columns 'note' are left out" in record.getMessage() for record in caplog.records)
        trainer = make(tmp_path, tokenizer, TOKENS, None)
        for look in (trainer.evaluate, trainer.predict):
            with pytest.raises(PromptTuningError, match="column 'pixel_values', and LlamaForCausalLM"):
                look(pictured)
        typed = [row | {"encoder_attention_mask": [1]} for row in messages]
        with pytest.raises(
            PromptTuningError, match="'encoder_attention_mask', which GPT2LMHeadModel reads, and a template makes"
        ):
            make(tmp_path, tokenizer, typed, TEMPLATE, tiny_prompt_model("gpt2"))
        tokens = Dataset.from_list([row | {"token_type_ids": [0] * len(row["input_ids"])} for row in TOKENS])
        task = PromptTask("one", random_prompt(3), tokens, None)
        with pytest.raises(
            PromptTuningError, match="column 'token_type_ids', which GPT2LMHeadModel reads; rows with a template"
        ):
            MultiPromptTrainer(tiny_model("gpt2"), arguments_of_several(tmp_path), [task], tokenizer)
        with pytest.raises(PromptTuningError, match="the column 'odd' makes no batch"):
            DataCollatorForPromptTuning()([{**TOKENS[0], "odd": [1]}, {**TOKENS[1], "odd": [1, 2]}])

    def test_a_collators_own_columns_are_not_left_out_of_scores(self, tmp_path, tokenizer, messages):
        def collator(features):
            batch = DataCollatorForPromptTuning(tokenizer)(features)
            return batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}

        extra = {"data_collator": collator}
        trainer = make(
            tmp_path, tokenizer, messages, model=tiny_prompt_model("gpt2"), eval_rows=messages, trainer=extra
        )
        with pytest.raises(PromptTuningError, match="the batches have 'token_type_ids' beside texts"):
            trainer.evaluate()


class TestPictures:
    """Rows of token ids with pictures, in a trainer: the loss is that of the backbone with its pictures, by hand."""

    @pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
    def test_they_are_trained_on(self, name, tmp_path, tokenizer):
        torch.manual_seed(1)
        model = tiny_prompt_model("", 5, backbone=tiny_picture_model(name), random_range=1.0)
        batch, rows, losses = picture_batch(name), [], []
        for b in range(2):
            row = row_of(batch, b)
            ids = row["input_ids"][0]
            expected = by_hand(model.get_base_model(), model.prompt.detach(), row)[0]
            losses.append(torch.nn.functional.cross_entropy(expected[-4:-1], ids[-3:]).item())
            labels = ids.clone()
            labels[:-3] = -100
            flat = {
                key: value.tolist() if key == "pixel_values" and name == "qwen2_vl" else value[0].tolist()
                for key, value in row.items()
            }
            rows.append(flat | {"labels": labels.tolist()})
        expected = pytest.approx(sum(losses) / 2, rel=1e-3)
        trainer = make(tmp_path, tokenizer, rows, None, model, eval_rows=rows, max_steps=1, logging_steps=1)
        assert trainer.evaluate()["eval_loss"] == expected
        trainer.train()
        assert trainer.state.log_history[-2]["loss"] == expected
        other = [row | {"pixel_values": (-np.array(row["pixel_values"])).tolist()} for row in rows]
        assert trainer.evaluate(other)["eval_loss"] != pytest.approx(trainer.evaluate(rows)["eval_loss"], rel=1e-4)


class TestTrainable:
    @pytest.fixture
    def loaded(self, tmp_path):
        tiny_prompt_model("llama", num_virtual_tokens=3).save_pretrained(tmp_path / "prompt")
        return lambda **options: load_prompt(tmp_path / "prompt", backbone=tiny_model("llama"), **options)[0]

    def test_ours_says_so_before_training(self, loaded, tmp_path, tokenizer):
        trainer = make(tmp_path, tokenizer, TOKENS, None, loaded())
        with pytest.raises(PromptTuningError, match="'default' does not train: it was loaded without is_trainable"):
            trainer.train()
        trainer.model.set_requires_grad("default")
        trainer.train()
        make(tmp_path, tokenizer, TOKENS, None, loaded(is_trainable=True)).train()

    def test_a_vanilla_trainer_says_so_too(self, loaded, tmp_path, tokenizer):
        trainer = vanilla(tmp_path, tokenizer, model=loaded())
        with pytest.raises(PromptTuningError, match="'default' gets no gradient: it was loaded without is_trainable"):
            trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])


class TestPredictingWithoutReferences:
    """The rows that predictions are wanted for have no answer yet."""

    @pytest.mark.parametrize("name", ["llama", "t5", "mbart"])
    def test_free_text(self, name, tmp_path, tokenizers, messages):
        tokenizer = tokenizers["gpt2" if name == "llama" else "t5"]
        rows = [{"message": row["message"], "answer": "a dog"} for row in messages[:5]]
        bare = [{"message": row["message"]} for row in rows]
        trainer = make(tmp_path, tokenizer, rows, FREE, tiny_prompt_model(name), per_device_eval_batch_size=2)
        expected = trainer.predict(rows)
        for data in (bare, Dataset.from_list(bare).to_iterable_dataset(), [row | {"answer": None} for row in bare]):
            output = trainer.predict(data)
            assert output.predictions == expected.predictions and output.label_ids == [None] * 5
            assert not {"test_loss", "test_exact_match"} & set(output.metrics)
        some = trainer.predict([*rows[:2], *(row | {"answer": None} for row in bare[2:])])
        assert some.predictions == expected.predictions and some.label_ids[:3] == ["a dog", "a dog", None]
        assert some.metrics["test_exact_match"] == trainer.predict(rows[:2]).metrics["test_exact_match"]

    def test_metrics_are_not_asked_of_nothing(self, tmp_path, tokenizer, messages):
        extra = {"compute_metrics": lambda prediction: {"n": len(prediction.label_ids)}}
        rows = [{"message": row["message"], "answer": "a dog"} for row in messages[:5]]
        for template in (FREE, TEMPLATE):
            rows = [row | {"label": "1"} for row in rows]
            trainer = make(tmp_path, tokenizer, rows, template, trainer=extra)
            assert trainer.predict(rows).metrics["test_n"] == 5
            bare = [{"message": row["message"]} for row in rows]
            assert "test_n" not in trainer.predict(bare).metrics
            some = [*rows[:2], rows[2] | {"answer": None, "label": None}]
            assert trainer.predict(some).metrics["test_n"] == 2

    def test_several_tasks(self, tmp_path, tokenizer, messages):
        rows = [{"message": row["message"], "answer": "a dog", "label": row["label"]} for row in messages[:5]]
        bare = [{"message": row["message"]} for row in rows]
        tasks = [
            PromptTask("labels", random_prompt(3), rows, None, TEMPLATE),
            PromptTask("texts", random_prompt(4), rows, None, FREE),
        ]
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments_of_several(tmp_path), tasks, tokenizer)
        expected = trainer.predict_tasks({"labels": rows, "texts": rows})
        output = trainer.predict_tasks({"labels": bare, "texts": bare})
        assert output["texts"].predictions == expected["texts"].predictions
        assert output["texts"].label_ids == [None] * 5 and output["labels"].label_ids.tolist() == [-1] * 5
