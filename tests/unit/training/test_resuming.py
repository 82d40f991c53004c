"""A resumed run ends as the run that was never interrupted: bit for bit, whatever the run does."""

import errno
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_prompt_tuning import (
    CheckpointSaveError,
    PromptTuningArguments,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.training import checkpointing as resuming
from hf_prompt_tuning.training.resume_checks import check_states
from tests.shared.resumed_runs import EVALUATED, ROWS, SAVED, assert_same, make, steps
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE
from tests.shared.trainers import make as make_trainer

EARLY = dict(metric_for_best_model="accuracy", early_stopping_patience=3, num_train_epochs=9)


def killed_after(step, run, copy):
    """A copy of a run's folder as it was when that step had been saved."""
    shutil.copytree(run, copy)
    for later in steps(copy):
        if later > step:
            shutil.rmtree(copy / f"checkpoint-{later}")
    return copy


CASES = {
    "dropout": dict(name="gpt2"),
    "lengths grouped, accumulation": dict(
        train_sampling_strategy="group_by_length", gradient_accumulation_steps=2, lr_scheduler_type="cosine"
    ),
    "max_steps within an epoch": dict(max_steps=7),
    "best prompt, early stop": EVALUATED | EARLY,
    "each epoch": EVALUATED | EARLY | dict(eval_strategy="epoch", save_strategy="epoch"),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_from_any_checkpoint(case, tmp_path, tokenizer):
    whole = make(tmp_path / "whole", tokenizer, **CASES[case])
    whole.train()
    saved = steps(tmp_path / "whole")
    if "early" in case or "each" in case:
        assert whole.state.global_step < whole.state.max_steps  # it did stop early
    for step in {saved[0], saved[len(saved) // 2], saved[-2], saved[-1]}:
        folder = killed_after(step, tmp_path / "whole", tmp_path / f"killed after {step}")
        resumed = make(folder, tokenizer, **CASES[case])
        resumed.train(resume_from_checkpoint=True)
        assert_same(resumed, whole)


def test_streamed_data_is_resumed_in_any_pass(tmp_path, tokenizer):
    def run(folder, resume=None):
        trainer = make(folder, tokenizer, max_steps=13, gradient_accumulation_steps=1)
        rows = trainer.train_dataset.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=5)
        trainer.train_dataset = rows
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    for step in (2, 4, 6, 11):  # within and at the end of the first pass, within the second and the third
        folder = killed_after(step, tmp_path / "whole", tmp_path / f"killed after {step}")
        assert_same(run(folder, resume=True), whole)


def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path, tokenizer, caplog):
    whole = make(tmp_path, tokenizer)
    whole.train()
    expected = load_file(tmp_path / "checkpoint-12/adapter_model.safetensors")["prompt_embeddings"]
    for name in ("checkpoint-12/optimizer.pt", "checkpoint-11/trainer_state.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-7])
    caplog.clear()
    resumed = make(tmp_path, tokenizer)
    resumed.train(resume_from_checkpoint=True)
    lines = [line for line in caplog.messages if "whole" in line or "Resuming" in line]
    assert len(lines) == 2
    assert "checkpoint-12 has" in lines[0] and "checkpoint-11 has" in lines[0]
    assert lines[1] == f"Resuming from {tmp_path / 'checkpoint-10'}."
    assert_same(resumed, whole)
    assert torch.equal(load_file(tmp_path / "checkpoint-12/adapter_model.safetensors")["prompt_embeddings"], expected)


def test_with_no_checkpoint_it_starts_afresh_and_says_so(tmp_path, tokenizer, caplog):
    trainer = make(tmp_path / "new", tokenizer, max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert f"No whole checkpoint in {tmp_path / 'new'}: training starts afresh." in caplog.messages


def test_a_folder_that_is_asked_for_must_be_there_and_whole(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, max_steps=2)
    trainer.train()
    with pytest.raises(PromptTuningError, match=r"resume_from_checkpoint is '.*nowhere', which is no folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    (tmp_path / "checkpoint-2/rng_state.pth").unlink()
    with pytest.raises(PromptTuningError, match=r"checkpoint-2', which lacks rng_state\.pth"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_output_folder_is_no_checkpoint(tmp_path, tokenizer):
    """It has a prompt and the Trainer's state, and no optimizer: both would start anew, without a word."""
    trainer = make(tmp_path, tokenizer, max_steps=2)
    trainer.train()
    with pytest.raises(
        PromptTuningError, match=r"which has no trainer_state\.json\. Give another checkpoint's folder"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    trainer.save_model()
    trainer.save_state()
    with pytest.raises(PromptTuningError, match=r"which has no optimizer's state\. Give another checkpoint's folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptTuningError, match=r"which has no trainer_state\.json"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "empty"))


def test_the_best_prompt_is_found_in_a_folder_that_moved(tmp_path, tokenizer, caplog):
    values = EVALUATED | EARLY
    whole = make(tmp_path / "whole", tokenizer, **values)
    whole.train()
    best, last = whole.state.best_global_step, steps(tmp_path / "whole")[-1]
    assert best < last
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    resumed = make(tmp_path / "moved", tokenizer, **values)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, whole)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "moved" / f"checkpoint-{best}")
    (tmp_path / "moved" / f"checkpoint-{best}" / "adapter_model.safetensors").write_bytes(b"")
    make(tmp_path / "moved", tokenizer, **values).train(resume_from_checkpoint=True)
    assert any("The best prompt so far is lost" in line for line in caplog.messages)


def test_a_full_disk_is_one_error_and_the_older_checkpoint_stays(tmp_path, tokenizer, monkeypatch):
    sealed = []

    def full(folder):
        sealed.append(folder)
        if len(sealed) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(folder)

    seal = resuming.seal
    monkeypatch.setattr(resuming, "seal", full)
    trainer = make(tmp_path, tokenizer, save_total_limit=1)
    with pytest.raises(CheckpointSaveError, match=r"checkpoint-3 could not be saved .*No space left on device"):
        trainer.train()
    assert {f.name for f in tmp_path.iterdir()} == {"checkpoint-2"}
    resumed = make(tmp_path, tokenizer, save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    whole = make(tmp_path / "whole", tokenizer)
    whole.train()
    assert_same(resumed, whole)


@pytest.mark.parametrize("num_virtual_tokens", [20, 100])
def test_a_checkpoint_is_small(num_virtual_tokens, tmp_path, tokenizer):
    """As wide as a backbone of 7B: the prompt, two moments of it, and less than 50 kB."""
    backbone = tiny_model("llama", hidden_size=4096, head_dim=8, num_hidden_layers=1)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=num_virtual_tokens), tokenizer)
    arguments = PromptTuningArguments(output_dir=str(tmp_path), **SAVED | {"max_steps": 1})
    PromptTuningTrainer(model, arguments, train_dataset=ROWS, processing_class=tokenizer, template=TEMPLATE).train()
    sizes = {f.name: f.stat().st_size for f in (tmp_path / "checkpoint-1").iterdir()}
    assert set(sizes) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "optimizer.pt",
        "prompt_tuning.json",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    prompt = num_virtual_tokens * 4096 * 4
    assert 3 * prompt < sum(sizes.values()) < 3 * prompt + 50_000


class TestAnotherRunsCheckpoint:
    """What goes on from a checkpoint has to be of the same kind; else it is said what differs."""

    @pytest.fixture
    def begun(self, tmp_path, tokenizer, messages):
        """Resumes a run of AdamW, linear and fp32 with other arguments."""
        common = dict(max_steps=4, save_strategy="steps", save_steps=2)
        make_trainer(tmp_path, tokenizer, messages, **common).train()

        def again(options=None, **values):
            trainer = make_trainer(tmp_path, tokenizer, messages, trainer=options, **common | values)
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
            return trainer

        return again

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"optim": "sgd"}, "is of a run with optim=adamw_torch.*, and this one has sgd; resume with the same"),
            ({"optim": "adafactor"}, "is of a run with optim=adamw_torch.*, and this one has adafactor"),
            ({"lr_scheduler_type": "cosine"}, "run with lr_scheduler_type=linear, and this one has cosine"),
        ],
    )
    def test_arguments(self, values, message, begun):
        with pytest.raises(PromptTuningError, match=message):
            begun(**values)

    def test_an_optimizer_that_is_given(self, begun):
        sgd = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
        with pytest.raises(PromptTuningError, match="is of a run with another optimizer: it knows no 'dampening'"):
            begun(sgd)

    def test_a_loss_scale(self, begun, monkeypatch, tmp_path):
        (tmp_path / "checkpoint-2/scaler.pt").write_bytes(b"")
        with pytest.raises(PromptTuningError, match="is of a run with fp16, and this one is without"):
            begun()

    def test_the_same_kind_and_what_goes_on(self, begun, caplog):
        begun(optim="adamw_torch")
        assert not [record for record in caplog.records if "goes on:" in record.getMessage()]
        begun(learning_rate=0.5)
        said = "learning_rate is 0.5, and the checkpoint's 0.03 goes on"
        assert any(said in record.getMessage() for record in caplog.records)


def test_another_schedules_state_is_not_taken(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    torch.save(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer).state_dict(), tmp_path / "scheduler.pt")
    with pytest.raises(PromptTuningError, match="is of a run with another schedule than LambdaLR; resume"):
        check_states(str(tmp_path), optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
