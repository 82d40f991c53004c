"""A run that saves every step, to be interrupted and resumed."""

import random
from pathlib import Path

import torch
from transformers import set_seed

from hf_prompt_tuning import PromptTuningArguments, PromptTuningTrainer
from tests.shared.reference import tiny_prompt_model
from tests.shared.trainers import TEMPLATE

DRAW = random.Random(0)
WORDS = ("never", "came", "again", "nobody", "answers", "thank", "you", "great", "old", "town")
ROWS = [{"message": " ".join(DRAW.choices(WORDS, k=DRAW.randint(1, 9))), "label": str(i % 2 + 1)} for i in range(14)]
SAVED = dict(
    num_train_epochs=3,
    per_device_train_batch_size=4,
    save_strategy="steps",
    save_steps=1,
    logging_steps=2,
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
)
EVALUATED = dict(eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, eval_on_start=True)


def make(folder, tokenizer, name="llama", callbacks=(), **values):
    set_seed(len(str(folder)))  # what came before must not matter
    model = tiny_prompt_model(name, num_virtual_tokens=4, backbone_dropout=name == "gpt2")
    return PromptTuningTrainer(
        model=model,
        args=PromptTuningArguments(output_dir=str(folder), **SAVED | values),
        train_dataset=ROWS,
        eval_dataset=ROWS[:6],
        processing_class=tokenizer,
        template=TEMPLATE,
        callbacks=list(callbacks),
    )


def steps(folder):
    return sorted(int(f.name.split("-")[1]) for f in Path(folder).glob("checkpoint-*"))


def assert_same(resumed, whole):
    assert torch.equal(resumed.model.prompt, whole.model.prompt)
    for name in ("global_step", "best_metric", "best_global_step"):
        assert getattr(resumed.state, name) == getattr(whole.state, name)
