"""Train on several processes: all processes share one prompt, and every row counts once."""

import math
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.soft_prompts import SoftPrompts


def set_defaults(args: TrainingArguments) -> None:
    """Set the arguments of DDP and Accelerate that prompt tuning needs and that the caller left open."""
    if args.ddp_find_unused_parameters is None:
        # The active prompt is always used. Searching for unused parameters costs a message in each step.
        args.ddp_find_unused_parameters = False
    if args.accelerator_config.dispatch_batches is None:
        # For a stream, Accelerate by default splits one batch over the processes. It cannot join rows of different
        # lengths.
        args.accelerator_config.dispatch_batches = False


def share_prompts(model: SoftPrompts) -> None:
    """Copy the prompts of process 0 to every process. Raise PromptTuningError if one has another backbone."""
    named = dict(model.prompt_encoder.named_parameters())
    prompts = [{name: parameter.detach().cpu() for name, parameter in named.items()}]
    backbones: list[Any] = [None] * dist.get_world_size()
    dist.broadcast_object_list(prompts, src=0)
    dist.all_gather_object(backbones, model.fingerprint)
    for rank, backbone in enumerate(backbones):
        if backbone != backbones[0]:
            raise PromptTuningError(
                f"process {rank} has another backbone than process 0 ({backbone['architecture']} and "
                f"{backbones[0]['architecture']}, or other weights); load the same one on all processes."
            )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(prompts[0][name])


def keep_backbone_local(model: SoftPrompts) -> None:
    """Let DDP send the prompt only, with the head that trains with it.

    Every process already has the backbone. DDP would send all of it at the start, and its buffers in every step.
    """
    own = {id(tensor) for tensor in model.prompt_encoder[model.active_adapter].parameters()}
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    model._ddp_params_and_buffers_to_ignore = [name for name, tensor in tensors if id(tensor) not in own]


def forget_evaluation(trainer: Trainer) -> None:
    """Undo what an evaluation before training prepared, because a training prepares it otherwise."""
    if trainer.args.world_size > 1 and trainer.model_wrapped is trainer.model:
        # An evaluation marks the model as prepared. Accelerate would then not wrap it in DDP, and each process would
        # train a prompt of its own.
        trainer.model._is_accelerate_prepared = False
    if trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        # An engine that was made for evaluation has no optimizer.
        trainer.deepspeed.destroy()
        trainer.deepspeed, trainer.model_wrapped = None, trainer.model


def keep_prompts_whole(trainer: Trainer) -> None:
    """Let FSDP2 shard the backbone but not the prompts.

    Raise PromptTuningError if `fsdp_cpu_ram_efficient_loading` is on.
    """
    if not trainer.accelerator.is_fsdp2:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        raise PromptTuningError(
            "fsdp_cpu_ram_efficient_loading is on, and Accelerate then shards every parameter; set it to "
            "false, so that the prompt stays whole."
        )
    plugin.ignored_modules = "prompt_encoder"


def check_evaluation_data(dataloader: Any, args: TrainingArguments) -> None:
    """Raise PromptTuningError for streamed data on several processes, which would count rows twice."""
    if args.world_size > 1 and not has_length(dataloader):
        raise PromptTuningError(
            f"the data to evaluate is streamed, and {args.world_size} processes would count the rows that "
            "fill up its last batch. Give rows that have a length (Dataset.from_list(list(stream)))."
        )


def unlabel_repeated_rows(labels: torch.Tensor, rows: Any, args: TrainingArguments) -> None:
    """Remove, in place, this process's labels of the rows that fill up the last batch of the training data `rows`.

    Every process needs the same number of batches, so Accelerate repeats rows of the first batch (with
    "batch_rebalance" it repeats none). Without labels they do not count in the loss and the gradient, and the result
    equals that of one process.
    """
    none_repeated = args.dataloader_drop_last or args.train_sampling_strategy == "batch_rebalance"
    if args.world_size <= 1 or not has_length(rows) or none_repeated:
        return
    together = len(labels) * args.world_size
    real = len(rows) % together or together
    # Process 0 has the first rows of the batch, process 1 the next ones, and so on.
    nothing = math.nan if labels.is_floating_point() else IGNORED  # a float of -100 is a number to learn
    labels[max(real - args.process_index * len(labels), 0) :] = nothing
