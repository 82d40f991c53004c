"""Arguments of the shortest run."""

from hf_prompt_tuning import PromptTuningArguments


def arguments(folder, **values):
    values = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True} | values
    return PromptTuningArguments(output_dir=str(folder), save_strategy="no", use_cpu=True, **values)
