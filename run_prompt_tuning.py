#!/usr/bin/env python
"""Tune a soft prompt for a frozen language model.

    accelerate launch run_prompt_tuning.py CONFIG.yaml [--flag value ...]

`--help` lists every argument. If your task needs more, copy this file and change the copy. The command
`hf-prompt-tuning train` runs the same steps: hf_prompt_tuning/cli/train.py is the same file.
"""

from collections.abc import Sequence
from typing import Any

from transformers import set_seed

from hf_prompt_tuning import EnsembleTrainer, FieldTrainer, PromptTuningTrainer, get_prompt_tuning_model
from hf_prompt_tuning.cli.arguments import Arguments, parse_arguments
from hf_prompt_tuning.cli.main import (
    check_evaluated,
    check_push,
    load_backbone,
    report,
    run,
    save_predictions,
    set_up_logging,
    warn_if_unlearned,
)
from hf_prompt_tuning.cli.pictures import for_pictures
from hf_prompt_tuning.cli.splits import check_rows, load_splits, load_transfer, warn_of_unlearned_labels
from hf_prompt_tuning.cli.tasks import ensemble_members, read_tasks, train_tasks
from hf_prompt_tuning.training.recipes import AUTO


def main(argv: Sequence[str] | None = None) -> None:
    """Train the tasks that the config lists, or one prompt, or an ensemble. `argv` is by default that of `sys`."""
    if (tasks := read_tasks(argv)) is not None:
        return train_tasks(tasks)
    arguments = parse_arguments(argv)
    set_up_logging(arguments.training)
    check_push(arguments.training)

    # The rows of each split, the template that makes text of a row, and rows to evaluate on without training on them.
    with arguments.training.main_process_first(desc="loading the data"):
        splits = load_splits(arguments.data, arguments.training.seed, arguments.model.token)
        check_rows(arguments.training, splits)
        template = arguments.template().with_label_words(splits.get("train"), splits.get("validation"))
        warn_of_unlearned_labels(template, splits)
        transfer = load_transfer(arguments.data, template, arguments.model.token)
        arguments.teacher.complete(arguments.training, template, splits.get("train"))

    trainer = make_trainer(arguments, splits, template)
    train_and_evaluate(trainer, splits, transfer)


def make_trainer(arguments: Arguments, splits: dict[str, Any], template: Any) -> PromptTuningTrainer:
    """Load the frozen backbone, put a new prompt in front of it, and return the trainer of the prompt."""
    args, prompt, model = arguments.training, arguments.prompt, arguments.model
    set_seed(args.seed)
    # Of rows with pictures, the backbone's processor in place of its tokenizer.
    template, pictures = for_pictures(template, splits, arguments.data)
    backbone, tokenizer = load_backbone(model, template, pictures)
    options = {
        "args": args,
        "train_dataset": splits.get("train") if args.do_train else None,
        "eval_dataset": splits.get("validation") if args.do_eval else None,
        "processing_class": tokenizer,
        "template": template,
    }
    members, teacher = ensemble_members(prompt, args.seed, model.token), arguments.teacher.given(model.token)
    configs = [member.config for member in members] or [arguments.prompt_config()]
    if args.recipe == AUTO:
        trainer = FieldTrainer(backbone, prompt_config=configs[0], teacher=teacher, **options)
    elif members:
        trainer = EnsembleTrainer(backbone, members=members, **options)
    else:
        rows = splits.get("train")
        tuned = get_prompt_tuning_model(backbone, configs[0], tokenizer, template, train_dataset=rows)
        trainer = PromptTuningTrainer(tuned, teacher=teacher, **options)
    if not args.do_train:
        check_evaluated(configs, trainer.model)
    for info in trainer.model.prompt_info.values():
        info.data |= arguments.data.described()
    return trainer


def train_and_evaluate(trainer: PromptTuningTrainer, splits: dict[str, Any], transfer: dict[str, Any]) -> None:
    """Train, evaluate, save and predict, each if the arguments ask for it."""
    args = trainer.args
    if trainer.is_world_process_zero():
        trainer.model.print_trainable_parameters()
    untuned = trainer.evaluate_untuned() if args.do_eval else {}  # what the prompt has to beat: the backbone alone
    if args.do_eval:
        report(trainer, "untuned", untuned)
    if args.do_train:
        report(trainer, "train", trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        report(trainer, "eval", metrics)
        if args.do_train:
            warn_if_unlearned(untuned, metrics)
    if transfer:
        report(trainer, "transfer", trainer.evaluate_transfer(transfer))
    if args.do_train:
        trainer.save_model()  # with --push_to_hub, to the Hub as well
    if args.do_predict:
        test = splits.get("test", splits.get("validation"))
        output = trainer.predict(test)
        report(trainer, "test", output.metrics)
        save_predictions(trainer, output, test)


if __name__ == "__main__":
    run(main)
