"""Build the command: set up logging, load the backbone, write predictions, and turn errors into exit codes."""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.trainer_utils import PredictionOutput

from ..data.head_template import HeadTemplate
from ..data.picture_columns import undecoded
from ..data.shown_pictures import shown
from ..errors import CheckpointSaveError, PromptMismatchError, PromptTuningError
from ..hub import backbones
from ..models.initialization import saved_start
from ..models.prompt import differences
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig
from ..several.ensemble_trainer import EnsembleTrainer
from ..several.voting import label_record, text_record
from ..training.arguments import PromptTuningArguments
from ..training.learned import nothing_learned
from ..training.push_arguments import check_hub
from ..training.trainer import PromptTuningTrainer
from .arguments import ModelArguments
from .head_arguments import TRAINED_HEADS, head_options
from .head_predictions import head_records, write_records
from .pictures import check_not_of_gguf, processing_class

logger = logging.getLogger(__name__)


def set_up_logging(args: PromptTuningArguments) -> None:
    """Set the log level of this package and of transformers, as the arguments give it for this process."""
    level = args.get_process_log_level()
    logging.basicConfig(format="%(levelname)s:%(name)s:%(message)s", level=logging.WARNING)
    # What a recipe sets, the rounds of a field, and that a prompt is a mean, are for everyone to read.
    asked = args.recipe is not None or args.average_last > 0
    told = asked and args.log_level == "passive" and args.should_log
    logging.getLogger("hf_prompt_tuning").setLevel(logging.INFO if told else level)
    transformers.utils.logging.set_verbosity(level)
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if args.device.type == "cpu" and cores > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        launched = any(name.startswith("ACCELERATE_") for name in os.environ)
        logger.warning(
            "Training uses 1 of %d CPU cores, because OMP_NUM_THREADS is 1%s. To use all, set OMP_NUM_THREADS=%d.",
            cores,
            " (accelerate launch sets it if you do not)" if launched else "",
            cores,
        )


def load_backbone(
    args: ModelArguments, template: Any = None, pictures: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | ProcessorMixin]:
    """Load the backbone, with a head for the template's classes if the task type is of heads, and its tokenizer.

    If the template reads columns of `pictures`, load its processor in place of the tokenizer. Raise PromptTuningError
    if that fails, or the task type is invalid.
    """
    if args.task_type not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", *TRAINED_HEADS):
        raise PromptTuningError(
            f"task_type is {args.task_type!r}; give CAUSAL_LM, SEQ_2_SEQ_LM, {', '.join(TRAINED_HEADS)}, or leave it "
            "out."
        )
    check_not_of_gguf(pictures, args.gguf_file)
    name, hub = args.model_name_or_path, {"revision": args.model_revision, "token": args.token}
    advice, gguf = "Check its name, its revision and your access to it.", args.gguf_file
    options = {"dtype": args.dtype, "attn_implementation": args.attn_implementation}
    if isinstance(template, HeadTemplate):
        options["head"] = partial(head_options, template, task_type=args.task_type)
    backbone, place = backbones.load_backbone(name, args.task_type, hub, advice, gguf_file=gguf, **options)
    return backbone, processing_class(backbone, pictures, template, name, place, hub, advice, gguf_file=gguf)


def report(trainer: PromptTuningTrainer, split: str, metrics: dict[str, Any]) -> None:
    """Print metrics, and write them to `<split>_results.json` and, unless untuned, to `all_results.json`."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics, combined=split != "untuned")


def check_push(args: PromptTuningArguments) -> None:
    """Check a run's pushes (`check_hub`). Raise PromptTuningError if it trains no prompt that could be pushed."""
    if args.push_to_hub and not args.do_train:
        raise PromptTuningError(
            "push_to_hub is on, and do_train is off, so there is no new prompt; leave it out (model.push_to_hub of a "
            "loaded prompt pushes it)."
        )
    check_hub(args)


def check_evaluated(configs: Iterable[PromptTuningConfig], model: SoftPrompts) -> None:
    """Raise PromptMismatchError if a prompt that a run without training evaluates is of another backbone.

    It is the one that a config starts from.
    """
    for config in configs:
        saved = saved_start(config)
        if saved is not None and (different := differences(saved.backbone, model.fingerprint)):
            raise PromptMismatchError(
                f"init_prompt {config.init_prompt!r} is evaluated, and is not a prompt of this backbone: "
                f"{'; '.join(different)}. It was trained on {saved.backbone['name_or_path'] or 'another one'}; give "
                "that as model_name_or_path."
            )


def warn_if_unlearned(untuned: dict[str, float], tuned: dict[str, float], names: Sequence[str] = ("",)) -> None:
    """Log one line for each prompt that is no better than the backbone without it (see `nothing_learned`)."""
    for name in names:
        if line := nothing_learned(untuned, tuned, name):
            logger.warning(line)


def save_predictions(
    trainer: PromptTuningTrainer, output: PredictionOutput, data: Dataset, task: str | None = None
) -> Path | None:
    """Write `predictions.jsonl`: each row's number, input, prediction, score of every label, and reference.

    Rows are numbered from 0, so row 0 is `data[0]`. A score is the log-likelihood of a label's words and EOS. The
    reference is null for a row without a label. For an ensemble, a row has each member's vote. In a run of several
    tasks, the file goes to the folder of its `task`. Return the file, or None on all processes but the first.
    """
    if not trainer.is_world_process_zero():
        return None
    info = trainer.model.info if task is None else trainer.model.prompt_info[task]
    file = Path(trainer.args.output_dir, task or "", "predictions.jsonl")
    if isinstance(info.template, HeadTemplate):
        write_records(file, head_records(trainer.rows.tokenizer, output, data))
        return file
    # A field ends with one prompt, unless its vote is better.
    data = undecoded(data)
    members = trainer.members if isinstance(trainer, EnsembleTrainer) and len(trainer.members) > 1 else []
    words = [info.template.label_words[label] for label in info.template.labels]
    with file.open("w", encoding="utf-8") as lines:
        rows = enumerate(zip(data, output.predictions, output.label_ids, strict=True))
        for number, (row, predicted, reference) in rows:
            record: dict[str, Any] = {"row": number, "input": shown(info.template, row)}
            if members:
                record |= label_record(info.template, members, predicted) if words else text_record(members, predicted)
            elif words:
                record["prediction"] = words[int(np.argmax(predicted))]
                record["scores"] = dict(zip(words, map(float, predicted), strict=True))
            else:
                record["prediction"] = predicted
            if words:
                reference = words[reference] if reference >= 0 else None
            lines.write(json.dumps(record | {"reference": reference}, ensure_ascii=False) + "\n")
    return file


def run(main: Callable[[], None]) -> None:
    """Run the command. An expected error prints one line and sets the exit code.

    Exit codes: 2 for invalid input, 3 for a loss that is not finite, 4 for a full disk or any other failure to write
    a checkpoint or a prompt. After saving, SIGINT (Ctrl-C) gives 130 and SIGTERM gives 143.
    """
    try:
        main()
    except PromptTuningError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        # Start a new line: a progress bar may have left the last line unfinished.
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(3)
    except OSError as error:
        if not isinstance(error, CheckpointSaveError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(4)
