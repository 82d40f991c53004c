"""A decoding loop written by hand: `past_key_values` of one call go into the next."""

from typing import Any

import torch
from hypothesis import strategies as st

from .. import oracle
from ..families import CAUSAL
from ..prompts import asked
from ..rows import rows
from ..world import Setting, World
from .base import Call, EntryPoint, batch, prompts_of
from .generate import Generation


class DecodingLoop(EntryPoint):
    """Each step's logits, of the tokens that the loop itself has chosen."""

    name, cases = "decoding loop", 250
    # The states of these two are no `past_key_values`.
    families = [name for name in CAUSAL if name not in ("mamba", "rwkv")]  # noqa: RUF012

    def arguments(self, draw: Any, setting: Setting) -> Generation:
        drawn = draw(rows())
        return Generation(
            rows=drawn,
            asked=draw(asked(len(setting.prompts), len(drawn.lengths))),
            grad=False,
            style="ids",
            new=draw(st.integers(1, 4)),
        )

    @torch.no_grad()
    def call(self, world: World, call: Generation) -> Any:
        given = batch(world, call)
        inputs, found = given.inputs, []
        last = torch.stack([columns[-1] for columns in given.columns])
        past = None
        with call.asked.within(world.model):
            for _ in range(call.new):
                out = world.model(**inputs, **call.asked.arguments, past_key_values=past, use_cache=True)
                past = out.past_key_values
                at = last + out.logits.shape[1] - given.input_ids.shape[1] if len(found) == 0 else -1
                found.append(out.logits[torch.arange(len(last)), at])
                inputs = {"input_ids": found[-1].argmax(-1)[:, None]} | {
                    name: torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                    for name, mask in inputs.items()
                    if name == "attention_mask"
                }
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def check(self, world: World, call: Call, got: Any) -> None:
        given = batch(world, call)
        for row, name in enumerate(prompts_of(world, call)):
            new = got[row].argmax(-1)
            expected = oracle.step_logits(world.bare, world.prompt(name), given.texts[row], new)
            world.require_close(f"logits of row {row}", got[row], expected)
