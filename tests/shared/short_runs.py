"""Runs of six steps by our trainer and transformers', in any precision."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_prompt_tuning import DataCollatorForPromptTuning, DivergenceCallback
from tests.shared import trainers
from tests.shared.reference import tiny_prompt_model

LAYOUTS = {"t5": [None], "bart": [None]}


def scaled_trainer(trainer, init_scale):
    """The Trainer's own fp16 path, with its gradient scaler, on a CPU: Accelerate takes it on accelerators only."""
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return trainer


def make(folder, tokenizer, rows, model=None, callbacks=None, **values):
    values = {"max_steps": 6} | values
    return trainers.make(
        folder, tokenizer, rows, model=model, eval_rows=rows, trainer={"callbacks": callbacks}, **values
    )


def optimizer_dtypes(trainer):
    [state] = trainer.optimizer.state.values()
    return {value.dtype for value in state.values()}


def vanilla(folder, tokenizer, rows, model=None, callbacks=None, **values):
    """transformers' Trainer on rows of token ids, as a script that knows nothing of us builds it."""
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"use_cpu": True, "disable_tqdm": True, "learning_rate": 3e-2, "report_to": "none"}
    encoded = [tokenizer(row["message"])["input_ids"] + [2] for row in rows]
    return Trainer(
        model=model if model is not None else tiny_prompt_model("llama", num_virtual_tokens=4),
        args=TrainingArguments(output_dir=str(folder), **defaults | values),
        data_collator=DataCollatorForPromptTuning(tokenizer),
        train_dataset=[{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in encoded],
        processing_class=tokenizer,
        callbacks=[*(callbacks or []), DivergenceCallback()],
    )


TRAINERS = pytest.mark.parametrize("build", [make, vanilla], ids=["ours", "transformers"])
