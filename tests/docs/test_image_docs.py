"""The code of the how-to page on pictures runs as it is written."""

import pytest

from tests.shared.doc_pages import run
from tests.shared.tiny_processors import seeing_model, tiny_processor

# torch's word on a machine without a GPU, for TrainingArguments' defaults
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def test_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    processor = tiny_processor("smolvlm")
    names = run("how-to/images.md", {"backbone": seeing_model("smolvlm", processor), "processor": processor})
    image = processor.image_token_id
    seen = names["trainer"].tasks["colours"].train_dataset
    assert all(row["input_ids"].count(image) == 20 for row in seen)  # of five tiles
    assert names["trainer"].state.global_step > 0
    assert "eval_accuracy" in capsys.readouterr().out
    assert names["tokens"].shape[0] == 1 and names["batch"]["pixel_values"].shape[1] == 5
    assert names["model"].info.template.chat.chat_template == processor.chat_template
    for folder in ("colours", "colour_chats", "both/colours", "both/words"):
        assert (tmp_path / f"outputs/{folder}/adapter_model.safetensors").exists()
