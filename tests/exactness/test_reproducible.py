"""The same seed gives the same prompt, and what a run computes never depends on how it computes it."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain

import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, PromptTuningTrainer
from run_prompt_tuning import main
from tests.shared.reference import tiny_prompt_model
from tests.shared.repository import ROOT
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, TEMPLATE, arguments, losses, make

LAYOUTS = ("padded", "cached", "packed")
WORDS = "never came third time this week nobody line down again awful why dog"
ROWS = [{"message": f"{word} " * (1 + 5 * i % 13), "label": str(1 + i % 2)} for i, word in enumerate(WORDS.split())]


class Watched(PromptTuningTrainer):
    """Remembers the lengths and ids of each batch that it trains on."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        self.batches.append([tuple(ids[mask.bool()].tolist()) for ids, mask in rows])
        return super().compute_loss(model, inputs, *args, **kwargs)


def watched(folder, layout, dropout=False, rows=None, **values):
    config = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5} if dropout else {}
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM", backbone_dropout=dropout), config
    trainer = Watched(
        model=tiny_model("gpt2", **config[1]),
        args=arguments(folder, layout=layout, **{"num_train_epochs": 3, **values}),
        train_dataset=ROWS if rows is None else rows,
        processing_class=make_tokenizer(),
        template=TEMPLATE,
        prompt_config=config[0],
    )
    trainer.batches = []
    trainer.train()
    return trainer


def prompts_of_every_layout(folder, seed=7):
    """The trained prompts of one seed, as bytes."""
    found = {}
    for layout in LAYOUTS:
        torch.rand(3)  # what drew from the generator before is of no account
        prompt = watched(folder, layout, seed=seed, train_sampling_strategy="group_by_length").model.prompt
        found[layout] = prompt.detach().numpy().tobytes().hex()
    return found


def test_the_same_seed_is_the_same_prompt_bit_for_bit_in_one_process_and_in_two(tmp_path):
    first, again = prompts_of_every_layout(tmp_path), prompts_of_every_layout(tmp_path)
    assert first == again
    module = "tests.exactness.test_reproducible"
    script = f"from {module} import *; print(*prompts_of_every_layout({str(tmp_path)!r}).values())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == list(first.values())
    assert prompts_of_every_layout(tmp_path, seed=8) != first


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_every_layout_gives_the_same_prompt_to_rounding(tmp_path, strategy):
    runs = {layout: watched(tmp_path, layout, train_sampling_strategy=strategy) for layout in LAYOUTS}
    reference = runs.pop("padded")
    assert len(losses(reference)) == 12
    for trainer in runs.values():
        assert losses(trainer) == pytest.approx(losses(reference), rel=1e-4)
        torch.testing.assert_close(trainer.model.prompt, reference.model.prompt, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_which_rows_make_a_batch_does_not_depend_on_the_layout(tmp_path, strategy):
    """Nor on how often a layout draws random numbers: each drops out other positions."""
    for dropout in (False, True):
        values = {"train_sampling_strategy": strategy, "seed": 3, "dropout": dropout}
        runs = [watched(tmp_path, layout, **values).batches for layout in LAYOUTS]
        runs.append(watched(tmp_path, "packed", check_layout=False, **values).batches)
        assert runs[0] == runs[1] == runs[2] == runs[3]
        epochs = [runs[0][i : i + 4] for i in (0, 4, 8)]
        all_rows = [sorted(chain.from_iterable(epoch)) for epoch in epochs]
        assert len(all_rows[0]) == 13 and all_rows[0] == all_rows[1] == all_rows[2]
        assert epochs[0] != epochs[1]


def test_grouping_by_length_groups(tmp_path):
    """Far fewer pads than where batches are drawn."""

    def pads(strategy):
        values = {"rows": ROWS * 4, "num_train_epochs": 1, "train_sampling_strategy": strategy}
        batches = watched(tmp_path, "packed", per_device_train_batch_size=2, **values).batches
        return sum(max(map(len, batch)) - len(row) for batch in batches for row in batch)

    assert pads("group_by_length") < 0.5 * pads("random")


def test_grouped_batches_are_the_same_after_a_resume(tmp_path):
    """In the middle of the second epoch, whose batches must not be drawn anew."""
    values = {"train_sampling_strategy": "group_by_length", "save_strategy": "steps", "save_steps": 6}
    whole = watched(tmp_path, "packed", **values)
    again = Watched(
        model=tiny_model("gpt2"),
        args=arguments(tmp_path, layout="packed", num_train_epochs=3, **values),
        train_dataset=ROWS,
        processing_class=make_tokenizer(),
        template=TEMPLATE,
        prompt_config=PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM"),
    )
    again.batches = []
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.batches == whole.batches[6:]
    assert torch.equal(again.model.prompt, whole.model.prompt)


@pytest.fixture
def determinism():
    """`full_determinism` sets switches of the whole process; they are set back."""
    before = dict(os.environ)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_full_determinism_works_and_changes_nothing_on_a_cpu(name, tmp_path, tokenizers, messages, determinism):
    tokenizer = tokenizers["t5" if name == "t5" else "gpt2"]
    rows = [row | {"answer": row["message"][-9:].strip()} for row in messages]
    prompts = {}
    for layout in ("padded",) if name == "t5" else LAYOUTS:
        for full in (False, True):
            for template in (TEMPLATE, FREE):
                model = tiny_prompt_model(name)
                values = {"layout": layout, "full_determinism": full, "max_steps": 3}
                trainer = make(tmp_path, tokenizer, rows, template, model, rows[:3], **values)
                assert torch.are_deterministic_algorithms_enabled() is full
                trainer.train()
                metrics = trainer.evaluate()
                prompts[full, template.target] = trainer.model.prompt.detach(), metrics["eval_loss"]
            torch.use_deterministic_algorithms(False)
        for target in (None, "{answer}"):
            assert torch.equal(prompts[True, target][0], prompts[False, target][0])
            assert prompts[True, target][1] == prompts[False, target][1]


def test_no_steps_leave_the_prompt_as_it_is(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, messages, eval_rows=messages, max_steps=0)
    before = trainer.model.prompt.detach().clone()
    untrained = trainer.evaluate()["eval_loss"]
    result = trainer.train()
    assert (result.global_step, trainer.state.global_step, losses(trainer)) == (0, 0, [])
    assert torch.equal(trainer.model.prompt, before)
    assert trainer.evaluate()["eval_loss"] == untrained
    trainer.save_model()
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"], before)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 8), (12, 64)])
def test_one_example_and_a_batch_larger_than_the_data(rows, size, tmp_path, tokenizer, messages):
    """Against a loop by hand in which all rows are every batch."""
    for layout in LAYOUTS:
        values = {"layout": layout, "per_device_train_batch_size": size, "max_grad_norm": 0.0}
        data = messages[:rows]
        trainer = make(tmp_path, tokenizer, data, eval_rows=data, num_train_epochs=4, **values)
        trainer.train()
        model, expected = tiny_prompt_model("llama", num_virtual_tokens=4), []
        model.use_layout("padded")
        optimizer = torch.optim.AdamW([model.prompt], lr=3e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])
        batch.pop("label")
        for _ in range(4):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            expected.append(loss.item())
        assert losses(trainer) == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(trainer.model.prompt, model.prompt, rtol=1e-3, atol=1e-4)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-3)


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_is_trained_and_evaluated_on_as_its_rows_are(layout, tmp_path, tokenizer, messages):
    rows = [row | {"answer": row["message"].split()[0]} for row in messages]
    free = replace(FREE, max_target_length=9)  # a stream's own longest target is not known
    for template, names in ((TEMPLATE, ["accuracy", "f1"]), (free, ["exact_match", "rougeL"])):
        found = []
        for data in (Dataset.from_list(rows), stream(rows)):
            values = {"max_steps": 7, "train_sampling_strategy": "sequential", "per_device_eval_batch_size": 5}
            trainer = make(tmp_path, tokenizer, data, template, eval_rows=data, layout=layout, **values)
            trainer.train()
            metrics = trainer.evaluate()
            predictions = trainer.predict(data).predictions
            found.append((losses(trainer), trainer.model.prompt.detach(), metrics, predictions))
        (losses_of_rows, prompt, metrics, predictions), streamed = found
        assert len(streamed[0]) == 7 and streamed[0] == losses_of_rows
        assert torch.equal(streamed[1], prompt)
        for name in ["loss", *names]:
            assert streamed[2][f"eval_{name}"] == metrics[f"eval_{name}"]
        assert len(streamed[3]) == 12
        assert list(map(str, streamed[3])) == list(map(str, predictions))


def test_a_stream_that_ends_begins_again(tmp_path, tokenizer, messages):
    trainer = make(tmp_path, tokenizer, stream(messages[:4]), max_steps=6)
    trainer.train()
    assert trainer.state.global_step == 6
    one = make(tmp_path, tokenizer, messages[:4], max_steps=6, train_sampling_strategy="sequential")
    one.train()
    assert torch.equal(trainer.model.prompt, one.model.prompt)


def test_a_stream_needs_max_steps(tmp_path, tokenizer, messages):
    for steps in (-1, 0):
        with pytest.raises(PromptTuningError, match=f"training data is a stream and max_steps is {steps}"):
            make(tmp_path, tokenizer, stream(messages), max_steps=steps)


def test_the_commands_seed_draws_the_prompt(tmp_path, messages, monkeypatch):
    """Whatever was drawn in the process before."""
    tiny_model("llama").save_pretrained(tmp_path / "backbone")
    make_tokenizer().save_pretrained(tmp_path / "backbone")
    Dataset.from_list(messages).to_json(tmp_path / "a.jsonl")
    words = {
        "model_name_or_path": tmp_path / "backbone",
        "train_file": tmp_path / "a.jsonl",
        "source_template": "{message} :",
        "label_column": "label",
        "label_words": '{"1": "complaint", "2": "no complaint"}',
        "num_virtual_tokens": 4,
        "max_steps": 0,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    found = []
    for i, seed in enumerate((1, 1, 2)):
        flags = [f"--{name}={value}" for name, value in words.items()]
        folder = tmp_path / str(i)
        monkeypatch.setattr(sys, "argv", ["run", *flags, f"--seed={seed}", f"--output_dir={folder}"])
        main()
        torch.rand(5)
        found.append(load_file(folder / "adapter_model.safetensors")["prompt_embeddings"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
