"""A backbone in shards gives what a whole one does: `sharded_session.py` on two gloo processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.shared.versions import AVERAGES_PROMPTS, SHARDS_AT_LOADING, SHARDS_ON_CPUS

runs_sharded = pytest.mark.skipif(not SHARDS_ON_CPUS, reason="torch does not run what FSDP2 shards on CPUs")
REFUSED = "FSDP2 is on, whose processes would train different prompts"


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What each process saw: a "whole" and a "sharded" half, with the same entries."""
    folder = tmp_path_factory.mktemp("sharded")
    session = "tests.sessions.sharded_session"
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", session]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in (0, 1)]
    assert [(process["rank"], process["world"]) for process in found] == [(0, 2), (1, 2)]
    return found


def alike(got, expected, tolerance=1e-5):
    """Whether two trees of numbers and texts are the same, numbers to `tolerance` times the largest of a list."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            alike(got[key], value, tolerance)
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict | str):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            alike(one, other, tolerance)
    elif isinstance(expected, list | float):
        expected = np.array(expected)
        np.testing.assert_allclose(np.array(got), expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-6))
    else:
        assert got == expected


@runs_sharded
@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_prompts_start_from_a_sharded_embedding(name, facts):
    for process in facts:
        whole, sharded = process["whole"]["started"][name], process["sharded"]["started"][name]
        assert whole.pop("kinds") == ["Parameter"] and sharded.pop("kinds") == ["DTensor"]
        assert sharded == whole  # every number and the fingerprint's hash
        assert sharded["prompt"] == "Parameter" and sharded["fingerprint"]["embedding"]["hash"]


@runs_sharded
@pytest.mark.parametrize(
    ("name", "layout"),
    [("llama", "padded"), ("llama", "cached"), ("llama", "packed"), ("gpt2", "packed"), ("gemma", "packed")],
)
def test_loss_gradient_scores_and_texts_are_a_whole_backbones(name, layout, facts):
    """The processes' batches take different numbers of passes, and one has no label. Gemma is in bf16, whose rounding
    differs where a whole backbone ranks behind a computed prompt, and a sharded one computes it with the texts."""
    for process in facts:
        whole, sharded = (process[half][f"{name} {layout}"] for half in ("whole", "sharded"))
        alike(sharded, whole, 1e-3 if name == "gemma" else 1e-5)
        assert np.abs(whole[0]["gradient"]).max() > 1e-3
    assert facts[1]["sharded"][f"{name} {layout}"][2]["loss"] == 0.0
    assert np.abs(facts[1]["sharded"][f"{name} {layout}"][2]["gradient"]).max() == 0.0


@runs_sharded
def test_training_a_backbone_that_transformers_sharded(facts):
    """`from_pretrained(distributed_config=…)`, with gradient accumulation, weight decay and an uneven last batch.

    The head is the embeddings bit for bit, and the optimizer's state is of the P rows alone.
    """
    for process in facts:
        if AVERAGES_PROMPTS:
            alike(process["sharded"]["trained"], process["whole"]["trained"])
            for half in ("sharded", "whole"):
                trained = process[half]["trained"]
                assert trained["head"] == trained["embeddings"] and len(trained["head"]) == 1
                assert trained["states"] == [[4, 32]] * 2
        elif SHARDS_AT_LOADING:
            assert REFUSED in process["sharded"]["trained"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_training_through_accelerates_fsdp2(name, facts):
    """As examples/accelerate/fsdp2.yaml says, with evaluation before training and by generation (GPT-2)."""
    if not (SHARDS_ON_CPUS and AVERAGES_PROMPTS):
        refused = REFUSED if SHARDS_ON_CPUS else f"an argument that PyTorch {torch.__version__} does not take"
        assert all(refused in process["sharded"]["prepared"][name] for process in facts)
        return
    for process in facts:
        whole, sharded = (process[half]["prepared"][name] for half in ("whole", "sharded"))
        assert whole.pop("kinds") == ["Parameter"] and "DTensor" in sharded.pop("kinds")
        # The first push failed, and the second was tried: by the first process, with words that all of them looked up.
        pushed = [half.pop("pushed") for half in (whole, sharded)]
        assert [[words for words, _, _ in half] for half in pushed] == [[4, 4] if process["rank"] == 0 else []] * 2
        alike(sharded, whole)
        assert sharded["kept"] == ["Parameter", "torch.float32"]
        assert len(sharded["kept vectors"]) == 2
    sharded = facts[0]["sharded"]["prepared"]["llama"]
    assert sharded["again"] == sharded["prompt"]  # resumed from its checkpoint, bit for bit
    assert not [file for file in sharded["files"] if "fsdp" in file]  # nothing of the backbone
