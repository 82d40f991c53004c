"""Rows of token ids, and the loop that other trainers are compared with."""

import torch
from datasets import Dataset

from hf_prompt_tuning import PromptTuningArguments, PromptTuningTrainer
from tests.shared.reference import ragged_rows

LENGTHS = [7, 3, 12, 5, 9, 4, 6, 11, 5, 8, 3, 10]
COMMON = dict(
    num_train_epochs=3,
    per_device_train_batch_size=3,
    gradient_accumulation_steps=2,
    learning_rate=3e-2,
    max_grad_norm=0.0,
    logging_steps=1,
    save_strategy="no",
    train_sampling_strategy="sequential",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)


def rows_of(lengths=LENGTHS, first_labelled=False):
    rows = ragged_rows(lengths, first_labelled=first_labelled)
    return Dataset.from_list([{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in rows])


def targets_of(data):
    """The same rows for an encoder-decoder: the labels are a text of their own."""
    return data.map(lambda row: {"labels": [label for label in row["labels"] if label != -100]})


def as_tensors(data):
    return [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in data]


def by_hand(model, data, loss_of, batch=6, epochs=3):
    """AdamW with a linear schedule; `loss_of(model, rows)` is the mean over a batch's labelled tokens."""
    rows = as_tensors(data)
    steps = epochs * len(rows) // batch
    optimizer = torch.optim.AdamW([model.prompt], lr=3e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    found = []
    for _ in range(epochs):
        for start in range(0, len(rows), batch):
            loss = loss_of(model, rows[start : start + batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return found, model.prompt.detach()


def ours(folder, tokenizer, model, data, collator=None):
    trainer = PromptTuningTrainer(
        model=model,
        args=PromptTuningArguments(output_dir=str(folder), **COMMON),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        data_collator=collator,
    )
    trainer.train()
    return trainer
