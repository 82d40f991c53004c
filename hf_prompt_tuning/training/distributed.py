"""Train on several processes: all processes share one prompt, and every row counts once."""

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
    """Trainer for several processes; a base class of `PromptTuningTrainer`."""

    def __init__(self, *, args: Any, **kwargs: Any):
        if args.ddp_find_unused_parameters is None:
            # The active prompt is always used. Searching for unused parameters costs a message in each step.
            args.ddp_find_unused_parameters = False
        if args.accelerator_config.dispatch_batches is None:
            # For a stream, Accelerate by default splits one batch over the processes. It cannot join rows of different
            # lengths.
            args.accelerator_config.dispatch_batches = False
        super().__init__(args=args, **kwargs)
        if self.accelerator.is_fsdp2:
            # The prompt and its optimizer state are not sharded, so Trainer saves and loads them as without FSDP.
            self.is_fsdp_enabled = False
        if self.args.world_size > 1 and isinstance(self.model, SoftPrompts):
            self._start_alike(self.model)

    @staticmethod
    def _start_alike(model: SoftPrompts) -> None:
        """Copy the prompts of process 0 to every process.

        Raises:
            PromptTuningError: a process has another backbone than process 0.
        """
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

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # Every process already has the backbone. Without this, DDP would send all of it at the start, and its buffers
        # in every step.
        model = self.accelerator.unwrap_model(self.model)
        every = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        model._ddp_params_and_buffers_to_ignore = [name for name, tensor in every if tensor is not model.prompt]
        if self.args.world_size > 1 and self.model_wrapped is self.model:
            # An evaluation before training marks the model as prepared. Accelerate would then not wrap it in DDP, and
            # each process would train a prompt of its own.
            self.model._is_accelerate_prepared = False
        if self.is_deepspeed_enabled and self.deepspeed is not None:
            # An engine that was made for evaluation has no optimizer.
            self.deepspeed.destroy()
            self.deepspeed, self.model_wrapped = None, self.model
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.accelerator.is_fsdp2:
            register_fsdp_forward_method(self.model, "generate")
            # FSDP2 does not average the gradients of parameters that it does not shard.
            self._sync_replicated_trainable_parameters(self.model)
        return prepared

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator as `Trainer` does. FSDP2 shards the backbone but not the prompts.

        Raises:
            PromptTuningError: `fsdp_cpu_ram_efficient_loading` is on.
        """
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
        """Evaluate as `Trainer` does, with FSDP2 also before training.

        FSDP2 accepts a model only together with its optimizer, so both are prepared here.

        Raises:
            PromptTuningError: the data is streamed and there are several processes, which would count rows twice.
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
        """Count the labelled tokens as `Trainer` does, without the rows that fill up the last batch.

        Every process needs the same number of batches, so Accelerate repeats rows of the first batch. This method
        removes the labels of the repeated rows. So they do not count in the loss, the gradient or this number, and the
        result equals that of one process.
        """
        if batch_samples and self.accelerator.gradient_state.end_of_dataloader and self._fills_up_batches():
            labels = batch_samples[-1]["labels"]
            together = len(labels) * self.args.world_size
            real = len(self.train_dataset) % together or together
            # Process 0 has the first rows of the batch, process 1 the next ones, and so on.
            labels[max(real - self.args.process_index * len(labels), 0) :] = IGNORED
        return super()._get_num_items_in_batch(batch_samples, device)

    def _fills_up_batches(self) -> bool:
        """Tell whether Accelerate repeats rows. With "batch_rebalance" it repeats none."""
        return (
            self.args.world_size > 1
            and has_length(self.train_dataset)
            and not self.args.dataloader_drop_last
            and self.args.train_sampling_strategy != "batch_rebalance"
        )
