"""Nothing on a backbone changes in a call: not while it lasts, and not afterwards."""

from types import SimpleNamespace

import pytest
import torch

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.training.setup import check_devices
from tests.shared.entry_points import FAMILIES, calls, models, no_grad
from tests.shared.reference import pad, ragged_rows, tiny_prompt_model


def snapshot(backbone) -> dict:
    """All that there is to a model: each module's attributes, hooks and parts, weights to the bit, and configs."""
    modules = {
        name: {key: list(value) if isinstance(value, dict) else id(value) for key, value in vars(module).items()}
        for name, module in backbone.named_modules()
    }
    weights = {
        name: (id(weight), weight.data_ptr(), weight._version, weight.clone())
        for name, weight in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    configs = [backbone.config.to_dict(), vars(backbone.config).copy(), backbone.generation_config.to_dict()]
    return {"modules": modules, "weights": weights, "configs": configs}


def unchanged(backbone, before: dict) -> None:
    now = snapshot(backbone)
    assert now["modules"] == before["modules"] and now["configs"] == before["configs"]
    for name, (*traces, weight) in now["weights"].items():
        *expected, numbers = before["weights"][name]
        assert traces == expected and torch.equal(weight, numbers), name


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3n_text"])
def test_a_backbone_seen_from_within_each_call_is_as_it_was(family):
    model, rival = models(family)
    backbone = model.get_base_model()
    seen: list[str] = []
    before: dict = {}

    def look(*_) -> None:
        if before:
            unchanged(backbone, before)
            seen.append("from within")

    # In the layers, and where the logits are made: whatever a call puts in place is there then.
    for module in (list(backbone.modules())[-2], backbone.get_output_embeddings()):
        module.register_forward_hook(look)
    before |= snapshot(backbone)
    for name, call in calls(family, model, rival).items():
        seen.clear()
        no_grad(call)
        assert seen, name
        unchanged(backbone, before)


def test_copies_in_threads_of_one_process_are_refused():
    for name in ("llama", "t5"):
        model = tiny_prompt_model(name)
        with pytest.raises(PromptTuningError, match=r"the model runs in nn\.DataParallel"):
            model._replicate_for_data_parallel()(**pad(ragged_rows([4, 3]), "right"))
    alone = torch.nn.DataParallel(tiny_prompt_model("llama"))  # on one device it copies nothing
    assert alone(**pad(ragged_rows([4, 3]), "right")).logits.shape == (2, 9, 400)


def test_a_process_with_several_gpus_is_refused_before_training():
    two, model = SimpleNamespace(n_gpu=2), tiny_prompt_model("llama")
    with pytest.raises(PromptTuningError, match=r"this process has 2 GPUs, over which Trainer would copy the model"):
        check_devices(model, two)
    model.get_base_model().hf_device_map = {"model": 0, "lm_head": 1}  # parts of one model
    check_devices(model, two)
    check_devices(tiny_prompt_model("llama"), SimpleNamespace(n_gpu=1))
