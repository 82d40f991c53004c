"""Tiny random backbones that look at pictures, batches for them, and what each gives by hand."""

import torch
import transformers
from torch import Tensor

from tests.shared.tiny_models import VOCAB, H, scale_weights

IMAGE = 390
"""The picture's token; no token from it on is generated."""
OF_ROWS = ("idefics2", "idefics3", "smolvlm")
"""Backbones that take the pictures of a row together."""
KINDS = ("llava", "gemma3", *OF_ROWS, "qwen2_vl", "qwen2_5_vl")
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


def tiny_picture_model(name: str, image: int = IMAGE, words: int = VOCAB) -> transformers.PreTrainedModel:
    """llava, gemma3, idefics2, idefics3, smolvlm, qwen2_vl or qwen2_5_vl.

    A picture has four tokens, whose id is `image`, among so many `words`.
    """
    torch.manual_seed(0)
    text = TEXT | dict(vocab_size=words)
    if name == "llava":
        vision = transformers.CLIPVisionConfig(**SEEN, image_size=8, patch_size=4)
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=transformers.LlamaConfig(**text), image_token_id=image
        )
        model = transformers.LlavaForConditionalGeneration(config)
    elif name == "gemma3":
        vision = transformers.SiglipVisionConfig(**SEEN, image_size=8, patch_size=4)
        gemma = transformers.Gemma3TextConfig(
            **text, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        )
        config = transformers.Gemma3Config(
            text_config=gemma, vision_config=vision, mm_tokens_per_image=4, image_token_id=image
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    elif name in OF_ROWS:
        model = _of_rows(name, image, text)
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
            text_config=text | dict(rope_parameters=rope),
            vision_config=vision,
            image_token_id=image,
            video_token_id=image + 1,
            vision_start_token_id=image + 2,
        )
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    if name == "gemma3":
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    scale_weights(model, 3.0)
    return model.eval()


def _of_rows(name: str, image: int, text: dict) -> transformers.PreTrainedModel:
    """A backbone that takes the pictures of a row together, [B, n, 3, height, width], with a mask of their pixels."""
    kind = {"idefics2": "Idefics2", "idefics3": "Idefics3", "smolvlm": "SmolVLM"}[name]
    vision = SEEN | dict(image_size=16, patch_size=4)
    options = dict(scale_factor=2)
    if name == "idefics2":
        perceiver = dict(hidden_size=H, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=4)
        perceiver |= dict(resampler_head_dim=8, num_key_value_heads=2)
        options = dict(perceiver_config=perceiver)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config=text | dict(model_type="llama"),
        image_token_id=image,
        pad_token_id=0,
        tie_word_embeddings=False,
        **options,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def picture_batch(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Two rows of one picture each, of four tokens; the second row is shorter, and padded at the left."""
    return batch_of(name, picture_rows(name, [(11, 1), (8, 1)], seed), "left")


def picture_rows(name: str, rows: list[tuple[int, int]], seed: int = 0) -> list[dict[str, Tensor]]:
    """Rows of so many tokens and pictures, each alone as the backbone takes it. The pictures are in the middle."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length, count in rows:
        ids = torch.randint(4, 380, (1, length), generator=generator)
        for i in range(count):
            ids[0, 2 + 5 * i] = START
            ids[0, 3 + 5 * i : 7 + 5 * i] = IMAGE
        types = (ids == IMAGE).long()
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        row |= {"mm_token_type_ids": types} if name.startswith("qwen") else {}
        row |= {"token_type_ids": types} if name == "gemma3" else {}
        made.append(row | (_pixels(name, count, generator) if count else {}))
    return made


def _pixels(name: str, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    if name.startswith("qwen"):
        pixels = torch.randn(16 * count, 48, generator=generator)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]] * count)}
    if name not in OF_ROWS:
        return {"pixel_values": torch.randn(count, 3, 8, 8, generator=generator)}
    mask = torch.ones(1, count, 16, 16, dtype=torch.long)
    mask[:, 0, 8:] = 0  # the first picture is half as high as the others
    pixels = torch.randn(1, count, 3, 16, 16, generator=generator) * mask[:, :, None]
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def batch_of(name: str, rows: list[dict[str, Tensor]], side: str) -> dict[str, Tensor]:
    """The batch of rows, padded at one side; pictures one after another, or side by side in each row."""
    width, batch = max(row["input_ids"].shape[1] for row in rows), {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if values[0] is not None and values[0].shape == rows[0]["input_ids"].shape:
            short = [width - value.shape[1] for value in values]
            pads = [(n, 0) if side == "left" else (0, n) for n in short]
            values = [torch.nn.functional.pad(value, pad) for value, pad in zip(values, pads, strict=True)]
        elif name in OF_ROWS:
            most = max(value.shape[1] for value in values if value is not None)
            like = next(value for value in values if value is not None)
            values = [like.new_zeros(1, 0, *like.shape[2:]) if value is None else value for value in values]
            values = [
                torch.cat([value, value.new_zeros(1, most - value.shape[1], *like.shape[2:])], 1) for value in values
            ]
        batch[key] = torch.cat([value for value in values if value is not None])
    return batch


def row_of(batch: dict[str, Tensor], b: int) -> dict[str, Tensor]:
    """One row of a batch of one picture a row, without its pads."""
    real = batch["attention_mask"][b].bool()
    row = {name: value[b : b + 1] for name, value in batch.items()}
    if len(batch["pixel_values"]) != len(real) and "image_grid_thw" in batch:
        row["pixel_values"] = batch["pixel_values"][16 * b : 16 * (b + 1)]
    for name, value in row.items():
        if value.shape == (1, len(real)):
            row[name] = value[:, real]
    return row


def by_hand(backbone, vectors: Tensor, row: dict[str, Tensor]) -> Tensor:
    """Logits [1, P+T, V] of the backbone alone, its pictures put among the embedded tokens by hand."""
    ids, length = row["input_ids"], len(vectors)
    embeds = backbone.get_input_embeddings()(ids)
    row = {name: value for name, value in row.items() if name not in ("input_ids", "attention_mask")}
    if "pixel_values" in row:
        seen = [row.pop("pixel_values")]
        seen += [row[name] for name in ("image_grid_thw",) if name in row]
        seen += [row.pop(name) for name in ("pixel_attention_mask",) if name in row]
        pictures = backbone.model.get_image_features(*seen, return_dict=True).pooler_output
        pictures = torch.cat(list(pictures)).reshape(-1, embeds.shape[-1])
        embeds = embeds.clone()
        embeds[ids == backbone.config.image_token_id] = pictures
    types = row.pop("mm_token_type_ids", None)
    if "image_grid_thw" in row:
        axes = backbone.model.get_rope_index(ids, types, row.pop("image_grid_thw"))[0]
        heads = torch.arange(length).expand(3, 1, length)
        row["position_ids"] = torch.cat([heads, axes + length], dim=2)
    elif types is not None:
        row["position_ids"] = torch.arange(length + ids.shape[1]).expand(3, 1, -1)
    row = {
        name: torch.cat([value.new_zeros(1, length), value], 1) if value.dim() == 2 else value
        for name, value in row.items()
    }
    return backbone(inputs_embeds=torch.cat([vectors[None], embeds], dim=1), use_cache=False, **row).logits


def followed_by(row: dict[str, Tensor], words: list[int]) -> dict[str, Tensor]:
    """The row with these tokens of text behind it."""
    now, more = dict(row), torch.tensor([words], dtype=torch.long)
    for name in ("input_ids", "token_type_ids", "mm_token_type_ids"):
        if name in row:
            now[name] = torch.cat([row[name], more if name == "input_ids" else more * 0], dim=1)
    return now


@torch.no_grad()
def greedy_by_hand(backbone, vectors: Tensor, row: dict[str, Tensor], steps: int) -> list[int]:
    """The next tokens, each from a pass over all before it."""
    new: list[int] = []
    for _ in range(steps):
        logits = by_hand(backbone, vectors, followed_by(row, new))[0, -1]
        new.append(int(logits[: backbone.config.image_token_id].argmax()))
    return new
