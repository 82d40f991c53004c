"""Tiny random backbones that look at pictures, batches for them, and what each gives by hand."""

import torch
import transformers
from torch import Tensor

from tests.shared.tiny_models import VOCAB, H, scale_weights

IMAGE = 390
"""The picture's token; no token from it on is generated."""
START = IMAGE + 2
"""The token in front of a picture, by which Qwen's models count pictures."""
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=H,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=2,
    bos_token_id=1,
)
SEEN = dict(hidden_size=H, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_channels=3)


def tiny_picture_model(name: str) -> transformers.PreTrainedModel:
    """llava, gemma3, qwen2_vl or qwen2_5_vl."""
    torch.manual_seed(0)
    if name == "llava":
        vision = transformers.CLIPVisionConfig(**SEEN, image_size=8, patch_size=4)
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_id=IMAGE
        )
        model = transformers.LlavaForConditionalGeneration(config)
    elif name == "gemma3":
        vision = transformers.SiglipVisionConfig(**SEEN, image_size=8, patch_size=4)
        text = transformers.Gemma3TextConfig(
            **TEXT, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        )
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=IMAGE
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        vision = dict(depth=2, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=1)
        if name == "qwen2_vl":
            vision |= dict(embed_dim=H, hidden_size=H, mlp_ratio=2)
        else:
            vision |= dict(hidden_size=H, intermediate_size=48, out_hidden_size=H, window_size=8)
            vision |= dict(fullatt_block_indexes=[1])
        rope = dict(rope_type="default", mrope_section=[2, 1, 1], rope_theta=100.0)
        kind = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[name]
        config = getattr(transformers, f"{kind}Config")(
            text_config=TEXT | dict(rope_parameters=rope),
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=IMAGE + 1,
            vision_start_token_id=START,
        )
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    if name == "gemma3":
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    scale_weights(model, 3.0)
    return model.eval()


def picture_batch(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Two rows of one picture each, of four tokens; the second row is shorter, and padded at the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 380, (2, 11), generator=generator)
    ids[0, 3:7] = ids[1, 6:10] = IMAGE
    ids[0, 2] = ids[1, 5] = START
    mask = torch.ones_like(ids)
    ids[1, :3] = mask[1, :3] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    types = (ids == IMAGE).long()
    if name.startswith("qwen"):
        batch["pixel_values"] = torch.randn(32, 48, generator=generator)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        batch["mm_token_type_ids"] = types
    else:
        batch["pixel_values"] = torch.randn(2, 3, 8, 8, generator=generator)
    if name == "gemma3":
        batch["token_type_ids"] = types
    return batch


def row_of(batch: dict[str, Tensor], b: int) -> dict[str, Tensor]:
    """One row of a batch, without its pads."""
    real = batch["attention_mask"][b].bool()
    row = {name: value[b : b + 1] for name, value in batch.items()}
    if len(batch["pixel_values"]) != len(real) and "image_grid_thw" in batch:
        row["pixel_values"] = batch["pixel_values"][16 * b : 16 * (b + 1)]
    for name, value in row.items():
        if value.shape == (1, len(real)):
            row[name] = value[:, real]
    return row


@torch.no_grad()
def by_hand(backbone, vectors: Tensor, row: dict[str, Tensor]) -> Tensor:
    """Logits [1, P+T, V] of the backbone alone, its pictures put among the embedded tokens by hand."""
    ids, length = row["input_ids"], len(vectors)
    embeds = backbone.get_input_embeddings()(ids)
    row = {name: value for name, value in row.items() if name not in ("input_ids", "attention_mask")}
    if "pixel_values" in row:
        seen = (
            (row.pop("pixel_values"), row["image_grid_thw"]) if "image_grid_thw" in row else (row.pop("pixel_values"),)
        )
        pictures = backbone.model.get_image_features(*seen, return_dict=True).pooler_output
        pictures = torch.cat(list(pictures)).reshape(-1, embeds.shape[-1])
        embeds = embeds.clone()
        embeds[ids == IMAGE] = pictures
    if "image_grid_thw" in row:
        axes = backbone.model.get_rope_index(ids, row.pop("mm_token_type_ids"), row.pop("image_grid_thw"))[0]
        heads = torch.arange(length).expand(3, 1, length)
        row["position_ids"] = torch.cat([heads, axes + length], dim=2)
    row = {
        name: torch.cat([value.new_zeros(1, length), value], 1) if value.dim() == 2 else value
        for name, value in row.items()
    }
    return backbone(inputs_embeds=torch.cat([vectors[None], embeds], dim=1), use_cache=False, **row).logits


def greedy_by_hand(backbone, vectors: Tensor, row: dict[str, Tensor], steps: int) -> list[int]:
    """The next tokens, each from a pass over all before it."""
    new: list[int] = []
    for _ in range(steps):
        now = dict(row)
        for name in ("input_ids", "token_type_ids", "mm_token_type_ids"):
            if name in row:
                more = torch.tensor([new], dtype=torch.long)
                now[name] = torch.cat([row[name], more if name == "input_ids" else more * 0], dim=1)
        new.append(int(by_hand(backbone, vectors, now)[0, -1, :IMAGE].argmax()))
    return new
