"""transformers' Trainer with a prompt-tuning model that it knows nothing of."""

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_prompt_tuning import DataCollatorForPromptTuning
from tests.shared.reference import tiny_prompt_model

ROWS = [{"input_ids": [5 + i, 6, 7 + i, 8], "labels": [-100, -100, 7 + i, 8]} for i in range(6)]


def vanilla(folder, tokenizer, model=None, callbacks=(), **arguments):
    values = dict(num_train_epochs=2, per_device_train_batch_size=2, learning_rate=3e-2, logging_steps=2)
    values |= dict(save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False)
    return Trainer(
        model=model if model is not None else tiny_prompt_model("llama", num_virtual_tokens=3),
        args=TrainingArguments(output_dir=str(folder), **values | arguments),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        data_collator=DataCollatorForPromptTuning(tokenizer),
        callbacks=list(callbacks),
    )
