"""Calls with a prompt that stands behind a head: rows that begin with it, or do not, among rows of other prompts."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hf_prompt_tuning import PromptTuningConfig

from .. import oracle
from ..families import CAUSAL, LANGUAGE, VOCAB
from ..prompts import NO_PROMPT, Asked, names_of, set_vectors, vectors
from ..rows import IGNORED, Batch, rows
from ..world import Setting, World, require
from .base import Call, EntryPoint, batch

PLACED, HEAD = "placed", (9, 10, 11)
KINDS = ("labelled", "logits", "candidates", "generate")


@dataclass(frozen=True)
class Placed(Call):
    """A call, as it is drawn: the length of the head, whether rows begin with it, and which side is padded."""

    head: int = 1
    begins: bool = True
    side: str = "right"


class Places(EntryPoint):
    """Labelled tokens, logits, candidates and greedy tokens."""

    name, cases = "a prompt behind a head", 700
    dtypes = ("float32",)
    # A head's tokens have vectors of their own in each layer, of which the oracle knows nothing.
    families = [  # noqa: RUF012
        name for name, family in LANGUAGE.items() if "hidden_size_per_layer_input" not in family.values
    ]

    def arguments(self, draw: Any, setting: Setting) -> Placed:
        drawn = draw(rows(mask=True))
        known = [PLACED, PLACED, *names_of(len(setting.prompts)), NO_PROMPT]
        return Placed(
            rows=drawn,
            asked=Asked(tuple(draw(st.sampled_from(known)) for _ in drawn.lengths), "no"),
            grad=draw(st.booleans()),
            style=draw(st.sampled_from(KINDS[: 4 if setting.family in CAUSAL else 1])),
            head=draw(st.integers(1, 3)),
            begins=draw(st.booleans()),
            side=draw(st.sampled_from(["right", "left"])),
        )

    def prepare(self, world: World, call: Placed) -> None:
        config = PromptTuningConfig(
            num_virtual_tokens=3,
            prompt_tuning_init="RANDOM",
            prompt_position="system" if call.head > 1 else "after_bos",
            head_token_ids=HEAD[: call.head],
            task_type=world.model.peft_config[world.active].task_type,
        )
        world.model.add_adapter(PLACED, config)
        set_vectors(world.model, PLACED, vectors(world.backbone, 3, 60))

    def call(self, world: World, call: Placed) -> Any:
        given, inputs = self._inputs(world, call)
        model = world.model
        with torch.set_grad_enabled(call.grad and call.style == "labelled"):
            if call.style == "candidates":
                return model(**inputs, candidates=[[20, 21], [22]]).scores
            if call.style == "generate":
                pad = world.family.token("pad")
                pad = world.family.token("eos") if pad is None else pad
                made = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=1, pad_token_id=pad)
                return made[:, inputs["input_ids"].shape[1] :]
            if call.style == "logits":
                return model(**inputs, use_cache=False).logits
            return model(**inputs, labels=given, only_labelled=True)

    def _inputs(self, world: World, call: Placed) -> tuple[Tensor, dict[str, Any]]:
        """The labels, and the other arguments: the rows once more, with heads, padded at one side."""
        given, head = batch(world, call), torch.tensor(HEAD[: call.head])
        texts, labels = [], []
        for name, text, target in zip(call.asked.names, given.texts, given.targets, strict=True):
            front = head if name == PLACED and call.begins else head[:0]
            texts.append(torch.cat([front, text]))
            labels.append(target if world.family.is_encoder_decoder else torch.cat([front * 0 + IGNORED, target]))
        pad = torch.nn.utils.rnn.pad_sequence
        side = {"batch_first": True, "padding_side": call.side}
        ids, mask = pad(texts, **side), pad([torch.ones_like(text) for text in texts], **side)
        wanted = given.labels if world.family.is_encoder_decoder else pad(labels, padding_value=IGNORED, **side)
        return wanted, {"input_ids": ids, "attention_mask": mask, "adapter_names": list(call.asked.names)}

    def check(self, world: World, call: Placed, got: Any) -> None:
        given: Batch = batch(world, call)
        with torch.no_grad():
            head = oracle.embedded(world.bare, torch.tensor(HEAD[: call.head]))
            prompts = {name: world.prompt(name) for name in {*call.asked.names, NO_PROMPT}}
            if PLACED in prompts:
                prompts[PLACED] = torch.cat([head, prompts[PLACED].to(head.dtype)])
            for row, (name, text) in enumerate(zip(call.asked.names, given.texts, strict=True)):
                self._check_row(world, call, row, (prompts[name], text, given.targets[row]), got)

    def _check_row(self, world: World, call: Placed, row: int, right: tuple, got: Any) -> None:
        prompt, text, target = right
        if call.style == "labelled":
            expected, targets = oracle.predictions(world.bare, prompt, text, target)
            require(torch.equal(got.targets[got.rows == row], targets), f"targets of row {row}")
            world.require_close(f"logits of row {row}", got.logits[got.rows == row], expected)
        elif call.style == "candidates":
            scores = [oracle.score(world.bare, prompt, text, torch.tensor(words)) for words in ([20, 21], [22])]
            world.require_close(f"scores of row {row}", got[row], torch.stack(scores))
        elif call.style == "logits":
            require(got.shape[2] == VOCAB, "shape of the logits")
            columns = self._inputs(world, call)[1]["attention_mask"][row].nonzero()[-len(text) :, 0]
            columns = columns + got.shape[1] - self._inputs(world, call)[1]["input_ids"].shape[1]
            expected = oracle.logits(world.bare, prompt, text)[-len(text) :]
            world.require_close(f"logits of row {row}", got[row, columns], expected)
        else:
            ends = world.bare.generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [ends]
            said = got[row].tolist()
            said = said[: next((i + 1 for i, token in enumerate(said) if token in ends), len(said))]
            expected = oracle.step_logits(world.bare, prompt, text, torch.tensor(said))
            chosen = expected.gather(1, torch.tensor(said)[:, None])[:, 0]
            world.require_close(f"the best logits of row {row}", chosen, expected.max(1).values)
