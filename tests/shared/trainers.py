"""A short run of one prompt, its templates and its losses."""

from hf_prompt_tuning import PromptTemplate, PromptTuningArguments, PromptTuningTrainer
from tests.shared.reference import tiny_prompt_model

TEMPLATE = PromptTemplate(
    source="Message : {message} Label :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
)
FREE = PromptTemplate(source="Message : {message} Answer :", target="{answer}")


def arguments(folder, **values):
    defaults = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    return PromptTuningArguments(output_dir=str(folder), disable_tqdm=True, **{**defaults, "use_cpu": True, **values})


def make(folder, tokenizer, rows, template=TEMPLATE, model=None, eval_rows=None, trainer=None, **values):
    return PromptTuningTrainer(
        model=model if model is not None else tiny_prompt_model("llama", num_virtual_tokens=4),
        args=arguments(folder, **values),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        template=template,
        **(trainer or {}),
    )


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]
