"""The hooks of `Trainer` that this package overrides or calls although they are private or undocumented.

transformers may rename such a hook in any release. Python would not notice: our method would no longer run. So their
names are checked against the installed `Trainer`. Each comes with the oldest release of transformers that we know to
have it, and with what we need it for.
"""

from transformers import Trainer

from ..compat.transformers import TRANSFORMERS, needed_hooks
from ..errors import PromptTuningError

METHODS = {
    # data
    "_get_dataloader": ("4.53", "reads evaluation rows completely and in order"),
    "_get_eval_sampler": ("4.21", "keeps evaluation rows in order, however training rows are grouped"),
    "_get_train_sampler": ("4.21", "seeds batches of similar length, so that a resumed run gets the same ones"),
    "_prepare_inputs": ("4.21", "moves a batch to the device"),
    # training
    "_clip_grad_norm": ("5.3", "clips the gradient of each of several prompts by itself"),
    "_evaluate": ("4.42", "skips eval_on_start in a resumed run"),
    "_get_num_items_in_batch": ("4.57", "does not count rows that are repeated for several processes"),
    "_init_training_state": ("5.3", "finds the place in streamed data, and the best checkpoint, of a resumed run"),
    "_maybe_log_save_evaluate": ("4.21", "ends a run after a signal, with everything that is due at the step"),
    "_move_model_to_device": ("4.21", "places the best prompt of a search"),
    "_prepare_for_training": ("5.3", "keeps DDP from sending the backbone, and undoes an evaluation"),
    "_set_signature_columns_if_needed": ("4.21", "keeps the columns of a teacher's rows, too"),
    "_run_epoch": ("5.3", "ends a run after a signal or if nothing is left; sets the epoch of several processes"),
    "_sync_replicated_trainable_parameters": ("5.19", "averages a prompt's gradient over FSDP2's processes"),
    "call_model_init": ("4.21", "gives a new model the trainer's template and layout"),
    "compute_loss_context_manager": ("4.21", "evaluates in the training's precision"),
    "create_accelerator_and_postprocess": ("4.30", "keeps FSDP2 from sharding prompts"),
    "get_total_train_batch_size": ("4.53", "counts the rows of mixed batches"),
    "set_initial_training_values": ("4.50", "runs no step with max_steps=0"),
    # checkpoints
    "_determine_best_metric": ("4.50", "refuses a metric that an evaluation does not return, and warns of NaN"),
    "_get_output_dir": ("4.30", "writes a checkpoint in a folder of its own until it is complete"),
    "_load_from_checkpoint": ("4.21", "keeps the template and classes of the run that goes on"),
    "_load_best_model": ("4.21", "loads prompts of any name"),
    "_load_optimizer_and_scheduler": ("4.21", "reads checkpoints without pickles, and compares their types"),
    "_load_rng_state": ("4.21", "reads checkpoints without pickles"),
    "_load_scaler": ("4.50", "reads checkpoints without pickles"),
    "_save": ("4.21", "saves prompts, without the pickle of the arguments and the tokenizer's files"),
    "_save_checkpoint": ("4.21", "renames a checkpoint when it is complete"),
    # Hub
    "_finish_current_push": ("4.37", "gives up waiting for a Hub that hangs"),
    "_push_from_checkpoint": ("4.21", "pushes a prompt's own files, without pickles"),
}
ATTRIBUTES = {
    "_created_lr_scheduler": ("4.37", "tells that several prompts have their own schedules"),
    "_eval_dataloaders": ("4.42", "keeps the persistent workers of the trainer's own evaluation data"),
    "_loss_shifts_labels": ("5.10", "counts the label of the first token, which the prompt predicts"),
    "_signature_columns": ("4.21", "keeps only the columns that the collator reads"),
    "label_smoother": ("4.21", "leaves label smoothing to the model"),
    "model_accepts_loss_kwargs": ("4.46", "gives the model the number of labelled tokens in a step"),
    "push_in_progress": ("4.21", "has the pushes of checkpoints that are running"),
}


def check_hooks(trainer: type = Trainer) -> None:
    """Raise PromptTuningError if the installed `Trainer`, or another class, lacks a hook."""
    codes = [method.__code__ for method in vars(trainer).values() if hasattr(method, "__code__")]
    names = {name for code in codes for name in code.co_names}  # of all attributes that a method reads or sets
    lacking = {name: hook for name, hook in METHODS.items() if not callable(getattr(trainer, name, None))}
    lacking |= {name: hook for name, hook in ATTRIBUTES.items() if name not in names}
    if needed := needed_hooks(lacking):
        listed = "; ".join(f"{name}, which {lacking[name][1]}" for name in needed)
        raise PromptTuningError(
            f"the Trainer of transformers {TRANSFORMERS} has no {listed}. Install the version of "
            "transformers that hf_prompt_tuning asks for (pip install 'hf_prompt_tuning[train]')."
        )
