"""A model with a prompt for each template, and texts for its pipelines."""

import torch

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, get_prompt_tuning_model
from tests.shared.tiny_models import tiny_model

THREE = PromptTemplate(
    "{title} {message} ?", label_column="mood", label_words={"a": "great", "b": "awful", "c": "day"}
)
TEXT = PromptTemplate("Message : {message} Answer :", target="{answer}", max_target_length=6)
ROWS = ["never came", "thank you for the quick help", "nobody answers", "a dog", "night and day"]


def made(tokenizer, *templates, name="llama"):
    """A model with one prompt for each template: "default", "p1", …"""
    torch.manual_seed(0)
    config = dict(prompt_tuning_init="RANDOM")
    model = get_prompt_tuning_model(
        tiny_model(name), PromptTuningConfig(num_virtual_tokens=3, **config), tokenizer, templates[0]
    )
    for i, template in enumerate(templates[1:], start=1):
        model.add_adapter(f"p{i}", PromptTuningConfig(num_virtual_tokens=3 + i, **config))
        model.prompt_info[f"p{i}"].template = template
    return model
