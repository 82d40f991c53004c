"""What happened between a call and the same call: training, other prompts, other weights, another dtype."""

import tempfile
from collections.abc import Callable

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prompt_tuning import PromptTuningConfig

from .prompts import set_vectors, vectors
from .world import World, require


def a_training_step(world: World) -> None:
    """The active prompt moves, through its gradient and an optimizer."""
    weight = world.model.prompt_encoder[world.active].embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    ids = torch.tensor([[21, 22, 23]])
    with torch.enable_grad():
        world.model(input_ids=ids, labels=ids, only_labelled=True).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def a_deleted_prompt(world: World) -> None:
    """A prompt was added, used and deleted; a second one of its name has other vectors."""
    kind = world.model.peft_config[world.active].task_type
    for seed in (50, 51):
        config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM", task_type=kind)
        world.model.add_adapter("gone", config)
        set_vectors(world.model, "gone", vectors(world.backbone, 3, seed))
        with torch.no_grad():
            ids = torch.tensor([[21, 22, 23]])
            world.model(input_ids=ids, labels=ids, only_labelled=True, adapter_names=["gone"])
        if seed == 50:
            world.model.delete_adapter("gone")
    world.model.delete_adapter("gone")


def a_reloaded_prompt(world: World) -> None:
    """The active prompt is saved, spoilt, and loaded again."""
    saved = world.prompt(world.active)
    with tempfile.TemporaryDirectory() as folder:
        world.model.save_pretrained(folder, selected_adapters=[world.active])
        set_vectors(world.model, world.active, torch.zeros_like(saved))
        world.model.load_adapter(folder, world.active, is_trainable=True)
    require(torch.equal(world.prompt(world.active), saved), "a reloaded prompt is another")


def a_merged_lora(world: World) -> None:
    """PEFT's LoRA on the backbone's linear layers is merged into the weights."""
    layers = [name for name, module in world.backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    # PEFT refuses these two of a Mamba; the output embeddings are tied to the input's.
    targets = [name for name in layers if name.rsplit(".", 1)[-1] not in ("out_proj", "conv1d", "lm_head")]
    config = peft.LoraConfig(r=2, lora_alpha=1, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(3)
    trains = {name: parameter.requires_grad for name, parameter in world.backbone.named_parameters()}
    mode = world.backbone.training
    merged = peft.get_peft_model(world.backbone, config).merge_and_unload()
    require(merged is world.backbone, "merging gives another backbone")
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(trains[name])
    vars(merged).pop("peft_config", None)
    merged.train(mode)


def an_edited_weight(world: World) -> None:
    """One layer's weights are changed through `.data`, another's in place, a third's assigned."""
    layers = [module for module in world.backbone.modules() if getattr(module, "weight", None) is not None]
    generator = torch.Generator().manual_seed(4)
    for turn, layer in enumerate(layers):
        weight = layer.weight
        noise = 1 + 0.3 * torch.rand(weight.shape, generator=generator).to(weight.dtype)
        if turn % 3 == 0:
            weight.data *= noise
        elif turn % 3 == 1:
            weight.data = weight.data * noise
        else:
            with torch.no_grad():
                weight.mul_(noise)


def half(world: World) -> None:
    """The model is cast to fp16; its prompts stay as they are."""
    before = world.prompt(world.active)
    world.model.half()
    require(torch.equal(before, world.prompt(world.active)), "casting the model changed a prompt")


CHANGES: dict[str, Callable[[World], None]] = {
    "the same call": lambda world: None,
    "a training step": a_training_step,
    "a deleted prompt": a_deleted_prompt,
    "a reloaded prompt": a_reloaded_prompt,
    "a merged LoRA": a_merged_lora,
    "an edited weight": an_edited_weight,
    "half": half,
}
