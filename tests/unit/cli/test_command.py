"""The command as a user runs it: another process, a model on disk, files in, files out."""

import json

import pytest
import yaml

from hf_prompt_tuning import PromptTuningError
from hf_prompt_tuning.cli import train
from hf_prompt_tuning.prompts.files import START_FILE
from tests.shared.command import command
from tests.shared.hub_server import HubServer
from tests.shared.tiny_models import make_tokenizer, tiny_model


def test_accelerate_launch_leaves_a_prompt_results_and_predictions(files):
    done = command(
        "-m", "accelerate.commands.launch", "run_prompt_tuning.py", files / "config.yaml",
        "--do_predict", "--test_file", files / "test.jsonl", "--num_train_epochs", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trainable params: 128 ||" in done.stdout
    out = files / "out"
    assert {f.name for f in out.iterdir() if f.is_file()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "all_results.json",
        "confusion_matrix.png",
        "eval_results.json",
        "loss.png",
        "predictions.jsonl",
        "prompt_tuning.json",
        "results.json",
        "test_results.json",
        "train_results.json",
        "trainer_state.json",
        "untuned_results.json",
    }
    assert {f.name for f in out.iterdir() if f.is_dir()} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    results = json.loads((out / "all_results.json").read_text())
    assert {"train_loss", "eval_accuracy", "eval_f1", "eval_perplexity", "test_accuracy"} <= set(results)
    logged = [log for log in json.loads((out / "trainer_state.json").read_text())["log_history"] if "eval_loss" in log]
    assert [log["step"] for log in logged] == [0, 2, 4, 6]
    assert results["eval_loss"] == pytest.approx(logged[-1]["eval_loss"])
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 7
    first, last = predictions[0], predictions[-1]
    assert first["input"] == "Message : line down again Label :"
    assert set(first["scores"]) == {"complaint", "no complaint"}
    assert first["prediction"] == max(first["scores"], key=first["scores"].get)
    assert (first["reference"], last["reference"]) == ("complaint", None)
    right = sum(p["prediction"] == p["reference"] for p in predictions[:6])
    assert results["test_accuracy"] == pytest.approx(right / 6)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_module_is_the_same_command_from_anywhere(files):
    done = command(
        "-m", "hf_prompt_tuning", files / "config.yaml", "--max_steps", "1", "--save_strategy", "no",
        "--eval_strategy", "no", "--max_train_samples", "4", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (files / "out/adapter_model.safetensors").exists()


def test_a_run_is_pushed_as_its_flags_say(files):
    with HubServer(tokens={"hf_alice": "alice"}) as hub:
        done = command(
            "run_prompt_tuning.py", files / "config.yaml", "--push_to_hub", "--hub_model_id", "alice/prompt",
            "--hub_private_repo", "true", "--hub_strategy", "end", "--save_strategy", "no",
            **hub.environment(files / "home", token="hf_alice"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        pushed = hub.files("alice/prompt")
        assert hub.repositories["alice/prompt"].private
        assert [title for _, title in hub.commits("alice/prompt")][1:] == ["Model save"]
    accuracy = json.loads((files / "out/eval_results.json").read_text())["eval_accuracy"]
    assert f"| accuracy | {accuracy:.4f} |" in pushed["README.md"].decode()
    assert pushed["adapter_model.safetensors"] == (files / "out/adapter_model.safetensors").read_bytes()
    assert not [name for name, content in pushed.items() if b"hf_alice" in content or str(files).encode() in content]


def test_a_prompt_can_be_evaluated_and_used_without_training(files):
    first = command("run_prompt_tuning.py", files / "config.yaml", "--save_strategy", "no")
    assert first.returncode == 0, first.stderr
    again = command(
        "run_prompt_tuning.py", files / "config.yaml", "--do_train", "false",
        "--prompt_tuning_init", "PROMPT", "--init_prompt", files / "out", "--output_dir", files / "again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    loss = [json.loads((files / name / "eval_results.json").read_text())["eval_loss"] for name in ("out", "again")]
    assert loss[0] == pytest.approx(loss[1], rel=1e-5)
    assert not (files / "again" / "adapter_config.json").exists()  # nothing was trained, so there is no new prompt

    saved = {file: file.read_bytes() for file in (files / "out").glob("*.*") if "results" not in file.name}
    own = ["--init_prompt", files / "out", "--do_train", "false", "--prompt_tuning_init", "PROMPT"]
    again = command("run_prompt_tuning.py", files / "config.yaml", *own)
    assert again.returncode == 0, again.stderr
    assert {file: file.read_bytes() for file in saved} == saved
    other = tiny_model("llama")
    other.get_input_embeddings().weight.data.add_(0.1)
    other.save_pretrained(files / "other")
    make_tokenizer("llama").save_pretrained(files / "other")
    done = command("run_prompt_tuning.py", files / "config.yaml", *own, "--model_name_or_path", files / "other")
    assert done.returncode == 2
    assert "is evaluated, and is not a prompt of this backbone: the embedding matrix differs" in done.stderr
    done = command("run_prompt_tuning.py", files / "config.yaml", *own, "--push_to_hub", "--hub_token", "hf_alice")
    assert done.returncode == 2 and "push_to_hub is on, and do_train is off" in done.stderr


def test_free_text_end_to_end(files, messages):
    rows = [{"message": row["message"], "answer": row["message"].split()[0]} for row in messages]
    (files / "free.csv").write_text("message,answer\n" + "\n".join(f"{r['message']},{r['answer']}" for r in rows))
    config = yaml.safe_load((files / "config.yaml").read_text())
    config = {k: v for k, v in config.items() if not k.startswith("label")} | {"target_template": "{answer}"}
    config |= {"train_file": str(files / "free.csv"), "validation_file": str(files / "free.csv"), "do_predict": True}
    (files / "free.yaml").write_text(yaml.safe_dump(config))
    done = command("run_prompt_tuning.py", files / "free.yaml", "--num_train_epochs", "1")
    assert done.returncode == 0, done.stderr
    results = json.loads((files / "out/all_results.json").read_text())
    assert {"eval_exact_match", "eval_rougeL", "test_rougeL"} <= set(results)
    first = json.loads((files / "out/predictions.jsonl").read_text().splitlines()[0])
    assert first["reference"] == "never" and isinstance(first["prediction"], str)


def test_bad_input_is_one_line(files):
    bad = files / "bad.csv"
    bad.write_text("message,label\nnever came,1\nthank you\n")
    for flags, message in [
        (
            ["--source_template", "{text} Label :"],
            "error: the template's field {text} is no column of the training data",
        ),
        (["--num_virtual_tokens", "0"], "error: num_virtual_tokens is 0"),
        (["--train_file", "nowhere.csv"], "error: the data file 'nowhere.csv' is not there"),
        (
            ["--train_file", bad],
            f"error: row 2 (line 3) of the data file {str(bad)!r} cannot be used: it has 1",
        ),
        (["--model_name_or_path", str(files)], "error: the backbone"),
    ]:
        done = command("run_prompt_tuning.py", files / "config.yaml", *flags)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith(message)
        assert "Traceback" not in done.stderr
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("without", "flags", "message"),
    [
        (
            ["validation_file"],
            ["--do_predict", "true"],
            "do_predict is true, and there are neither test nor validation rows",
        ),
        (["validation_file"], ["--do_eval", "true"], "do_eval is true, and there are no validation rows; give a val"),
        (
            ["validation_file"],
            ["--eval_strategy", "epoch"],
            "eval_strategy is epoch, and there are no validation rows; give a val",
        ),
        (["train_file"], ["--do_train", "true"], "do_train is true, and there are no training rows; give a"),
    ],
)
def test_a_run_without_the_rows_that_it_needs_is_refused_before_the_backbone(
    without, flags, message, files, monkeypatch
):
    monkeypatch.setattr(train, "load_backbone", lambda *_: pytest.fail("the backbone is loaded"))
    config = yaml.safe_load((files / "config.yaml").read_text())
    config = {name: value for name, value in config.items() if name not in without}
    (files / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(PromptTuningError, match=message):
        train.main([str(files / "config.yaml"), "--use_cpu", "true", *flags])


def test_a_split_that_takes_the_only_row_of_a_label_is_told_by_the_command(files, monkeypatch, caplog):
    monkeypatch.setattr(train, "load_backbone", lambda *_: pytest.fail("the backbone is loaded"))
    config = yaml.safe_load((files / "config.yaml").read_text())
    del config["validation_file"]
    (files / "config.yaml").write_text(yaml.safe_dump(config | {"validation_split_percentage": 50}))
    (files / "train.jsonl").write_text('{"message": "a", "label": 1}\n{"message": "b", "label": 2}')
    with pytest.raises(pytest.fail.Exception, match="the backbone is loaded"):
        train.main([str(files / "config.yaml"), "--use_cpu", "true"])
    assert len([line for line in caplog.messages if "no training row has the label" in line]) == 1


def test_numbers_that_leave_fp32_end_it_with_a_code_of_their_own(files):
    """At such a rate one step throws the prompt out of range: no checkpoint, no prompt, one line."""
    done = command(
        "run_prompt_tuning.py", files / "config.yaml", "--learning_rate", "3e37", "--eval_on_start", "false"
    )
    assert done.returncode == 3
    [message] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: the prompt's norm is ")
    assert "Traceback" not in done.stderr
    assert not list((files / "out").glob("checkpoint-*")) and not (files / "out/adapter_model.safetensors").exists()


def test_a_prompt_starts_from_rows_of_the_training_file(files):
    done = command(
        "-m", "hf_prompt_tuning", files / "config.yaml", "--max_steps", "1", "--save_strategy", "no",
        "--eval_strategy", "no", "--recipe", "examples", "--num_virtual_tokens", "40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = json.loads((files / "out/prompt_tuning.json").read_text())
    assert info["initialization"]["prompt_tuning_init"] == "EXAMPLES"
    assert info["initialization"]["num_virtual_tokens"] == 40
    assert "The prompt starts from training rows: " in done.stderr
    assert not (files / "out" / START_FILE).exists()  # it would hold the rows' words
