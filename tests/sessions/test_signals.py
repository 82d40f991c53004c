"""SIGTERM and Ctrl-C: the run is saved, ends with a code of its own, and goes on as if nothing had happened."""

import os
import signal
import threading

import pytest
from transformers import TrainerCallback

from hf_prompt_tuning import PromptTuningError, TrainingInterrupted
from hf_prompt_tuning.training import signals as interruption
from hf_prompt_tuning.training.checkpoint_folder import fault
from tests.shared.resumed_runs import EVALUATED, assert_same, make, steps


class Deliver(TrainerCallback):
    """A signal in the middle of a step."""

    def __init__(self, step, signum=signal.SIGTERM):
        self.step, self.signum = step, signum

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def in_the_foreground():
    """A test run in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("case", ["within an epoch", "at its end", "last step", "never saved", "best saved"])
def test_a_signal_saves_after_the_step_and_all_that_is_due(case, tmp_path, tokenizer):
    """At an epoch's last step, after its evaluation: or the resumed run would miss it."""
    step = {"at its end": 8, "last step": 12}.get(case, 6)
    values = EVALUATED | dict(eval_strategy="epoch", save_strategy="epoch", early_stopping_patience=20)
    if case == "never saved":
        values = dict(save_strategy="no")
    if case == "best saved":
        values = EVALUATED | dict(save_strategy="best", metric_for_best_model="accuracy")
    whole = make(tmp_path / "whole", tokenizer, **values)
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    trainer = make(tmp_path / "a", tokenizer, callbacks=[Deliver(step)], save_on_signal=True, **values)
    with pytest.raises(TrainingInterrupted) as ended:
        trainer.train()
    assert (ended.value.code, ended.value.signum) == (143, signal.SIGTERM)
    assert ended.value.checkpoint == str(tmp_path / "a" / f"checkpoint-{step}")
    assert fault(ended.value.checkpoint) == ""
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = make(tmp_path / "a", tokenizer, save_on_signal=True, **values)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, whole)
    logged = [[log.get("eval_loss") for log in t.state.log_history if "eval_loss" in log] for t in (resumed, whole)]
    assert logged[0] == logged[1]


def test_ctrl_c_has_a_code_of_its_own(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, callbacks=[Deliver(2, signal.SIGINT)], save_on_signal=True)
    with pytest.raises(TrainingInterrupted) as ended:
        trainer.train()
    assert ended.value.code == 130
    assert steps(tmp_path) == [1, 2]


def test_no_handler_is_installed_unasked(tmp_path, tokenizer):
    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    make(tmp_path, tokenizer, callbacks=[Look()], max_steps=1).train()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_second_signal_ends_at_once_and_an_echo_does_not(monkeypatch):
    sent, now = [], [100.0]
    monkeypatch.setattr(interruption.os, "kill", lambda pid, signum: sent.append((pid, signum)))
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    with pytest.raises(TrainingInterrupted), interruption.SignalWatch() as watch:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)  # passed on by a launcher
        assert watch.signum == signal.SIGTERM and sent == []
        now[0] += 5
        signal.raise_signal(signal.SIGINT)
        assert sent == [(os.getpid(), signal.SIGINT)]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption.SignalWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        assert watch.signum is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_signals_are_for_the_main_thread(tmp_path, tokenizer):
    def train():
        try:
            make(tmp_path, tokenizer, save_on_signal=True).train()
        except PromptTuningError as error:
            said.append(str(error))

    said = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(said) == 1 and "main thread" in said[0]


def test_one_process_asks_no_device(monkeypatch):
    """A question to a GPU in each step would wait for it."""
    monkeypatch.setattr(interruption, "reduce", None)
    with pytest.raises(TrainingInterrupted), interruption.SignalWatch() as watch:
        assert watch.noted(None) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.noted(None) == signal.SIGTERM
