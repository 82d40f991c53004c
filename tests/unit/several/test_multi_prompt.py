"""Several prompts in one run: each becomes what it becomes alone."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, PromptTuningTrainer, get_prompt_tuning_model
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from hf_prompt_tuning.training.pickle_free import without_pickles
from tests.shared.pushes import several
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import make_tokenizer, tiny_model


def alone(task, folder, backbone, tokenizer, **values):
    """What PromptTuningTrainer makes of one of the tasks."""
    own = {
        name: getattr(task, name)
        for name in ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "data_seed")
        if getattr(task, name) is not None
    }
    args = arguments(folder, **{**values, **own})
    model = tiny_model(backbone)
    config = PromptTuningConfig(
        num_virtual_tokens=task.config.num_virtual_tokens, prompt_tuning_init=task.config.prompt_tuning_init
    )
    torch.manual_seed(args.seed if task.seed is None else task.seed)
    model = get_prompt_tuning_model(model, config, tokenizer, task.template)
    trainer = PromptTuningTrainer(
        model,
        args,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=tokenizer,
        template=task.template,
    )
    trainer.train()
    return trainer


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


@pytest.mark.parametrize(
    "backbone, layout", [("llama", "packed"), ("llama", "cached"), ("llama", "padded"), ("t5", "auto")]
)
def test_each_prompt_is_the_one_trained_alone(backbone, layout, tmp_path, tasks):
    """AdamW with decay, clipping (it bites), warm-up, accumulation over uneven counts, and unequal everything."""
    tokenizer = make_tokenizer("t5" if backbone == "t5" else "gpt2")
    values = {"gradient_accumulation_steps": 2, "layout": layout}
    tasks[0].data_seed = 0  # its rows come in another order than the others' seed gives
    trainer = MultiPromptTrainer(tiny_model(backbone), arguments(tmp_path, **values), tasks, tokenizer)
    before = {name: weight.detach().clone() for name, weight in trainer.prompts.items()}
    trainer.train()
    metrics = trainer.evaluate()
    steps = {}
    for task in tasks:
        expected = alone(task, tmp_path / task.name, backbone, tokenizer, **values)
        steps[task.name] = expected.state.global_step
        found, right = trainer.prompts[task.name], expected.model.prompt
        assert (right - before[task.name]).abs().max() > 0.01
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
        losses = logged(trainer, f"loss_{task.name}")
        assert losses == pytest.approx(logged(expected, "loss"), rel=1e-4)
        assert min(logged(expected, "grad_norm")) > 0.001
        for key, value in expected.evaluate().items():
            if key.removeprefix("eval_") in ("loss", "perplexity", "accuracy", "f1", "exact_match", "rougeL"):
                assert metrics[f"eval_{task.name}_{key.removeprefix('eval_')}"] == pytest.approx(value, rel=1e-4)
    assert steps == {"complaints": 6, "reviews": 4, "answers": 4}
    assert trainer.state.global_step == 6
    for task in tasks:
        trainer.describe_prompt(task.name)
    recorded = {name: info.training.get("data_seed") for name, info in trainer.model.prompt_info.items()}
    assert recorded == {"complaints": 0, "reviews": None, "answers": None}


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path, tokenizer, tasks):
    """To the bit, although one prompt was done before the checkpoint and another is done behind it."""
    values = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    tasks[2].max_steps = 2

    def run(resume=None):
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, **values), tasks, tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, again = run(), run(str(tmp_path / "checkpoint-3"))
    assert whole.state.global_step == again.state.global_step == 6
    for name, weight in whole.prompts.items():
        assert torch.equal(weight, again.prompts[name]), name
    assert logged(again, "loss_complaints") == logged(whole, "loss_complaints")
    assert logged(again, "learning_rate") == logged(whole, "learning_rate")
    with pytest.raises(PromptTuningError, match=r"holds the prompts 'answers', .* trains 'complaints'"):
        MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks[:2], tokenizer).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


@pytest.mark.parametrize("resumed", [None, 3, 4, 5, 8])
def test_each_mean_is_over_the_tasks_own_steps(resumed, tmp_path, tokenizer, tasks):
    """They are 9, 8 and 4 steps, of which the last 4 (5 to 8), 4 (4 to 7) and 2 (2 and 3) are averaged."""
    values = {"average_last": 0.5, "max_grad_norm": 1.0, "save_strategy": "steps", "save_steps": 1}

    def run(resume=None):
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, **values), tasks, tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trainer = run()
    if resumed is not None:
        again = run(str(tmp_path / f"checkpoint-{resumed}"))
        assert all(weight.equal(again.prompts[name]) for name, weight in trainer.prompts.items())
        return
    for task in tasks:
        expected = alone(task, tmp_path / task.name, "llama", tokenizer, **values)
        last = alone(task, tmp_path / f"{task.name}-last", "llama", tokenizer, **values | {"average_last": 0.0})
        assert (expected.model.prompt - last.model.prompt).abs().max() > 1e-3
        torch.testing.assert_close(trainer.prompts[task.name], expected.model.prompt, rtol=1e-5, atol=1e-5)


def test_a_run_behind_another_of_the_process(tmp_path, tokenizer, tasks):
    """Accelerate keeps, for the whole process, that the last run's data were at their end."""
    alone(tasks[0], tmp_path / "alone", "llama", tokenizer)
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path / "both"), tasks, tokenizer)
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps == 9


def test_a_prompt_that_is_done_stays_as_it_is(tmp_path, tokenizer, tasks):
    seen = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            for name in model.prompt_encoder:
                seen.setdefault(name, []).append(model.prompt_encoder[name].embedding.weight.detach().clone())

    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer, callbacks=[Watch()])
    backbone = {name: p.clone() for name, p in trainer.model.base_model.named_parameters()}
    trainer.train()
    moves = {name: [not torch.equal(a, b) for a, b in pairwise(v)] for name, v in seen.items()}
    # the first step's rate is 0, behind it is warm-up
    assert moves == {"complaints": [True] * 8, "reviews": [True] * 7 + [False], "answers": [True] * 3 + [False] * 5}
    assert all(torch.equal(p, backbone[name]) for name, p in trainer.model.base_model.named_parameters())


def test_what_a_run_leaves(tmp_path, tokenizer, tasks):
    trainer = MultiPromptTrainer(
        tiny_model("llama"), arguments(tmp_path, eval_strategy="epoch", save_strategy="epoch"), tasks, tokenizer
    )
    trainer.evaluate_untuned()
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    folders = {
        folder.name: {file.name for file in folder.iterdir()} for folder in tmp_path.iterdir() if folder.is_dir()
    }
    prompt = {"README.md", "adapter_config.json", "adapter_model.safetensors", "prompt_tuning.json", "results.json"}
    prompt |= {"initial_prompt.safetensors"}
    assert folders["complaints"] == folders["reviews"] == prompt | {"loss.png", "confusion_matrix.png"}
    assert folders["answers"] == prompt | {"loss.png"}
    assert set(folders) == {"complaints", "reviews", "answers", "checkpoint-4", "checkpoint-8", "checkpoint-9"}
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"README.md", "losses.png"}
    info = json.loads((tmp_path / "reviews/prompt_tuning.json").read_text())
    assert info["template"]["label_words"] == {"awful": "awful", "great": "great"}
    assert info["training"]["learning_rate"] == 0.1 and info["training"]["trained_with"] == ["complaints", "answers"]
    assert info["training"]["num_train_epochs"] == 2 and info["training"]["per_device_train_batch_size"] == 2
    assert info["data"] == {"training_rows": 7, "evaluation_rows": 7}
    assert info["metrics"]["eval_accuracy"] == metrics["eval_reviews_accuracy"]
    assert len(info["history"]["loss"]) == 8 and len(info["history"]["eval_loss"]) == 4
    assert set(info["untuned_metrics"]) == {f"untuned_{name}" for name in ("loss", "perplexity", "accuracy", "f1")}
    assert metrics["eval_loss"] == pytest.approx(
        sum(metrics[f"eval_{name}_loss"] for name in ("complaints", "reviews", "answers")) / 3
    )
    assert f"| accuracy | {metrics['eval_reviews_accuracy']:.4f} |" in (tmp_path / "reviews/README.md").read_text()
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "reviews")
    assert torch.equal(loaded.prompt_encoder["default"].embedding.weight, trainer.prompts["reviews"])


@pytest.mark.parametrize("first", [0, 1])
def test_a_task_of_labels_beside_one_of_token_ids(first, tmp_path, tokenizer, tasks):
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 4
    both = [tasks[0], PromptTask("ids", random_prompt(3), rows, rows)]
    args = arguments(tmp_path, max_steps=1)
    trainer = MultiPromptTrainer(tiny_model("llama"), args, [both[first], both[1 - first]], tokenizer)
    trainer.train()
    metrics = trainer.evaluate()
    assert "eval_complaints_accuracy" in metrics
    assert "eval_ids_loss" in metrics and "eval_ids_accuracy" not in metrics


def test_a_push_holds_every_prompt(tmp_path, tokenizer, tasks, hub):
    """What is sent, and the checkpoint that another machine resumes from."""
    values = dict(save_strategy="steps", save_steps=2, hub_strategy="end", hub_model_id="alice/two")
    trainer = several(tmp_path, tokenizer, tasks[:2], **values)
    trainer.train()
    trainer.push_to_hub()
    sent = hub.files("alice/two")
    assert {f"{name}/adapter_model.safetensors" for name in ("complaints", "reviews")} < set(sent)
    assert b"load_prompt('alice/two', subfolder='complaints', backbone=backbone" in sent["complaints/README.md"]
    assert b"from_pretrained(backbone, 'alice/two', subfolder='reviews')" in sent["reviews/README.md"]
    assert "losses.png" in sent and not any("checkpoint" in name or name.endswith(".bin") for name in sent)
    (tmp_path / "hub").mkdir()
    without_pickles(tmp_path / "checkpoint-4", tmp_path / "hub")
    again = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path / "b", max_steps=2), tasks[:2], tokenizer)
    again.train(resume_from_checkpoint=str(tmp_path / "hub"))
    for name, weight in trainer.prompts.items():
        assert torch.equal(weight, again.prompts[name])


class TestRefusals:
    @pytest.mark.parametrize(
        "values, message",
        [
            ({"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}, "one best step"),
            ({"train_sampling_strategy": "group_by_length"}, "can be random or sequential"),
            ({"dataloader_drop_last": True, "per_device_train_batch_size": 13}, "12 rows are no batch of 13"),
        ],
    )
    def test_arguments(self, values, message, tmp_path, tokenizer, tasks):
        with pytest.raises(PromptTuningError, match=message):
            MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, **values), tasks, tokenizer)

    def test_a_schedule_that_follows_the_loss(self, tmp_path, tokenizer, tasks):
        args = arguments(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", warmup_steps=0, eval_strategy="epoch")
        with pytest.raises(PromptTuningError, match="which follows one loss"):
            MultiPromptTrainer(tiny_model("llama"), args, tasks, tokenizer).train()

    def test_tasks(self, tmp_path, tokenizer, tasks):
        for wrong, message in [
            ([], "there are no tasks"),
            ([tasks[0], tasks[0]], "two tasks are called 'complaints'"),
            ([tasks[0], PromptTask("Complaints", random_prompt(2))], "differ in capitals alone"),
        ]:
            with pytest.raises(PromptTuningError, match=message):
                MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), wrong, tokenizer)

    def test_a_task_without_training_data(self, tmp_path, tokenizer, tasks):
        tasks[1].train_dataset = None
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
        with pytest.raises(PromptTuningError, match="the task 'reviews' has no training data"):
            trainer.train()

    def test_rows_that_are_too_long_behind_their_own_prompt(self, tmp_path, tokenizer, tasks):
        tasks[0].train_dataset = [{"message": "night " * 58, "label": "1"}]
        MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
        tasks[0].config = random_prompt(12)
        with pytest.raises(PromptTuningError, match=r"row 1 of the complaints training data has .* for 116"):
            MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)

    def test_data_of_no_task(self, tmp_path, tokenizer, tasks):
        trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path), tasks, tokenizer)
        for data, message in (([], "with several tasks give a dict"), ({"x": []}, "there is no task 'x'")):
            with pytest.raises(PromptTuningError, match=message):
                trainer.evaluate(data)


@pytest.mark.parametrize("poison", ["prompt", "gradient"])
def test_any_prompt_that_goes_wrong_ends_the_run(poison, tmp_path, tokenizer, tasks):
    """Not only the first, which is the active one; and the last checkpoint holds all of them whole."""

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            weight = model.prompt_encoder["reviews"].embedding.weight
            if state.global_step == 4 and poison == "prompt":
                weight.data.fill_(float("nan"))
            elif state.global_step == 4:
                weight.register_hook(lambda gradient: gradient * float("nan"))

    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    trainer = MultiPromptTrainer(tiny_model("llama"), args, tasks, tokenizer, callbacks=[Poison()])
    with pytest.raises(FloatingPointError, match=r"at step 5; .*checkpoint-4"):
        trainer.train()
    for name in trainer.tasks:
        kept = load_file(tmp_path / f"checkpoint-4/{name}/adapter_model.safetensors")["prompt_embeddings"]
        assert torch.isfinite(kept).all()
    assert not (tmp_path / "checkpoint-6").exists()
