"""The methods of quality.py. Each learns from the same rows, in the same batches, and is ranked by the same `Ranker`.

All run under transformers' Trainer: AdamW, a linear schedule without warm-up, batches of 8 in the seed's order. A
method with several rates is given the one that is best on rows apart; the others have fixed ones.
"""

import copy
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset

# Run as a script, a benchmark finds the files beside it.
from quality_ranking import Ranker, Steps, Watch
from quality_runs import Run
from quality_tasks import Split, stratified
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_prompt_tuning import (
    EnsembleTrainer,
    FieldTrainer,
    PromptTask,
    PromptTuningArguments,
    PromptTuningTrainer,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.data.examples import BETWEEN
from hf_prompt_tuning.data.tokenization import leading_ids
from hf_prompt_tuning.models.backbone import forget_gguf
from hf_prompt_tuning.training.recipes import RECIPES

ORDERS = 5
"""The number of prompts that see the rows in other orders."""
DRAWS = 3
"""The number of prompts that start from other rows."""
EXAMPLES = 8
"""The number of examples in context."""


@dataclass(frozen=True)
class Method:
    """A way to adapt the backbone.

    Attributes:
        adapt: trains, and sets the run's `prompts`.
        rates: the learning rates to choose from; one is fixed, and none is needed where nothing trains.
        epochs: passes over the rows, if not the task's.
        most_rows: the method is left out with more training rows than these.
        place: the `prompt_position` at which rows are ranked.
    """

    adapt: Callable[[Run], None]
    rates: tuple[float, ...] = ()
    epochs: int | None = None
    most_rows: int | None = None
    place: str = "start"


def untuned(run: Run) -> None:
    """Rank the labels' words with the backbone alone."""


def in_context(run: Run) -> None:
    """Put examples before each row, each label's share as in the training rows, and at least one of each label."""
    drawn = stratified(run.labels, max(EXAMPLES, len(set(run.labels))), random.Random(run.seed))
    leading = leading_ids(run.tokenizer)
    between = run.tokenizer(BETWEEN, add_special_tokens=False)["input_ids"]
    ids = [i for row in drawn for i in [*run.rows[row]["input_ids"][len(leading) : -1], *between]]  # without EOS
    with torch.no_grad():
        embeds = run.backbone.get_input_embeddings()(torch.tensor([ids], device=run.backbone.device))[0]
    run.prompts = lambda: [embeds]


def ours(
    run: Run,
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    change: Callable[[nn.Module], dict[str, Any]] = lambda model: {},
) -> None:
    """Train a prompt with PromptTuningTrainer: its defaults, but for what is given.

    `change` may change the model before it trains, and returns further arguments of the trainer.
    """
    template = run.ranker.encoder.template
    given = run.config(**config), run.tokenizer, template
    model = get_prompt_tuning_model(run.backbone, *given, train_dataset=run.raw)
    run.prompts = lambda: [model.prompt.detach()]
    args = PromptTuningArguments(**run.arguments() | arguments)
    run.train(
        PromptTuningTrainer,
        model,
        args,
        train_dataset=run.rows,
        processing_class=run.tokenizer,
        template=template,
        **change(model),
    )


def auto(run: Run, prompt: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Train the recipe auto, which sees more rows. `prompt` has values of the config that are not the defaults."""
    points = run.watch.points
    args = PromptTuningArguments(**run.arguments() | {"recipe": "auto"})
    trainer = run.train_several(FieldTrainer, args, prompt_config=run.config(**prompt))
    kept = [trainer.prompts[name].detach() for name in trainer.members]
    run.prompts = lambda: kept
    run.trained = sum(vectors.numel() for vectors in kept)
    missing = 0 if trainer.learns_from_all else trainer.end.rows
    run.rows_seen = round(trainer.cost * run.epochs * (len(run.rows) - missing))
    if points:
        run.watch.add_point(trainer.state.global_step)


def ensemble(run: Run, members: Sequence[PromptTask], name: str, averaged: str | None = None) -> None:
    """Train several prompts, each the mean of its last half, for their vote; `averaged` is the mean of their vectors.

    They are the ends of the run, by these names.
    """
    points = run.watch.points
    args = PromptTuningArguments(**run.arguments() | {"average_last": 0.5})
    trainer = run.train_several(EnsembleTrainer, args, members=members)
    prompts = [vectors.detach() for vectors in trainer.prompts.values()]
    run.trained = sum(vectors.numel() for vectors in prompts)
    run.ends = {name: prompts} | ({} if averaged is None else {averaged: [torch.stack(prompts).mean(0)]})
    run.prompts, run.rows_seen = lambda: prompts, round(len(prompts) * run.epochs * len(run.rows))
    if points:
        run.watch.add_point(trainer.state.global_step)


def five_orders(run: Run) -> None:
    """Train five prompts from one start, each with the rows in another order."""
    members = [PromptTask(f"order_{i}", run.config(), seed=run.seed, data_seed=i) for i in range(ORDERS)]
    ensemble(run, members, "five_orders", "five_orders_averaged")


def three_draws(run: Run) -> None:
    """Train three prompts by the recipe `examples`, each from other rows."""
    recipe = RECIPES["examples"]
    rate = recipe.training["learning_rate"]
    members = [
        PromptTask(f"draw_{i}", run.config(**recipe.prompt), seed=run.seed + i, learning_rate=rate)
        for i in range(DRAWS)
    ]
    ensemble(run, members, "three_draws")


def peft_prompt(run: Run, P: int, from_text: bool, **arguments: Any) -> None:
    """Train PEFT's prompt, which starts at random, or from words as PEFT's TEXT does."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    model = peft.get_peft_model(run.backbone, config)
    prompt = model.prompt_encoder["default"].embedding.weight
    if from_text and run.text is not None:
        # PEFT would load the tokenizer by its name, and one in a GGUF file has none.
        ids = run.tokenizer(run.text)["input_ids"]
        ids = (ids * -(-P // len(ids)))[:P]
        with torch.no_grad():
            prompt.copy_(run.backbone.get_input_embeddings().weight[ids])
    run.prompts = lambda: [prompt.detach()]
    run.train_plainly(model, **arguments)


def lora(run: Run) -> None:
    """Train a LoRA of rank 16 on all linear layers."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    run.train_plainly(peft.get_peft_model(run.backbone, config))


def full(run: Run) -> None:
    """Train all of the backbone's weights."""
    run.train_plainly(run.backbone)


def of_article(run: Run) -> None:
    """Train PEFT's prompt as PEFT's tutorial does, and the article that `docs/tutorials/` reads."""
    peft_prompt(run, P=8, from_text=True, weight_decay=0.01, max_grad_norm=0)


def of_peft(run: Run) -> None:
    """Train PEFT's prompt with the defaults: its random start, and Trainer's rate. It has no default length."""
    peft_prompt(run, P=20, from_text=False)


def last_and_mean(run: Run) -> None:
    """Train with the defaults. The run has two ends: the prompt of the last step, and the mean of the last half."""
    steps = Steps()
    run.callbacks = [steps]
    ours(run, {}, {"average_last": 0.5})
    run.ends = {"ours": steps.prompts[-1:], "ours_averaged": run.prompts()}


def of_recipe(run: Run, name: str) -> None:
    """Train a prompt by a named recipe, with the batches that all methods share."""
    recipe = RECIPES[name]
    prompt = {key: value for key, value in recipe.prompt.items() if value != "TEXT"}  # which a task's text means
    ours(run, prompt, {name: value for name, value in recipe.training.items() if name not in run.arguments()})


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "untuned": Method(untuned),
        "in_context": Method(in_context, place="auto"),
        "ours": Method(last_and_mean, place="auto"),
        "ours_averaged": Method(last_and_mean, place="auto"),
        "few_shot": Method(partial(of_recipe, name="few_shot"), epochs=15, most_rows=100, place="auto"),
        "examples": Method(partial(of_recipe, name="examples"), place="auto"),
        "three_draws": Method(three_draws, place="auto"),
        "auto": Method(auto, place="auto"),
        "auto_examples": Method(partial(auto, prompt=RECIPES["examples"].prompt), place="auto"),
        "five_orders": Method(five_orders, place="auto"),
        "five_orders_averaged": Method(five_orders, place="auto"),
        "peft_defaults": Method(of_peft, (5e-5,)),
        "peft_article": Method(of_article, (3e-2,)),
        "recipe_peft": Method(partial(of_recipe, name="peft"), epochs=50, most_rows=100, place="auto"),
        "peft_article_50_epochs": Method(of_article, (3e-2,), epochs=50, most_rows=100),
        "lora": Method(lora, (1e-4, 3e-4, 1e-3, 3e-3)),
        "full": Method(full, (1e-5, 3e-5, 1e-4, 3e-4)),
    }
)
REFERENCES = ("peft_article_50_epochs", "peft_article")
"""The methods to whose final accuracy the others' time is told: the first of them that was run.

The article's recipe is for 50 rows, of which it makes 50 epochs.
"""


def prepare(
    place: str,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    rate: float | None,
    epochs: float,
    folder: str,
) -> tuple[Run, Dataset]:
    """Return a run with a copy of the backbone, and the encoded held-out rows. The seed is set.

    Raise PromptTuningError if a row has no label.
    """
    own = copy.deepcopy(backbone).to("cuda" if torch.cuda.is_available() else "cpu")
    forget_gguf(own)  # Trainer refuses a backbone with the mark of a GGUF file
    ranker = Ranker(own, tokenizer, split.task.prompt_template(), place)
    train, held_out = (
        ranker.encoder.encode_dataset(rows, name) for rows, name in ((split.train, "train"), (split.held_out, "test"))
    )
    run = Run(
        backbone=own,
        tokenizer=tokenizer,
        ranker=ranker,
        raw=split.train,
        rows=train,
        text=split.task.text,
        labels=split.task.labels(split.train),
        seed=split.seed,
        epochs=epochs,
        rate=rate,
        folder=folder,
    )
    transformers.set_seed(split.seed)
    return run, held_out


def measure(
    name: str,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    rate: float | None,
    epochs: float,
    points: int = 0,
    watched: int = 0,
) -> dict[str, dict[str, Any]]:
    """Adapt a copy of the backbone to a split's training rows, by the method of the name.

    `points` evaluations of the first `watched` held-out rows make the curve. Return the metrics of the held-out rows,
    and the cost, by the method's name; also those of methods that have the same training. Raise PromptTuningError if a
    row has no label.
    """
    method = METHODS[name]
    with tempfile.TemporaryDirectory() as folder:
        run, held_out = prepare(method.place, backbone, tokenizer, split, rate, method.epochs or epochs, folder)
        seen = held_out.select(range(min(watched, len(held_out))))
        run.watch = Watch(points, lambda: run.ranker.metrics(seen, *run.prompts()))
        method.adapt(run)
    cost = {
        "rows_seen": run.collator.rows if run.rows_seen is None else run.rows_seen,
        "trained": run.trained,
        "seconds": round(run.watch.seconds, 1),
        "wall_seconds": round(run.watch.wall_seconds, 1),
        "curve": run.watch.curve,
    }
    ends = run.ends or {name: run.prompts()}
    return {end: rounded(run.ranker.metrics(held_out, *prompts)) | cost for end, prompts in ends.items()}


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items()}
