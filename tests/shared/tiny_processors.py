"""Processors of tiny backbones that see, made without files, and pictures for them."""

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from tests.shared.tiny_models import make_tokenizer
from tests.shared.tiny_pictures import tiny_picture_model

PIXELS = {
    name: pytest.importorskip(
        f"transformers.models.{name}.image_processing_pil_{name}",
        reason="this transformers has no readers of pictures of these names that do without torchvision",
    )
    for name in ("clip", "gemma3", "idefics3", "qwen2_vl")
}
SEEING = ("llava", "gemma3", "idefics3", "smolvlm", "qwen2_5_vl")
"""Backbones that have a processor here. SmolVLM's first models have that of Idefics3."""
CHAT = (  # in the format of SmolVLM's
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>Assistant:' }}{% endif %}"
)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of drawn pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tiny_processor(name: str) -> ProcessorMixin:
    """The processor for the backbone of `seeing_model`."""
    tokenizer = make_tokenizer("llama" if name == "gemma3" else "gpt2")
    token = {"gemma3": "<start_of_image>", "qwen2_5_vl": "<|image_pad|>"}.get(name, "<image>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<end_of_utterance>", "<image>", token, "<end_of_image>"]}
    )
    tokenizer.chat_template = None
    chat = CHAT.replace("<image>", token)
    if name == "llava":
        pixels = PIXELS["clip"].CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        return transformers.LlavaProcessor(
            pixels, tokenizer, patch_size=4, vision_feature_select_strategy="full", chat_template=chat
        )
    if name == "gemma3":
        marks = {"image_token": "<image>", "boi_token": token, "eoi_token": "<end_of_image>"}
        for key, value in marks.items():
            setattr(tokenizer, key, value)
            setattr(tokenizer, f"{key}_id", tokenizer.convert_tokens_to_ids(value))
        pixels = PIXELS["gemma3"].Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
        return transformers.Gemma3Processor(pixels, tokenizer, chat_template=chat, image_seq_length=4)
    if name == "qwen2_5_vl":
        return _qwen(tokenizer, chat)
    pixels = PIXELS["idefics3"].Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    return transformers.Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=chat)


def _qwen(tokenizer: PreTrainedTokenizerFast, chat: str) -> ProcessorMixin:
    """Qwen's processor without its reader of videos, which needs torchvision."""
    processor = object.__new__(transformers.Qwen2_5_VLProcessor)
    processor.tokenizer, processor.video_processor, processor.chat_template = tokenizer, None, chat
    processor.image_processor = PIXELS["qwen2_vl"].Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=1, size={"shortest_edge": 64, "longest_edge": 256}
    )
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = tokenizer.convert_tokens_to_ids(
        [processor.image_token, processor.video_token]
    )
    processor.image_ids, processor.video_ids, processor.audio_ids = (
        [processor.image_token_id],
        [],
        [],
    )  # older ones have
    return processor


def seeing_model(name: str, processor: ProcessorMixin) -> transformers.PreTrainedModel:
    """A tiny backbone with the tokens of a processor."""
    tokenizer = processor.tokenizer
    token = "<image>" if name == "gemma3" else processor.image_token
    return tiny_picture_model(name, tokenizer.convert_tokens_to_ids(token), len(tokenizer) + 3)
