"""A Trainer on several processes: one prompt for all of them, and every row counts once."""

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import Trainer
from transformers.trainer_utils import has_length

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.soft_prompts import SoftPrompts


class DistributedTrainer(Trainer):
    """The part of `PromptTuningTrainer` that is about several processes."""

    def __init__(self, *, args: Any, **kwargs: Any):
        if args.ddp_find_unused_parameters is None:
            # The active prompt is always used, and looking for what is not costs a message a step.
            args.ddp_find_unused_parameters = False
        if args.accelerator_config.dispatch_batches is None:
            # For a stream, Accelerate's default cuts one batch for all, and rows of different lengths make none.
            args.accelerator_config.dispatch_batches = False
        super().__init__(args=args, **kwargs)
        if self.accelerator.is_fsdp2:
            # Prompt and optimizer state are whole, so Trainer saves and loads them as it does without FSDP.
            self.is_fsdp_enabled = False
        if self.args.world_size > 1 and isinstance(self.model, SoftPrompts):
            self._start_alike(self.model)

    @staticmethod
    def _start_alike(model: SoftPrompts) -> None:
        """Gives every process the prompts of the first.

        Raises:
            PromptTuningError: a process has another backbone than the first.
        """
        named = dict(model.prompt_encoder.named_parameters())
        prompts = [{name: parameter.detach().cpu() for name, parameter in named.items()}]
        backbones: list[Any] = [None] * dist.get_world_size()
        dist.broadcast_object_list(prompts, src=0)
        dist.all_gather_object(backbones, model._fingerprint)
        for rank, backbone in enumerate(backbones):
            if backbone != backbones[0]:
                raise PromptTuningError(
                    f"process {rank} has another backbone than process 0 ({backbone['architecture']} and "
                    f"{backbones[0]['architecture']}, or other weights); load the same one on all processes."
                )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(prompts[0][name])

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # DDP would send the whole backbone at the start, and its buffers with every step; all processes have it.
        model = self.accelerator.unwrap_model(self.model)
        every = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        model._ddp_params_and_buffers_to_ignore = [name for name, tensor in every if tensor is not model.prompt]
        if self.args.world_size > 1 and self.model_wrapped is self.model:
            # An evaluation before training leaves the mark of a prepared model, and Accelerate would not make it a
            # distributed one: each process would train a prompt of its own.
            self.model._is_accelerate_prepared = False
        if self.is_deepspeed_enabled and self.deepspeed is not None:
            # An engine that was made for evaluating has no optimizer.
            self.deepspeed.destroy()
            self.deepspeed, self.model_wrapped = None, self.model
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.accelerator.is_fsdp2:
            register_fsdp_forward_method(self.model, "generate")
            # What FSDP2 does not shard it does not average either.
            self._sync_replicated_trainable_parameters(self.model)
        return prepared

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`; FSDP2 shards the backbone and leaves the prompts whole."""
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2:
            plugin = self.accelerator.state.fsdp_plugin
            if plugin.cpu_ram_efficient_loading:
                raise PromptTuningError(
                    "fsdp_cpu_ram_efficient_loading is on, and Accelerate then shards every parameter; set it to "
                    "false, so that the prompt stays whole."
                )
            plugin.ignored_modules = "prompt_encoder"

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, also before training with FSDP2, which takes a model together with its optimizer only.

        Raises:
            PromptTuningError: streamed data, of which several processes count some rows twice.
        """
        if self.args.world_size > 1 and not has_length(dataloader):
            raise PromptTuningError(
                f"the data to evaluate is streamed, and {self.args.world_size} processes would count the rows that "
                "fill up its last batch. Give rows that have a length (Dataset.from_list(list(stream)))."
            )
        if self.accelerator.is_fsdp2 and not self.accelerator._models:
            self.create_optimizer()
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
            self.model_wrapped = self.model
            register_fsdp_forward_method(self.model, "generate")
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """As in `Trainer`, without the rows that fill up the last batch.

        Each process must have as many batches, so rows of the first one are repeated. Here they lose their labels:
        neither loss nor gradient nor this count sees them, and the result is that of one process.
        """
        if batch_samples and self.accelerator.gradient_state.end_of_dataloader and self._fills_up_batches():
            labels = batch_samples[-1]["labels"]
            together = len(labels) * self.args.world_size
            real = len(self.train_dataset) % together or together
            # The first process has the batch's first rows, and so on.
            labels[max(real - self.args.process_index * len(labels), 0) :] = IGNORED
        return super()._get_num_items_in_batch(batch_samples, device)

    def _fills_up_batches(self) -> bool:
        """Whether Accelerate repeats rows; "batch_rebalance" shares out the rows that there are."""
        return (
            self.args.world_size > 1
            and has_length(self.train_dataset)
            and not self.args.dataloader_drop_last
            and self.args.train_sampling_strategy != "batch_rebalance"
        )
