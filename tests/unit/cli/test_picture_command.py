"""The command with pictures: rows in files of every kind, what it writes, and what it refuses by name."""

import json
import re

import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, PromptTuningError, PromptTuningTrainer, load_prompt
from hf_prompt_tuning.cli import train
from tests.shared.command import command
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.tiny_processors import picture, seeing_model, tiny_processor

# torch's word on a machine without a GPU, for TrainingArguments' defaults
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

SOURCE = "Seen : {picture} {question} Answer :"
ROWS = [
    {"picture": "pictures/dog.png", "question": "a small dog ?", "label": "yes"},
    {"picture": "", "question": "the old town", "label": "no"},
    {"picture": "pictures/town.png", "question": "day and night", "label": "no"},
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    processor = tiny_processor("llava")
    seeing_model("llava", processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path, backbone):
    """A folder with pictures, their rows, and a config."""
    (tmp_path / "pictures").mkdir()
    picture(20, 30).save(tmp_path / "pictures/dog.png")
    picture(16, 40, 1).save(tmp_path / "pictures/town.png")
    write(tmp_path / "rows.jsonl", ROWS)
    config = {
        "model_name_or_path": str(backbone),
        "train_file": str(tmp_path / "rows.jsonl"),
        "validation_file": str(tmp_path / "rows.jsonl"),
        "image_columns": ["picture"],
        "source_template": SOURCE,
        "label_column": "label",
        "label_words": {"yes": "yes", "no": "never"},
        "num_virtual_tokens": 3,
        "prompt_tuning_init": "RANDOM",
        "learning_rate": 0.5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 3,
        "logging_steps": 1,
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "do_predict": True,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder, *flags, **values):
    """Run the command with a config in the folder, of which `values` replace some; None leaves one out."""
    config = yaml.safe_load((folder / "config.yaml").read_text()) | values
    (folder / "changed.yaml").write_text(
        yaml.safe_dump({k: v for k, v in config.items() if v is not None}, sort_keys=False)
    )
    train.main([str(folder / "changed.yaml"), *map(str, flags)])
    return folder / "out"


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def records(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def opened(folder):
    """The rows as they are in memory."""
    rows = []
    for row in ROWS:
        rows.append(row | {"picture": None})
        if row["picture"]:
            with Pillow.open(folder / row["picture"]) as file:
                rows[-1]["picture"] = file.copy()
    return rows


def test_the_command_learns_what_the_trainer_does(files, backbone):
    done = command("run_prompt_tuning.py", files / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "reads pictures, and" not in done.stderr
    processor = tiny_processor("llava")
    trainer = PromptTuningTrainer(
        seeing_model("llava", processor),
        train.parse_arguments([str(files / "config.yaml"), "--output_dir", str(files / "other")]).training,
        train_dataset=opened(files),
        eval_dataset=opened(files),
        processing_class=processor,
        template=PromptTemplate(SOURCE, label_column="label", label_words={"yes": "yes", "no": "never"}),
        prompt_config=PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM", prompt_position="auto"),
    )
    trainer.train()
    loaded = load_prompt(files / "out", backbone=backbone)
    assert type(loaded.processor).__name__ == "LlavaProcessor"
    torch.testing.assert_close(loaded.model.prompt.detach(), trainer.model.prompt.detach())
    assert results(files / "out")["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)
    found = records(files / "out")
    assert [record["input"] for record in found] == [
        "Seen : [dog.png] a small dog ? Answer :",
        "Seen :  the old town Answer :",
        "Seen : [town.png] day and night Answer :",
    ]
    scores = trainer.predict(opened(files)).predictions
    for record, row in zip(found, scores, strict=True):
        assert list(record["scores"].values()) == pytest.approx(row.tolist(), rel=1e-4)
    assert [record["reference"] for record in found] == ["yes", "never", "never"]
    # The card's code, with the backbone's folder in place of a Hub id.
    card = (files / "out/README.md").read_text()
    code = re.search(r"## Use\n\n```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)[1]
    code = code.replace("load_prompt('.'", f"load_prompt({str(files / 'out')!r}")
    code = code.replace("picture.png", str(files / "pictures/dog.png"))
    exec(code, {"backbone": seeing_model("llava", processor), "processor": processor})


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "bytes", "arrow", "folder", "absolute"])
def test_rows_in_files_of_every_kind(kind, files):
    """All give the losses of the rows as they are in memory: a jsonl file with names."""
    values = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no", "do_predict": False}
    expected = results(run(files, **values))["eval_loss"]
    file = files / f"rows.{kind}"
    stored = [
        row | {"picture": {"bytes": (files / row["picture"]).read_bytes(), "path": None} if row["picture"] else None}
        for row in ROWS
    ]
    features = Features({"picture": Image(), "question": Value("string"), "label": Value("string")})
    if kind == "csv":
        lines = [",".join(row.values()) for row in ROWS]
        file.write_text("\n".join(["picture,question,label", *lines]))
    elif kind == "json":
        file.write_text(json.dumps([row | {"picture": [row["picture"]] if row["picture"] else []} for row in ROWS]))
    elif kind == "parquet":
        Dataset.from_list(stored, features=features).to_parquet(file)
        values["image_columns"] = None
    elif kind == "bytes":
        file = files / "bytes.parquet"
        raw = [row | {"picture": row["picture"] and row["picture"]["bytes"]} for row in stored]
        Dataset.from_list(raw).to_parquet(file)
    elif kind == "arrow":
        Dataset.from_list(stored, features=features).save_to_disk(files / "saved")
        (file,) = (files / "saved").glob("*.arrow")
        values["image_columns"] = None
    elif kind == "absolute":
        (files / "elsewhere").mkdir()
        file = files / "elsewhere/rows.jsonl"
        write(file, [row | {"picture": str(files / row["picture"]) if row["picture"] else None} for row in ROWS])
    else:
        (files / "data").mkdir()
        (files / "data/pictures").symlink_to(files / "pictures")
        write(files / "data/train.jsonl", ROWS)
        write(files / "data/validation.jsonl", ROWS)
        values |= {"dataset_name": str(files / "data"), "train_file": None, "validation_file": None}
    if kind != "folder":
        values |= {"train_file": str(file), "validation_file": str(file)}
    found = results(run(files, **values, output_dir=str(files / "again")).parent / "again")
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_chats_with_pictures(files):
    chats = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": row["label"]}]},
            ],
            "images": [row["picture"]],
        }
        for row in ROWS
        if row["picture"]
    ]
    write(files / "chats.jsonl", chats)
    file = str(files / "chats.jsonl")
    none = dict.fromkeys(["source_template", "label_column", "label_words"])
    values = none | {"messages_column": "messages", "image_columns": ["images"], "max_target_length": 4}
    out = run(files, **values, train_file=file, validation_file=file)
    first = records(out)[0]
    assert first["input"] == [
        {"role": "user", "content": [{"type": "image", "path": "dog.png"}, {"type": "text", "text": "a small dog ?"}]}
    ]
    assert first["reference"] == "yes" and isinstance(first["prediction"], str)
    with pytest.raises(PromptTuningError, match=r"messages have 1 parts .* 'images' has 0 pictures"):
        write(files / "chats.jsonl", [chat | {"images": []} for chat in chats])
        run(files, **values, train_file=file, validation_file=file)


def test_texts_alone(files, caplog):
    """The command trains the backbone on texts as it does others, and says that no picture is read."""
    write(files / "rows.jsonl", [{"question": row["question"], "label": row["label"]} for row in ROWS])
    values = {"image_columns": None, "source_template": "{question} Answer :", "num_train_epochs": 1}
    out = run(files, **values)
    assert "| processor |" not in (out / "README.md").read_text()
    assert "LlavaForConditionalGeneration reads pictures, and the template names no column" in caplog.text
    info = json.loads((out / "prompt_tuning.json").read_text())
    assert info["template"]["max_source_length"] == 512 and "processor" not in info["data"]
    assert load_prompt(out, backbone=yaml.safe_load((files / "config.yaml").read_text())["model_name_or_path"])
    chats = {"source_template": "{question}", "chat": True}
    assert "eval_accuracy" in results(run(files, **values | chats))


def test_a_run_resumes(files):
    values = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no", "do_predict": False}
    whole = run(files, **values)
    losses = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    prompt = (whole / "adapter_model.safetensors").read_bytes()
    run(files, "--resume_from_checkpoint", whole / "checkpoint-1", **values)
    assert (whole / "adapter_model.safetensors").read_bytes() == prompt
    again = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    assert [log["loss"] for log in again if "loss" in log] == [log["loss"] for log in losses if "loss" in log]


def test_several_tasks_and_an_ensemble(files):
    """Tasks with pictures and without, each with its files and predictions; and prompts that vote."""
    write(files / "words.jsonl", [{"question": row["question"], "label": row["label"]} for row in ROWS])
    words = {"train_file": str(files / "words.jsonl"), "validation_file": str(files / "words.jsonl")}
    own = ("source_template", "image_columns", "train_file", "validation_file")
    config = yaml.safe_load((files / "config.yaml").read_text())
    tasks = [
        {"name": "seen"} | {name: config[name] for name in own},
        {"name": "read", "source_template": "{question} Answer :"} | words,
    ]
    out = run(files, **dict.fromkeys(own) | {"tasks": tasks, "num_train_epochs": 1})
    assert records(out / "seen")[0]["input"] == "Seen : [dog.png] a small dog ? Answer :"
    assert records(out / "read")[0]["input"] == "a small dog ? Answer :"
    infos = [json.loads((out / name / "prompt_tuning.json").read_text()) for name in ("seen", "read")]
    assert [info["template"]["max_source_length"] for info in infos] == [None, 512]
    assert [info["data"].get("picture_columns") for info in infos] == ["picture", None]
    voted = run(files, "--num_prompts", 2, "--output_dir", files / "voted", num_train_epochs=1).parent / "voted"
    first = records(voted)[0]
    assert first["input"] == "Seen : [dog.png] a small dog ? Answer :" and set(first["votes"]) == {
        "prompt_1",
        "prompt_2",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_columns": ["photo"]}, "image_columns names 'photo', which is no column of the data file"),
        ({"image_columns": ["picture", "label"]}, r"row 1 .* 'label' names the picture 'yes', and there is no file"),
        ({"source_template": "{question}"}, r"image_columns names 'picture', and the source_template .* no place"),
        ({"max_source_length": 40}, "max_source_length is 40, and the row has pictures, which are not cut"),
        ({"gguf_file": "x.gguf"}, "'picture' has pictures, and gguf_file is 'x.gguf'"),
        ({"teacher_text": "Be kind."}, "a teacher reads texts alone"),
        ({"task_type": "SEQ_CLS", "label_words": None}, "image_columns is picture, and a classification head reads"),
    ],
)
def test_what_cannot_be_is_refused(values, message, files):
    with pytest.raises(PromptTuningError, match=message):
        run(files, **values)
    assert not (files / "out").exists()


def test_a_picture_that_is_missing_or_no_picture(files):
    write(files / "rows.jsonl", [ROWS[0], ROWS[2] | {"picture": "pictures/cat.png"}])
    with pytest.raises(
        PromptTuningError, match=r"row 2 of the data file .* picture 'pictures/cat.png', and there is n"
    ):
        run(files)
    (files / "pictures/cat.png").write_text("no picture")
    with pytest.raises(PromptTuningError, match=r"row 2 of the training data \(row 2 of rows.jsonl\): .*cat\.png"):
        run(files)


def test_a_backbone_that_reads_texts_alone(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    make_tokenizer("gpt2").save_pretrained(folder)
    with pytest.raises(PromptTuningError, match="'picture' has pictures, and the backbone is a LlamaForCausalLM"):
        run(files, model_name_or_path=str(folder))
