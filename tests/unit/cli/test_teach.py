"""The command `teach` as a user runs it."""

import json

import pytest

from tests.shared.chat_templates import chat_tokenizer
from tests.shared.command import command
from tests.shared.tiny_models import tiny_model

TEXT = "Answer every complaint with the words never again"
QUESTIONS = [
    "where is my parcel",
    "thank you for the quick help",
    "line down again",
    "why",
    "never came",
    "is it late",
]


@pytest.fixture
def world(tmp_path):
    tiny_model("llama", max_position_embeddings=2048).save_pretrained(tmp_path / "backbone")
    chat_tokenizer("chatml").save_pretrained(tmp_path / "backbone")
    (tmp_path / "system.txt").write_text(f"{TEXT}\n", encoding="utf-8")
    rows = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_a_system_prompt_becomes_vectors(world):
    """It is the short way in: what is not given has a default for teaching."""

    def teach(*flags):
        return command(
            "-m", "hf_prompt_tuning", "teach", "--model", world / "backbone",
            "--teacher_file", world / "system.txt", "--train_file", world / "questions.jsonl", "-P", "4",
            "--teacher_max_new_tokens", "3", "--num_train_epochs", "1", "--output_dir", world / "out", *flags,
        )  # fmt: skip

    done = teach()
    assert done.returncode == 0, done.stderr
    results = json.loads((world / "out/eval_results.json").read_text())
    names = ("kl", "agreement", "no_context_kl", "no_context_agreement", "first_tokens_kl", "first_tokens_agreement")
    assert {f"eval_{name}" for name in names} <= set(results)
    # The prompt starts as the text's first tokens, and was evaluated before the first step.
    log = json.loads((world / "out/trainer_state.json").read_text())["log_history"]
    before = next(entry for entry in log if "eval_kl" in entry and entry["step"] == 0)
    assert before["eval_kl"] == pytest.approx(results["eval_first_tokens_kl"], rel=1e-4)
    info = json.loads((world / "out/prompt_tuning.json").read_text())
    assert info["initialization"]["prompt_tuning_init"] == "TEACHER" and info["place"]["prompt_position"] == "system"
    named = [name for name in ("prompt_tuning.json", "README.md") if TEXT in (world / "out" / name).read_text("utf-8")]
    assert named == []
    kept = (world / "out/teacher_answers.jsonl").read_bytes()

    again = teach("--teacher_writes", "1", "--publish_teacher_text", "true")
    assert again.returncode == 0, again.stderr
    assert (world / "out/teacher_answers.jsonl").read_bytes() == kept
    assert TEXT in (world / "out/README.md").read_text("utf-8")
    other = teach("--teacher_writes", "2")
    assert other.returncode == 2
    assert "teacher_answers.jsonl has the training answers of teacher_writes=1, and this run has 2" in other.stderr
    without = command("-m", "hf_prompt_tuning.cli.teach", "--model", "x", "--output_dir", "y")
    assert without.returncode == 2 and "error: nothing teaches the prompt; give --teacher_file" in without.stderr
