"""Short runs of prompts that start from training rows (`EXAMPLES`)."""

from hf_prompt_tuning import PromptTemplate, PromptTuningArguments

TEMPLATE = PromptTemplate("Message : {message} Label :", label_column="label", label_words={"1": "sad", "2": "glad"})
EXAMPLES = {"prompt_tuning_init": "EXAMPLES"}


def arguments(tmp_path, **values):
    return PromptTuningArguments(
        str(tmp_path), max_steps=8, report_to="none", use_cpu=True, save_strategy="no", **values
    )
