"""Let a prompt go on several times: its copies begin with its vectors and the state of its optimizer and schedule."""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@torch.no_grad()
def go_on_from(
    original: nn.Parameter, copies: Iterable[nn.Parameter], optimizer: Optimizer, schedule: LRScheduler
) -> None:
    """Give copies what the original has, so that from here on only their rows differ.

    Args:
        original: the vectors of a prompt, [P, H].
        copies: the vectors of others, [P, H].
        optimizer: has a parameter group for each of them.
        schedule: of the optimizer.
    """
    place = {id(weight): i for i, group in enumerate(optimizer.param_groups) for weight in group["params"]}
    source, schedule = place[id(original)], getattr(schedule, "scheduler", schedule)  # Accelerate may wrap it
    for weight in copies:
        weight.copy_(original)
        if original in optimizer.state:
            optimizer.state[weight] = copy.deepcopy(optimizer.state[original])
        values = {name: value for name, value in optimizer.param_groups[source].items() if name != "params"}
        optimizer.param_groups[place[id(weight)]].update(values)
        schedule.base_lrs[place[id(weight)]] = schedule.base_lrs[source]
