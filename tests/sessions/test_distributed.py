"""Two processes equal one: what `distributed_session.py` does on two gloo processes, beside this one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.sessions import distributed_session as session
from tests.shared.hub_server import HubServer
from tests.shared.reference import loss_and_gradient, pad, tiny_prompt_model
from tests.shared.versions import RESUMES_ON_CPUS


def launch(folder, *words, timeout=600, **environment):
    session = "tests.sessions.distributed_session"
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", session]
    return subprocess.run(
        [sys.executable, "-m", *command, str(folder), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        # A process that ends by a signal says where it was.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"} | environment,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def killed(folder):
    """A launch that loses a process; it must end by itself within the timeout."""
    return launch(folder, "kill", timeout=300)


@pytest.fixture(scope="module")
def hub():
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        yield server


@pytest.fixture(scope="module")
def two(folder, killed, hub):
    done = launch(folder, **hub.environment(folder / "home", token="hf_alice"))
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    # `accelerate launch --cpu --num_processes 2` would run one process and say nothing.
    assert facts["world"] == 2
    return facts


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    facts = session.session(tmp_path_factory.mktemp("one"))
    assert facts["world"] == 1
    return json.loads(json.dumps(facts))


def numbers(found):
    return np.array(found, dtype=np.float64)


@pytest.mark.parametrize(
    "run",
    [
        "uneven",
        "fewer rows than processes",
        "accumulated",
        "encoder-decoder",
        "grouped by length",
        "evaluated before",
        "taught",
        "taught labels",
        "taught what the teacher writes",
        "no labels, padded",
        "no labels, cached",
        "no labels, packed",
    ],
)
def test_two_processes_train_as_one(run, one, two):
    expected, got = one["trained"][run], two["trained"][run]
    assert len(expected["losses"]) >= 2 and len(set(expected["losses"])) > 1
    for what in ("losses", "norms", "prompt"):
        np.testing.assert_allclose(numbers(got[what]), numbers(expected[what]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["single", "numbers", "several", "tags"])
def test_two_processes_train_a_classification_head_as_one(kind, one, two):
    """With weights, an uneven last batch, and a number that is -100; all rows are predicted, once and in order."""
    expected, got = one["headed"][kind], two["headed"][kind]
    assert len(set(expected["losses"])) == 6
    for what in ("losses", "norms", "prompt", "predictions"):
        np.testing.assert_allclose(numbers(got[what]), numbers(expected[what]), rtol=1e-5, atol=1e-5)
    for here, there in zip(got["head"], expected["head"], strict=True):
        np.testing.assert_allclose(numbers(here), numbers(there), rtol=1e-5, atol=1e-5)
    assert got["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)


def test_two_processes_find_answers_as_one(one, two):
    """The windows of a row may be in batches of both; repeated ones, which fill the last batch, count once."""
    expected, got = one["answered"], two["answered"]
    assert expected["windows"] % 4 and len(set(expected["losses"])) == 6
    for what in ("losses", "norms", "prompt"):
        np.testing.assert_allclose(numbers(got[what]), numbers(expected[what]), rtol=1e-5, atol=1e-5)
    for here, there in zip(got["head"], expected["head"], strict=True):
        np.testing.assert_allclose(numbers(here), numbers(there), rtol=1e-5, atol=1e-5)
    for many in (5, 1):
        here, there = got[f"{many} rows"], expected[f"{many} rows"]
        assert here["references"] == there["references"] and len(there["answers"]) == many
        assert here["metrics"] == pytest.approx(there["metrics"], rel=1e-5)
        assert [answer[:2] for answer in here["answers"]] == [answer[:2] for answer in there["answers"]]
        scores = [[answer[2] for answer in found["answers"]] for found in (here, there)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("run", ["after_bos adamw_torch", "system adafactor", "system sgd"])
def test_two_processes_train_what_stands_behind_a_head_as_one(run, one, two):
    """The head stays the backbone's embeddings bit for bit, whatever decays; the optimizer knows the P rows alone."""
    expected, got = one["placed"][run], two["placed"][run]
    assert len(set(expected["losses"])) == 3
    for what in ("losses", "norms", "prompt"):
        np.testing.assert_allclose(numbers(got[what]), numbers(expected[what]), rtol=1e-4, atol=1e-5)
    for found in (expected, got):
        assert found["head"] == found["embeddings"] and found["saved"] == found["prompt"]
        assert all(size in ([4, 32], [4], [32]) for size in found["states"])
        assert found.get("resumed", found["prompt"]) == found["prompt"]
    assert "resumed" in expected and ("resumed" in got or not RESUMES_ON_CPUS)


@pytest.mark.parametrize("what", ["llama classes", "llama free", "t5 classes", "t5 free"])
@pytest.mark.parametrize("rows", [11, 1])
def test_two_processes_evaluate_each_row_once(what, rows, one, two):
    expected, got = (facts["evaluated"][f"{what} {rows}"] for facts in (one, two))
    assert len(got["predictions"]) == rows and got["references"] == expected["references"]
    if what.endswith("free"):
        assert got["predictions"] == expected["predictions"]
    else:
        np.testing.assert_allclose(numbers(got["predictions"]), numbers(expected["predictions"]), rtol=1e-5)
    assert got["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)


def test_two_processes_evaluate_each_row_of_token_ids_once(one, two):
    expected, got = one["evaluated"]["tokens"], two["evaluated"]["tokens"]
    assert got["metrics"] == pytest.approx(expected["metrics"], rel=1e-5) and got["metrics"]["eval_rows"] == 7
    assert got["labels"] == expected["labels"]
    # What is predicted for pads depends on how many there are; it is read nowhere.
    read = numbers(got["labels"])[:, 1:] != -100
    logits = [numbers(found["logits"])[:, :-1][read] for found in (got, expected)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_without_average_tokens_each_process_weighs_the_same(one, two):
    """`average_tokens_across_devices=False`: the mean of two means, whatever the processes' numbers of tokens."""
    model, losses, gradients = tiny_prompt_model("llama", num_virtual_tokens=4), [], []
    rows = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in session.TOKENS[:4]]
    for share in (rows[:2], rows[2:]):
        loss, gradient = loss_and_gradient(model, model(**pad(share, "right")).loss)
        losses.append(loss)
        gradients.append(gradient)
    got = two["averaged_by_process"]["labelled"]
    assert got["losses"] == pytest.approx([np.mean(losses)], rel=1e-5)
    assert got["norms"] == pytest.approx([(sum(gradients) / 2).norm().item()], rel=1e-4)
    assert abs(got["losses"][0] - one["averaged_by_process"]["labelled"]["losses"][0]) > 1e-4


def test_a_batch_without_any_label_changes_nothing(one, two):
    before = tiny_prompt_model("llama", num_virtual_tokens=4).prompt.flatten().tolist()
    for facts in (one, two):
        found = facts["averaged_by_process"]["no labels"]
        assert found["losses"] == [0.0] and found["norms"] == [0.0] and found["prompt"] == before


def test_all_processes_have_the_first_ones_prompt(one, two):
    assert two["started_apart"]["loss"] == pytest.approx(one["started_apart"]["loss"], rel=1e-5)


def test_processes_with_different_backbones_are_refused(two):
    assert two["started_apart"]["refused"].startswith("process 1 has another backbone than process 0")


def test_a_stream_trains_and_is_not_evaluated(one, two):
    for what in ("losses", "prompt"):
        got, expected = (numbers(facts["streamed"][what]) for facts in (two, one))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    refusal = "the data to evaluate is streamed, and 2 processes would count the rows"
    assert two["streamed"]["refused"].startswith(refusal) and "refused" not in one["streamed"]


def test_only_the_prompts_gradient_crosses_the_wire(two):
    """In three steps: the prompt once, at DDP's start; then its gradient and a count of tokens with each step."""
    facts = two["on_the_wire"]
    assert (facts["bucket_sizes"], facts["num_parameter_tensors"]) == ("512", 1)  # bytes: P * H * 4, of one tensor
    sent = {name: [sizes for kind, sizes in facts["sent"] if kind == name] for name, _ in facts["sent"]}
    # The gradients; at the end, the number that `DivergenceCallback` asks the others for.
    assert sent.pop("gloo:all_reduce") == [[4 * 32]] * 3 + [[]]
    assert sent.pop("gloo:barrier") == [[]]  # before the run looks for a checkpoint
    # The numbers of labelled tokens, DDP's number of parameters, and the loss of the log at the end.
    assert sent.pop("gloo:all_gather") == [[1]] * 5
    # DDP's start: the prompt's shape, the prompt, and the order of its buckets. No buffer, no backbone.
    assert sorted(sent.pop("gloo:broadcast")) == [[1], [2], [4], [4 * 32]]
    assert not sent


def test_one_process_writes(one, two):
    first, second = two["saved"]["files"]
    # Its own generators, for resuming; the first process takes them in, where the folder is the same.
    assert second == ["unfinished/checkpoint-3/rng_state_1.pth"]
    alone = {name.replace("rng_state.pth", "rng_state_0.pth") for name in one["saved"]["files"][0]}
    assert set(first) == alone


def test_one_process_pushes(two, hub):
    titles = [title for _, title in hub.commits("alice/prompt")]
    assert titles[1:] == ["Training in progress, step 3", "End of training"]


def test_a_stalled_process_is_waited_for_no_longer_than_ddp_timeout(two):
    assert two["started_apart"]["timeout"] == 60


def test_a_lost_process_ends_the_run(killed, two):
    """The launch ended by itself (`killed` waits 120 seconds at most), and the run goes on from its checkpoint."""
    assert killed.returncode == 1 and "exitcode  : -9" in killed.stderr
    if not RESUMES_ON_CPUS:
        pytest.skip("transformers resumes several processes on CPUs from 5.18")
    whole, resumed = two["resumed"]["whole"], two["resumed"]["killed"]
    assert len(whole["losses"]) == 9 and resumed["losses"] == whole["losses"]
    assert resumed["prompt"] == whole["prompt"]


def test_a_resumed_run_of_two_processes_equals_one_process(one, two):
    whole, alone = two["resumed"]["whole"], one["resumed"]["whole"]
    np.testing.assert_allclose(numbers(whole["prompt"]), numbers(alone["prompt"]), rtol=1e-5, atol=1e-5)
