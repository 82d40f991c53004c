"""A short run of an ensemble's members."""

from hf_prompt_tuning import PromptTemplate
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import make_tokenizer, tiny_model

TEMPLATE = PromptTemplate(source="Message : {message} Label :", label_column="label", label_words={"1": "a", "2": "b"})
FREE = PromptTemplate(source="Message : {message} Answer :", target="{answer}", max_target_length=6)
MEMBERS = [
    PromptTask("one", random_prompt(4), learning_rate=0.3, seed=1),
    PromptTask("two", random_prompt(4), learning_rate=0.003, seed=2),
    PromptTask("three", random_prompt(7), learning_rate=0.1, seed=2),
]


def state_of(model):
    """What a refused run must leave as it was: what trains, the rates of dropout, and the modules."""
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    return trained, {name: (type(module), getattr(module, "p", None)) for name, module in model.named_modules()}


def make(folder, messages, backbone="llama", template=TEMPLATE, members=MEMBERS, evaluate=True, **values):
    rows = [row | {"answer": row["message"][-9:].strip()} for row in messages]
    return EnsembleTrainer(
        tiny_model(backbone) if isinstance(backbone, str) else backbone,
        arguments(folder, num_train_epochs=2, max_grad_norm=1.0, **values),
        members,
        rows,
        rows[:7] if evaluate else None,
        make_tokenizer("t5" if backbone == "t5" else "gpt2"),
        template,
    )
