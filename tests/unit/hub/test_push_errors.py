"""A push that fails says what the Hub said and what to do, in one line, by every door."""

import logging

import pytest
import yaml
from huggingface_hub import constants

from hf_prompt_tuning import PromptHubCallback, PromptPushError, PromptTuningError
from hf_prompt_tuning.models import saving
from hf_prompt_tuning.training import publishing
from tests.shared.pushes import DRAWN, model_of, trainer_of
from tests.shared.reference import tiny_prompt_model

COMMIT = "/api/models/*/commit/*"
ADVICE = {
    400: "Correct what it names",
    401: "Log in with a token of yours that is valid",
    403: "Give a token that may write to 'alice'",
    404: "Check the name, and whether the token may see the repository",
    409: "Something else changes the repository",
    412: "Another push came in between",
    413: "A file is larger than the Hub takes",
    422: "Correct what it names",
    429: "You have made too many requests (the Hub asks to wait 7 s)",
    500: "The Hub has trouble of its own",
    503: "The Hub has trouble of its own",
}


def fail(hub, status, what=COMMIT):
    return hub.fail(what, status=status, message="Words of the Hub", headers={"Retry_After": "7"})


def is_told(said, status):
    answered = f"the Hub answers {status} (Words of the Hub). {ADVICE[status]}"
    return answered in said and "Request ID" not in said and "\n" not in said


@pytest.mark.parametrize("status", ADVICE)
def test_a_model_raises_one_error(status, hub):
    fail(hub, status)
    model = tiny_prompt_model("llama")
    with pytest.raises(PromptPushError, match="the push to 'alice/p' failed: ") as failed:
        model.push_to_hub("alice/p")
    assert is_told(str(failed.value), status)
    assert failed.value.temporary == (status in (429, 500, 503))
    hub.heal()
    model.push_to_hub("alice/p")


@pytest.mark.parametrize("status", ADVICE)
def test_a_trainer_logs_one_line_and_how_to_push_later(status, hub, tmp_path, tokenizer, messages, caplog):
    trainer = trainer_of(tmp_path, tokenizer, messages, DRAWN)
    fail(hub, status)
    with caplog.at_level(logging.WARNING):
        assert trainer.push_to_hub() is None
    (said,) = [record.getMessage() for record in caplog.records if "pushed" in record.getMessage()]
    assert is_told(said, status) and f"push it later: hf upload alice/p {tmp_path} ." in said


@pytest.mark.parametrize("status", [403, 503])
def test_training_goes_on_and_says_why(status, hub, tmp_path, tokenizer, messages, caplog):
    fail(hub, status)
    callback = PromptHubCallback("alice/best")
    trainer = trainer_of(
        tmp_path, tokenizer, messages, DRAWN, hub_strategy="checkpoint", eval_strategy="steps", eval_steps=2
    )
    trainer.add_callback(callback)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().global_step == 4
    said = [record.getMessage() for record in caplog.records]
    saves = [line for line in said if line.startswith("A push during training failed, and training goes on: ")]
    best = [line for line in said if line.startswith("The prompt of step")]
    assert len(saves) == 4 and len(best) == 2  # the prompt's and the checkpoint's, two times
    assert all(is_told(line, status) for line in saves + best)


@pytest.mark.parametrize(
    "what",
    [
        "/api/repos/create",
        "/api/models/*/tree/*",
        "/api/validate-yaml",
        "/api/models/*/preupload/*",
        "/*.git/info/lfs/objects/batch",
        "/lfs/*",
        "/api/models/*/branch/*",
    ],
)
def test_each_request_of_a_push(what, hub):
    fail(hub, 422, what)
    model = tiny_prompt_model("llama")
    with pytest.raises(PromptPushError) as failed:
        model.push_to_hub("alice/p", revision="try")
    assert is_told(str(failed.value), 422)


def test_what_the_hub_says_in_a_header_or_not_at_all(hub):
    model = tiny_prompt_model("llama")
    hub.fail(COMMIT, status=403, times=1, message="x" * 1000, headers={"X_Error_Message": "In the header."})
    with pytest.raises(PromptPushError, match=r"answers 403 \(In the header. x{100,290}\). Give a token"):
        model.push_to_hub("alice/p")
    assert publishing.first_line(PromptPushError("a\nb")) == "a"


def test_no_answer(hub, monkeypatch):
    model = tiny_prompt_model("llama")
    hub.fail(COMMIT, drop="before", times=1)
    with pytest.raises(PromptPushError, match=r"the Hub cannot be reached \(.+\). Push again when it can"):
        model.push_to_hub("alice/p")
    monkeypatch.setattr(saving, "PUSH_SECONDS", 0.5)
    hub.fail(COMMIT, delay=60)
    with pytest.raises(PromptPushError, match=r"cannot be reached \(it has not answered within 0.5 seconds\)"):
        model.push_to_hub("alice/p")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PromptPushError, match=r"HF_HUB_OFFLINE is set\. Unset it, and push again"):
        model.push_to_hub("alice/p")


def test_no_token(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / "none"))
    with pytest.raises(PromptPushError, match=r"the Hub answers 401 .*Log in with a token"):
        tiny_prompt_model("llama").push_to_hub("alice/p")


@pytest.mark.parametrize("repo_id", ["a/b/c", "alice/p/", "https://huggingface.co/alice/p", "my run", "", "../p"])
def test_a_name_that_cannot_be(repo_id, hub):
    for push in (tiny_prompt_model("llama").push_to_hub, PromptHubCallback):
        with pytest.raises(PromptTuningError, match=r"the repository is to be called .*; give NAME or NAMESPACE/NAME"):
            push(repo_id)
    assert hub.requests == []


def test_a_commit_is_no_branch(hub, tmp_path, tokenizer, messages):
    model = tiny_prompt_model("llama")
    sha = model.push_to_hub("alice/p").oid
    hub.requests.clear()
    refused = "is a commit, and a push goes to a branch; give its name"
    with pytest.raises(PromptTuningError, match=refused):
        model.push_to_hub("alice/p", revision=sha)
    with pytest.raises(PromptTuningError, match=refused):
        PromptHubCallback("alice/p", revision=sha)
    with pytest.raises(PromptTuningError, match=refused):
        trainer_of(tmp_path, tokenizer, messages, DRAWN, hub_revision=sha)
    assert hub.requests == []


def test_an_argument_that_is_not_known(hub, tmp_path, tokenizer, messages):
    trainer = trainer_of(tmp_path, tokenizer, messages, DRAWN)
    with pytest.raises(PromptTuningError, match="push_to_hub has no argument 'privat'; it has commit_message"):
        trainer.push_to_hub(privat=True)
    assert len(hub.commits("alice/p")) == 1
    # What the scripts of transformers give.
    trainer.push_to_hub(finetuned_from="folder/backbone", tasks="text-classification", dataset_tags="x", dataset="x")
    assert len(hub.commits("alice/p")) == 2
    trainer.push_to_hub(language="en", license="mit", tags="complaints")
    head = yaml.safe_load(hub.files("alice/p")["README.md"].split(b"---")[1])
    assert (head["language"], head["license"]) == ("en", "mit")
    assert head["tags"] == ["prompt-tuning", "soft-prompt", "hf_prompt_tuning", "complaints"]


def test_another_repository_than_ones_own(hub, tokenizer):
    with pytest.raises(PromptPushError, match=r"answers 403 \(You may not create .*may write to 'bob'"):
        model_of(tokenizer, **DRAWN).push_to_hub("bob/p")
