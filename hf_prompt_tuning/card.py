"""A prompt's model card, with what is known and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import peft
import transformers
from huggingface_hub import ModelCard, ModelCardData

from .config import PromptTuningConfig

if TYPE_CHECKING:
    from .prompt_files import PromptInfo

BODY = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(
    """# A soft prompt{% if base %} for {{ base }}{% endif %}


{{ config.num_virtual_tokens }} learned vectors of width {{ config.token_dim }} ({{ "{:,}".format(trained) }} numbers,
{{ "%.4f" % (100 * trained / total) }} % of the parameters) in front of the input of a frozen
{{ info.backbone.architecture }}{% if info.backbone.revision %} at revision `{{ info.backbone.revision }}`{% endif %}.
They started from {{ start }}.
{% if template %}

## Format

A soft prompt works only with the formatting that it was trained with. `{name}` is a column of the data.

Source:

```
{{ template.source }}
```
{% if template.label_words %}

The answer is one of these, ranked by log-likelihood:

| label | words |
|---|---|
{% for label, words in template.label_words.items() %}
| {{ label }} | {{ words }} |
{% endfor %}
{% else %}

Target:

```
{{ template.target }}
```
{% endif %}
{% endif %}
{% if metrics %}

## Metrics

| metric | value |
|---|---|
{% for name, value in metrics.items() %}
| {{ name }} | {{ "%.4f" % value }} |
{% endfor %}
{% endif %}
{% if info.training %}

## Training

| argument | value |
|---|---|
{% for name, value in info.training.items() %}
| {{ name }} | {{ value }} |
{% endfor %}
{% endif %}

## Use

```python
from transformers import {{ auto_class }}
from hf_prompt_tuning import {{ model_class }}

backbone = {{ auto_class }}.from_pretrained({{ base_literal }})
model = {{ model_class }}.from_pretrained(backbone, "PATH_OR_HUB_ID_OF_THIS_PROMPT")
```

`peft.PeftModel.from_pretrained` loads it too.

Made with hf_prompt_tuning, PEFT {{ peft_version }} and transformers {{ transformers_version }}.
"""
)


def write_card(folder: Path, config: PromptTuningConfig, info: "PromptInfo", parameters: tuple[int, int]) -> None:
    """Writes `README.md` into a prompt's folder.

    Args:
        folder: where.
        config: the prompt's.
        info: what the prompt says of itself.
        parameters: how many numbers train, and how many there are.
    """
    base = config.base_model_name_or_path
    causal = config.task_type == "CAUSAL_LM"
    data = ModelCardData(
        library_name="peft",
        base_model=base,
        tags=["prompt-tuning", "hf_prompt_tuning"],
        pipeline_tag="text-generation" if causal else None,
    )
    body = BODY.render(
        base=base,
        base_literal=repr(base or "PATH_OF_THE_BACKBONE"),
        config=config,
        info=info,
        template=info.template,
        metrics={k: v for k, v in info.metrics.items() if isinstance(v, float | int)},
        trained=config.num_virtual_tokens * config.token_dim,
        total=parameters[1],
        start=_start(info),
        auto_class="AutoModelForCausalLM" if causal else "AutoModelForSeq2SeqLM",
        model_class="PromptTuningModelForCausalLM" if causal else "PromptTuningModelForSeq2SeqLM",
        peft_version=peft.__version__,
        transformers_version=transformers.__version__,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(folder / "README.md")


def _start(info: "PromptInfo") -> str:
    """How the prompt started, as words."""
    known = info.initialization
    return {
        "TEXT": f"the words “{known.get('prompt_tuning_init_text')}”",
        "SAMPLE_VOCAB": f"words drawn from the {known.get('vocab_sample_size')} most common tokens",
        "FIRST_VOCAB": "the first tokens of the vocabulary",
        "CLASS_LABELS": "the label words, and words drawn from the vocabulary",
        "RANDOM": f"random numbers in ±{known.get('random_range')}",
        "PROMPT": "another prompt",
    }.get(known.get("prompt_tuning_init"), "vectors that are not recorded")
