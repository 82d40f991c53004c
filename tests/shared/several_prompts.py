"""Arguments, prompts and templates of a run with several prompts."""

from hf_prompt_tuning import PromptTemplate, PromptTuningArguments, PromptTuningConfig

REVIEWS = PromptTemplate(source="{text} film plot", label_column="mood")


def arguments(folder, **values):
    defaults = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "weight_decay": 0.1,
        "max_grad_norm": 0.001,
        "warmup_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return PromptTuningArguments(output_dir=str(folder), **{**defaults, **values})


def random_prompt(length):
    return PromptTuningConfig(num_virtual_tokens=length, prompt_tuning_init="RANDOM")
