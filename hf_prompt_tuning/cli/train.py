"""Tune a soft prompt for a frozen language model.

    accelerate launch run_prompt_tuning.py CONFIG.yaml [--flag value ...]

`--help` lists every argument. This file runs as a script, too: copy it and change the copy if your task needs more.
"""

from typing import Any

from transformers import set_seed

from hf_prompt_tuning import PromptTuningTrainer, get_prompt_tuning_model
from hf_prompt_tuning.cli.arguments import Arguments, parse_arguments
from hf_prompt_tuning.cli.ensemble_members import ensemble_members
from hf_prompt_tuning.cli.main import load_backbone, run, save_predictions, set_up_logging
from hf_prompt_tuning.cli.splits import load_splits, load_transfer
from hf_prompt_tuning.cli.tasks import read_tasks, train_tasks
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.training.push_arguments import check_hub


def main() -> None:
    """Read the arguments, make the trainer and run it."""
    if (many := read_tasks()) is not None:
        return train_tasks(many)
    arguments = parse_arguments()
    *_, training_args = arguments
    set_up_logging(training_args)
    check_hub(training_args)
    run_trainer(*make_trainer(arguments))


def make_trainer(arguments: Arguments) -> tuple[PromptTuningTrainer, dict[str, Any], dict[str, Any]]:
    """Return the trainer, the splits of the data, and the data that only transfer is measured on."""
    model_args, data_args, prompt_args, training_args = arguments
    # Rows of text, and how a row becomes a source and a target.
    with training_args.main_process_first(desc="loading the data"):
        splits = load_splits(data_args, training_args.seed, model_args.token)
        train, validation = splits.get("train"), splits.get("validation")
        template = data_args.template().with_label_words(train, validation)
        transfer = load_transfer(data_args, template, model_args.token)

    # The frozen backbone with a new prompt in front of its input.
    set_seed(training_args.seed)
    backbone, tokenizer = load_backbone(model_args)
    common = {
        "args": training_args,
        "train_dataset": train if training_args.do_train else None,
        "eval_dataset": validation if training_args.do_eval else None,
        "processing_class": tokenizer,
        "template": template,
    }
    if members := ensemble_members(prompt_args, training_args.seed, model_args.token):
        # Or with several, which vote.
        trainer = EnsembleTrainer(backbone, members=members, **common)
    else:
        config = prompt_args.config(model_args.task_type, model_args.token)
        model = get_prompt_tuning_model(backbone, config, tokenizer=tokenizer, template=template)
        trainer = PromptTuningTrainer(model, **common)
    for info in trainer.model.prompt_info.values():
        info.data |= data_args.described()
    return trainer, splits, transfer


def run_trainer(trainer: PromptTuningTrainer, splits: dict[str, Any], transfer: dict[str, Any]) -> None:
    """Train, evaluate, save and predict, each if the arguments ask for it."""
    args = trainer.args
    if trainer.is_world_process_zero():
        trainer.model.print_trainable_parameters()

    if args.do_eval:
        # What the prompt has to beat: the backbone alone, told to it in the same format.
        metrics = trainer.evaluate_untuned()
        trainer.log_metrics("untuned", metrics)
        trainer.save_metrics("untuned", metrics, combined=False)

    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()

    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if transfer:
        # What the prompt is worth on data of other domains, which it has not seen.
        metrics = trainer.evaluate_transfer(transfer)
        trainer.log_metrics("transfer", metrics)
        trainer.save_metrics("transfer", metrics)

    # With --push_to_hub, to the Hub as well.
    trainer.save_model()

    if args.do_predict:
        test = splits.get("test", splits.get("validation"))
        output = trainer.predict(test)
        trainer.log_metrics("test", output.metrics)
        trainer.save_metrics("test", output.metrics)
        save_predictions(trainer, output, test)


if __name__ == "__main__":
    run(main)
