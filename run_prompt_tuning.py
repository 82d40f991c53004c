#!/usr/bin/env python
"""Tunes a soft prompt for a frozen language model.

    accelerate launch run_prompt_tuning.py CONFIG.yaml [--flag value ...]

Every argument is told by --help. Copy this file and change it where your task needs more.
"""

from transformers import set_seed
from transformers.utils.logging import get_logger

from hf_prompt_tuning import PromptTuningTrainer, get_prompt_tuning_model
from hf_prompt_tuning.cli.arguments import parse_arguments
from hf_prompt_tuning.cli.ensemble_members import ensemble_members
from hf_prompt_tuning.cli.main import load_backbone, run, save_predictions, set_up_logging
from hf_prompt_tuning.cli.splits import load_splits, load_transfer
from hf_prompt_tuning.cli.tasks import read_tasks, train_tasks
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.training.push_arguments import check_hub

logger = get_logger(__name__)


def main() -> None:
    if (many := read_tasks()) is not None:
        return train_tasks(many)

    model_args, data_args, prompt_args, training_args = parse_arguments()
    set_up_logging(training_args)
    check_hub(training_args)

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
    model = trainer.model
    for info in model.prompt_info.values():
        info.data |= data_args.described()
    if trainer.is_world_process_zero():
        model.print_trainable_parameters()

    if training_args.do_eval:
        # What the prompt has to beat: the backbone alone, told to it in the same format.
        metrics = trainer.evaluate_untuned()
        trainer.log_metrics("untuned", metrics)
        trainer.save_metrics("untuned", metrics, combined=False)

    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()

    if training_args.do_eval:
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

    if training_args.do_predict:
        test = splits.get("test", validation)
        output = trainer.predict(test)
        trainer.log_metrics("test", output.metrics)
        trainer.save_metrics("test", output.metrics)
        save_predictions(trainer, output, test)


if __name__ == "__main__":
    run(main)
