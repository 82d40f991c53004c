"""The ways that ways.py tries: what each changes in the defaults."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from quality_tasks import Split, Task
from torch import Tensor, nn
from torch.nn.utils import parametrize

BOTTLENECK = 128
"""The width of the network in front of the vectors, where there is one."""
EXAMPLES = {"prompt_tuning_init": "EXAMPLES"}
DROPPED, COPIES = 0.1, 5
"""The share of a row's words that a changed copy lacks, and how often each row is there with its copies."""


@dataclass(frozen=True)
class Way:
    """What differs from the defaults.

    Attributes:
        config, arguments: values of `PromptTuningConfig` and `PromptTuningArguments`.
        change: may change the model before it trains, and returns further arguments of the trainer.
        rows: returns the split with other training rows.
        from_text: whether the prompt starts from the task's text.
        orders: how many prompts are trained, each from the same start, with the rows in another order.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Any], dict[str, Any]] = lambda model: {}
    rows: Callable[[Split], Split] = lambda split: split
    from_text: bool = True
    orders: int = 1


class Residual(nn.Module):
    """A network in front of the vectors, whose output is added to them (Razdaibiedina et al. 2023, section 3)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, BOTTLENECK), nn.ReLU(), nn.Linear(BOTTLENECK, width), nn.LayerNorm(width)
        )
        nn.init.zeros_(self.layers[-1].weight)  # so that the prompt starts where it would start without a network

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors + self.layers(vectors)


def scaled(factor: float) -> Callable[[Any], dict[str, Any]]:
    """Return a change that multiplies the vectors that the prompt starts from."""

    @torch.no_grad()
    def change(model: Any) -> dict[str, Any]:
        model.prompt.mul_(factor)
        return {}

    return change


def network(rate: float) -> Callable[[Any], dict[str, Any]]:
    """Return a change that puts a `Residual` in front of the prompt, with a rate of its own.

    PyTorch computes the vectors of it whenever they are read. To fold it in is to keep what it computes at the end.
    """

    def change(model: Any) -> dict[str, Any]:
        embedding = model.prompt_encoder["default"].embedding
        vectors = embedding.weight
        residual = Residual(vectors.shape[1]).to(vectors.device)
        parametrize.register_parametrization(embedding, "weight", residual)
        groups = [
            {"params": [embedding.parametrizations.weight.original], "lr": 3e-2},
            {"params": list(residual.parameters()), "lr": rate},
        ]
        return {"optimizers": (torch.optim.AdamW(groups, weight_decay=0.0), None)}

    return change


def with_copies(split: Split) -> Split:
    """Give each row changed copies: each word of its texts is left out with a probability of a tenth."""
    draw = random.Random(split.seed)
    copies = [
        {name: dropped(value, draw) if is_text(split.task, name, value) else value for name, value in row.items()}
        for _ in range(COPIES - 1)
        for row in split.train
    ]
    rows = Dataset.from_list([*split.train, *copies], features=split.train.features)
    return replace(split, train=rows)


def is_text(task: Task, name: str, value: Any) -> bool:
    return isinstance(value, str) and name != task.label_column


def dropped(text: str, draw: random.Random) -> str:
    words = text.split()
    return " ".join([word for word in words if draw.random() >= DROPPED] or words)


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "ours": Way(),
        "network, 1e-3": Way(change=network(1e-3)),
        "network, 1e-2": Way(change=network(1e-2)),
        "copies": Way(arguments={"num_train_epochs": 10 / COPIES}, rows=with_copies),
        "label smoothing 0.1": Way(arguments={"label_smoothing_factor": 0.1}),
        "labels' words": Way({"prompt_tuning_init": "CLASS_LABELS"}, from_text=False),
        "examples": Way(EXAMPLES),
        "examples, rate 0.01": Way(EXAMPLES, {"learning_rate": 1e-2}),
        "examples, rate 0.003": Way(EXAMPLES, {"learning_rate": 3e-3}),
        "60 vectors of examples, rate 0.01": Way(EXAMPLES | {"num_virtual_tokens": 60}, {"learning_rate": 1e-2}),
        "120 vectors of examples, rate 0.01": Way(EXAMPLES | {"num_virtual_tokens": 120}, {"learning_rate": 1e-2}),
        "240 vectors of examples, rate 0.01": Way(EXAMPLES | {"num_virtual_tokens": 240}, {"learning_rate": 1e-2}),
        "320 vectors of examples, rate 0.01": Way(EXAMPLES | {"num_virtual_tokens": 320}, {"learning_rate": 1e-2}),
        "160 vectors, rate 0.01": Way({"num_virtual_tokens": 160}, {"learning_rate": 1e-2}),
        "drawn words": Way({"prompt_tuning_init": "SAMPLE_VOCAB"}, from_text=False),
        "twice the start": Way(change=scaled(2.0)),
        "half the start": Way(change=scaled(0.5)),
        "1 vector": Way({"num_virtual_tokens": 1}),
        "5 vectors": Way({"num_virtual_tokens": 5}),
        "50 vectors": Way({"num_virtual_tokens": 50}),
        "100 vectors": Way({"num_virtual_tokens": 100}),
        "cosine": Way(arguments={"lr_scheduler_type": "cosine"}),
        "warm-up": Way(arguments={"warmup_steps": 6}),
        "no clipping": Way(arguments={"max_grad_norm": 0.0}),
        "rate 0.01": Way(arguments={"learning_rate": 1e-2}),
        "rate 0.1": Way(arguments={"learning_rate": 1e-1}),
        "20 epochs": Way(arguments={"num_train_epochs": 20}),
        "mean of 5 orders": Way(orders=5),
    }
)
