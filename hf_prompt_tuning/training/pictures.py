"""Check that a run can learn from pictures."""

from typing import Any

from datasets import IterableDataset
from transformers import TrainingArguments

from ..data.processors import is_processor, tokenizer_in
from ..errors import PromptTuningError


def tokenizer_of(processing_class: Any, teacher: Any, train_dataset: Any, args: TrainingArguments) -> Any:
    """Return the tokenizer of a trainer's processing class, which may be a processor for pictures.

    Raise PromptTuningError for a processor in a run with a teacher, who reads texts alone; or with a stream on several
    processes: Accelerate cuts a stream's batches by rows, and pictures are not one a row.
    """
    name, tokenizer = type(processing_class).__name__, tokenizer_in(processing_class)
    if not is_processor(processing_class):
        return tokenizer
    if args.world_size > 1 and isinstance(train_dataset, IterableDataset):
        raise PromptTuningError(
            f"processing_class is a {name}, the training data is a stream, and {args.world_size} processes train, "
            "over which a stream's batches are cut without their pictures; give a Dataset, or use one process."
        )
    if teacher is not None:
        raise PromptTuningError(
            f"processing_class is a {name}, and a teacher reads texts alone; give its tokenizer, and rows without "
            "pictures."
        )
    return tokenizer
