"""What a run reads of the Hub to start from: another prompt, of any commit and folder, private or not, and data."""

import json
import sys

import datasets
import pytest
import torch

import run_prompt_tuning
from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, Teacher, get_prompt_tuning_model
from hf_prompt_tuning.cli.arguments import ModelArguments, PromptArguments, parse_arguments
from hf_prompt_tuning.cli.splits import load_splits, load_transfer
from hf_prompt_tuning.cli.tasks import ensemble_members
from hf_prompt_tuning.errors import HubUnavailableError, PromptLoadError
from tests.shared.hub_client import contents, local_hub
from tests.shared.teaching import taught
from tests.shared.tiny_models import make_tokenizer, tiny_model

ID, WHERE = "alice/prompts", {"init_prompt_revision": "old", "init_prompt_subfolder": "task"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Vectors, and the files of their prompt, of two seeds."""
    made = []
    for seed in (0, 1):
        backbone, config = tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
        torch.manual_seed(seed)
        model = get_prompt_tuning_model(backbone, config)
        folder = tmp_path_factory.mktemp("prompt")
        model.save_pretrained(folder, card=False)
        made.append((model.prompt.detach().clone(), contents(folder)))
    assert not torch.equal(made[0][0], made[1][0])
    return made


@pytest.fixture
def hub(monkeypatch, tmp_path, prompts):
    """The first one's vectors are on the branch `old`, in the folder `task`, of a private repository."""
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        first = server.put(ID, {f"task/{name}": content for name, content in prompts[0][1].items()})
        server.repositories[ID].branches["old"] = server.repositories[ID].at(first)
        for folder in ("", "task/"):
            server.put(ID, {f"{folder}{name}": content for name, content in prompts[1][1].items()})
        server.repositories[ID].private = True
        yield server


def started(**options):
    return get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(init_prompt=ID, **options)).prompt


def test_revision_folder_and_token_in_python(hub, prompts):
    assert torch.equal(started(init_prompt_token="hf_alice", **WHERE), prompts[0][0])
    assert torch.equal(started(init_prompt_token="hf_alice"), prompts[1][0])
    with pytest.raises(PromptLoadError, match="the prompt 'alice/prompts' could not be loaded: the server says 404"):
        started(init_prompt_token="hf_bob", **WHERE)


def test_the_token_is_not_saved(hub, tmp_path):
    config = PromptTuningConfig(init_prompt=ID, init_prompt_token="hf_alice", **WHERE)
    assert "hf_alice" not in repr(config) + str(config.to_dict())
    get_prompt_tuning_model(tiny_model("llama"), config).save_pretrained(tmp_path / "saved")
    assert not [name for name, content in contents(tmp_path / "saved").items() if b"hf_alice" in content]


def test_a_private_prompt_teaches_with_its_token(hub, tmp_path):
    teacher = Teacher(prompt=ID, token="hf_alice")
    assert taught(tmp_path, teacher).model.info.teacher["prompt"] == ID
    assert "hf_alice" not in repr(teacher)
    with pytest.raises(PromptLoadError, match="'alice/prompts' could not be loaded: the server says 404"):
        taught(tmp_path, Teacher(prompt=ID, token="hf_bob"))


def test_a_folder_of_this_machine(prompts, tmp_path):
    for name, content in prompts[0][1].items():
        (tmp_path / "task").mkdir(exist_ok=True)
        (tmp_path / "task" / name).write_bytes(content)
    config = PromptTuningConfig(init_prompt=str(tmp_path), init_prompt_subfolder="task")
    assert torch.equal(get_prompt_tuning_model(tiny_model("llama"), config).prompt, prompts[0][0])
    config.init_prompt_revision = "old"
    with pytest.raises(PromptTuningError, match=r"is on this machine, where there are no revisions. Leave it out"):
        get_prompt_tuning_model(tiny_model("llama"), config)
    with pytest.raises(PromptTuningError, match=r"init_prompt_revision is 'old' without a prompt. Give init_prompt"):
        PromptTuningConfig(init_prompt_revision="old")


def test_a_server_that_fails(hub):
    hub.fail("task/prompt_tuning.json", status=503)
    with pytest.raises(HubUnavailableError, match="the server says 503"):
        started(init_prompt_token="hf_alice", **WHERE)


def test_the_commands_token_is_for_all_that_it_reads(hub, prompts, tmp_path, monkeypatch, messages):
    """A private backbone, a private prompt to start from, and no token but the one that is given."""
    tiny_model("llama").save_pretrained(tmp_path / "backbone")
    make_tokenizer().save_pretrained(tmp_path / "backbone")
    hub.put("alice/backbone", contents(tmp_path / "backbone"))
    hub.repositories["alice/backbone"].private = True
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, messages)))
    values = {
        "model_name_or_path": "alice/backbone",
        "train_file": tmp_path / "rows.jsonl",
        "max_steps": 0,
        "validation_file": tmp_path / "rows.jsonl",
        "source_template": "{message} :",
        "label_column": "label",
        "label_words": '{"1": "great", "2": "awful"}',
        "init_prompt": ID,
        "output_dir": tmp_path / "out",
        "report_to": "none",
        "use_cpu": True,
        "token": "hf_alice",
    }
    flags = [f"--{name}={value}" for name, value in (values | WHERE).items()]
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", *flags])
    run_prompt_tuning.main()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["revision"] == hub.commits("alice/backbone")[-1][0]
    again = PromptTuningConfig(init_prompt=str(tmp_path / "out"))
    assert torch.equal(get_prompt_tuning_model(tiny_model("llama"), again).prompt, prompts[0][0])
    assert not [name for name, content in contents(tmp_path / "out").items() if b"hf_alice" in content and
                not name.endswith(".bin")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["run_prompt_tuning.py", *flags[:-3], *flags[-2:], "--token=hf_bob"])
    with pytest.raises(PromptTuningError, match="could not be loaded: the server says 404"):
        run_prompt_tuning.main()


def test_several_prompts_start_with_the_token(hub, prompts):
    arguments = PromptArguments(init_prompt=ID, num_prompts=2, **WHERE)
    for member in ensemble_members(arguments, 0, "hf_alice"):
        model = get_prompt_tuning_model(tiny_model("llama"), member.config)
        assert torch.equal(model.prompt, prompts[0][0])


def test_data_sets_are_asked_for_with_the_token(monkeypatch):
    asked = []

    def answer(*_, token=None, **__):
        asked.append(token)
        raise ConnectionError("nobody there")

    monkeypatch.setattr("hf_prompt_tuning.cli.splits.load_dataset", answer)
    monkeypatch.setattr(datasets, "get_dataset_split_names", answer)
    monkeypatch.setattr(
        "hf_prompt_tuning.data.files.DownloadManager", lambda download_config: answer(token=download_config.token)
    )
    flags = ["--model_name_or_path=x", "--output_dir=x", "--dataset_name=a/b", "--token=hf_alice"]
    with pytest.raises(PromptTuningError, match="the data set 'a/b' could not be loaded: nobody there"):
        parse_arguments(flags)
    _, data, *_ = parse_arguments(["--model_name_or_path=x", "--output_dir=x"])
    data.dataset_name = "a/b"
    with pytest.raises(PromptTuningError, match="the data set 'a/b' could not be loaded"):
        load_splits(data, 0, "hf_alice")
    data.dataset_name, data.train_file, data.transfer_file = None, "hf://datasets/a/b/c.csv", ["c=hf://datasets/c.csv"]
    data.source_template, data.target_template = "{a}", "{b}"
    for reads in (lambda: load_splits(data, 0, "hf_alice"), lambda: load_transfer(data, data.template(), "hf_alice")):
        with pytest.raises(PromptTuningError, match="cannot be read as csv: nobody there"):
            reads()
    assert asked == ["hf_alice"] * 4
    assert ModelArguments("x").token is None


def test_a_tokenizer_that_a_config_names(hub, tmp_path):
    config = PromptTuningConfig(prompt_tuning_init_text="a", tokenizer_name_or_path="alice/none")
    with pytest.raises(
        PromptTuningError, match=r"the tokenizer of 'alice/none' could not be loaded: the server says 401"
    ):
        get_prompt_tuning_model(tiny_model("llama"), config)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "theirs"}')
    config.tokenizer_name_or_path, config.tokenizer_kwargs = str(tmp_path / "theirs"), {"trust_remote_code": True}
    with pytest.raises(PromptTuningError, match=r"the tokenizer of .* could not be loaded"):
        get_prompt_tuning_model(tiny_model("llama"), config)
