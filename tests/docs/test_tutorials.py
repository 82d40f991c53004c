"""The code of the pages that teach, run block after block as a reader would paste it.

In place of the large backbone and the Hub's data set: a tiny model and the demo's messages, under the same names.
"""

import re

import datasets
import pytest
import torch
import transformers

from tests.shared.doc_pages import run
from tests.shared.tiny_models import make_tokenizer, tiny_model


@pytest.fixture
def small_world(tmp_path, monkeypatch, messages):
    """A folder to work in, where the large backbone's name is a tiny one's folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bigscience" / "bloomz-560m"
    tiny_model("llama").save_pretrained(folder)
    make_tokenizer("gpt2").save_pretrained(folder)
    names = ["Unlabeled", "complaint", "no complaint"]
    features = datasets.Features({"Tweet text": datasets.Value("string"), "Label": datasets.ClassLabel(names=names)})
    rows = [{"Tweet text": row["message"], "Label": int(row["label"])} for row in messages * 2]
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **kwargs: {"ought/raft": data}[name])
    return tmp_path


def test_from_the_article(small_world, capsys):
    transformers.set_seed(0)
    names = run("tutorials/from-the-article.md", {"__name__": "page"})
    printed = capsys.readouterr().out
    peft_losses, our_losses = names["peft_losses"], names["our_losses"]
    assert len(peft_losses) == len(our_losses) == 50
    assert our_losses[:3] == pytest.approx(peft_losses[:3], rel=1e-3)
    assert our_losses[-1] < our_losses[0] - 0.2 and peft_losses[-1] < peft_losses[0] - 0.2
    found = re.findall(r"epoch (\d+): train loss ([\d.]+), perplexity ([\d.]+); evaluation loss ([\d.]+)", printed)
    assert [int(epoch) for epoch, *_ in found] == [*range(1, 51)] * 2
    for _, loss, perplexity, _ in found:
        assert float(perplexity) == pytest.approx(torch.tensor(float(loss)).exp().item(), rel=1e-2)
    saved = {file.name for file in (small_world / "outputs" / "complaints").iterdir()}
    assert {"adapter_model.safetensors", "prompt_tuning.json", "README.md"} <= saved
