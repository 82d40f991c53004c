"""The inspection's page and text: whole, of nothing but themselves, and safe whatever a prompt holds."""

import base64
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch

from hf_prompt_tuning import PromptTemplate, PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.cli.inspect import main
from hf_prompt_tuning.inspection.inspector import inspect_prompt
from hf_prompt_tuning.inspection.results import Position, PromptInspection, Word
from hf_prompt_tuning.inspection.text import findings
from tests.shared.tiny_models import make_tokenizer, tiny_model

EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "\x1b[31m\u202e"]
TEMPLATE = PromptTemplate(
    "Message : {message} Label :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements, attributes and texts of a page; it must be well formed."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def of(self, name):
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def evil():
    """An inspection of two prompts whose words, templates, labels, names and metrics attack who looks at them."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(EVIL)
    size = len(tokenizer)
    template = PromptTemplate(
        f"{EVIL[0]} {{{EVIL[1]}}} {EVIL[2]}", label_column="label", label_words={"1": EVIL[0], "2": EVIL[1]}
    )
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="FIRST_VOCAB")
    model = get_prompt_tuning_model(tiny_model("llama", vocab_size=size), config, tokenizer, template)
    with torch.no_grad():
        model.prompt.copy_(model.word_embeddings(torch.arange(size - 3, size)))
    model.info.metrics = {f"eval_{EVIL[0]}": 0.5, "eval_loss": float("nan")}
    model.info.backbone |= {"name_or_path": EVIL[1]}
    model.add_adapter("other", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    found = inspect_prompt(model, tokenizer, [{EVIL[1]: "never came", "label": "1"}, {EVIL[1]: "x", "label": "2"}])
    for one, name in zip(found.prompts, EVIL[1:], strict=True):
        one.name = name
    found.comparison.names[:] = EVIL[1:]
    found.comparison.transfer = {EVIL[1]: [EVIL[2]], EVIL[2]: [EVIL[1]]}
    return found


@pytest.fixture(scope="module")
def html(evil):
    return evil.to_html()


def test_what_a_prompt_holds_is_text_on_the_page_and_nothing_else(evil, html):
    assert [position.by_cosine[0].text for position in evil.prompts[0].positions] == EVIL
    page = Page(html)
    assert "script" not in page.tags and "iframe" not in page.tags and page.tags.count("img") == 8
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    for text in EVIL[:2]:
        assert page.texts.count(text) >= 3  # the word by cosine, by distance, a label
    assert "\x1b" not in html and "\u202e" not in html
    assert page.texts.count("\\x1b[31m\\u202e") >= 3


def test_the_page_fetches_nothing(html):
    page = Page(html)
    assert all(value.startswith("data:image/svg+xml;base64,") for value in page.of("src"))
    assert page.of("href") and all(value.startswith("#") for value in page.of("href"))
    assert {value[1:] for value in page.of("href")} <= set(page.of("id"))
    assert not {"link", "base", "object", "embed", "form"} & set(page.tags)
    assert not re.search(r"@import|url\(|https?:", html)
    assert "default-src 'none'" in " ".join(page.of("content"))
    for value in page.of("src"):
        picture = base64.b64decode(value.split(",", 1)[1]).decode()
        assert picture.rstrip().endswith("</svg>")
        assert not re.search(r"<script|@import|(href|src)=\"(?!#|data:)", picture)


def test_the_text_controls_no_terminal(evil):
    text = evil.to_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert r"\x1b[31m\u202e" in text and "'<script>alert(1)</script>' (1.00, 0.00)" in text


def inspected(losses, accuracies):
    """A prompt of two vectors whose loss is 1 and accuracy 0.5, and what these are without each."""
    word = Word("a", 5, 0.5, 2.0)
    positions = [
        Position(i + 1, [word], [word], norm, 100.0 * i, None, 0.1 * (i + 1), loss, accuracy)
        for i, (norm, loss, accuracy) in enumerate(zip((1.0, 3.0), losses, accuracies, strict=True))
    ]
    norms = {"quantiles": {"50": 2.0}, "edges": [0.0, 4.0], "counts": [7.0]}
    values = dict(rows=4, labelled_rows=4, loss=1.0, accuracy=0.5, attention_by_layer=[[0.1, 0.2]])
    values["notes"] = {"moved": "it is not."}
    return PromptInspection("p", "b", 2, None, [], "x", {}, positions, [[1, -0.25], [-0.25, 1]], norms, **values)


def test_what_stands_out_is_said():
    assert findings(inspected([0.75, 1.5], [0.5, 0.25])) == [
        "1 of 2 vectors is longer than 99 % of the vocabulary's (norms 1 to 3, the vocabulary's median 2).",
        "The nearest word has a cosine of 0.50 on average.",
        "The most alike positions are 1 and 2 (cosine -0.25); 0 of 1 pairs are above 0.9.",
        "The text pays 30 % of its attention to the prompt, the largest share to position 2 (20.0 %).",
        "The loss is 1.0000; without position 2, the one that is missed most, it is 1.5000. "
        "1 of 2 vectors lowers it by leaving.",
        "The accuracy is 0.500, the same without 1 of 2 vectors, each on its own; "
        "it is lowest without position 2 (0.250).",
        "How far the vectors moved is not known: it is not.",
    ]
    unhurt = findings(inspected([0.75, 0.5], [0.5, 0.75]))
    assert unhurt[4] == "The loss is 1.0000; no removal raises it. 2 of 2 vectors lower it by leaving."
    assert unhurt[5].endswith("the same without 1 of 2 vectors, each on its own; no removal lowers it.")


def test_the_page_shows_the_numbers(tokenizer, messages):
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init_text="Classify if the message")
    model = get_prompt_tuning_model(tiny_model("llama"), config, tokenizer, TEMPLATE)
    found = inspect_prompt(model, tokenizer, messages)
    one, page = found.prompts[0], Page(found.to_html())
    assert page.texts.count("What a prompt has learned") == 1 and "Comparison" not in page.texts
    for position in one.positions:
        assert f"{position.by_cosine[0].cosine:.2f} · {position.by_cosine[0].distance:.2f}" in page.texts
        assert f"{position.loss_without:.4f}" in page.texts
        assert f"{100 * position.attention:.2f} %" in page.texts
        text = [line for line in found.to_text().splitlines() if re.match(rf"  {position.number}  ", line)]
        assert len(text) == 1 and text[0].endswith(f"{position.accuracy_without:.3f}")
        assert f"{100 * position.attention:.2f}%" in text[0]
    titles = {"Norms beside the vocabulary's", "How far each vector moved", "Loss without each vector"}
    assert titles <= set(page.of("alt"))
    least = inspect_prompt(model, tokenizer)
    assert set(Page(least.to_html()).of("alt")) == {
        "Norms beside the vocabulary's",
        "How far each vector moved",
        "Similarity between positions",
    }


def test_the_page_in_a_browser(html, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here; the page's elements and pictures are checked by the tests above")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run(
        [browser, *flags, "--window-size=1200,4000", f"--screenshot={tmp_path / 'page.png'}", tmp_path / "page.html"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    image = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert image.shape[:2] == (4000, 1200)
    bars = (np.abs(image - np.array([0x2F, 0x6D, 0xB3]) / 255) < 0.02).all(-1)
    diagonal = (np.abs(image - np.array([0x67, 0x00, 0x1F]) / 255) < 0.02).all(-1)
    assert bars.sum() > 5000 and diagonal.sum() > 5000  # both prompts' pictures are drawn


@pytest.fixture
def folders(tmp_path, tokenizer, messages):
    """A backbone, two prompts and rows of text, on disk."""
    backbone = tiny_model("llama")
    backbone.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    for name, words in (("one", "Classify if the message"), ("two", "positive negative")):
        config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init_text=words)
        get_prompt_tuning_model(backbone, config, tokenizer, TEMPLATE).save_pretrained(tmp_path / name)
    lines = ["\t".join(row.values()) for row in messages]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_command(folders):
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "hf_prompt_tuning.cli.inspect",
                folders / "one",
                "--backbone",
                folders / "backbone",
            ),
            *("--data", folders / "rows.tsv", "--column_names", "message", "label", "--max_rows", "6"),
            *("--html", folders / "page.html", "--json", folders / "found.json"),
        ],
        capture_output=True,
        text=True,
        cwd=folders,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"prompt {str(folders / 'one')!r}" in done.stdout and "6 rows, 6 of them with a target" in done.stdout
    assert "accuracy without" in done.stdout
    assert '"loss_without"' in (folders / "found.json").read_text()
    assert "Accuracy<br>without" in (folders / "page.html").read_text()


def test_the_command_compares(folders, capsys):
    main([str(folders / "one"), str(folders / "two"), "--backbone", str(folders / "backbone"), "--words", "2"])
    text = capsys.readouterr().out
    assert "cosine of the mean vectors" in text
    assert f"  {str(folders / 'one')!r} <- {str(folders / 'two')!r}" in text


def test_what_the_command_refuses(folders):
    with pytest.raises(PromptTuningError, match=r"max_rows is 0; give 1 or more"):
        main([str(folders / "one"), "--max_rows", "0"])
    with pytest.raises(PromptTuningError, match="words is 0; give 1 or more, in whole numbers"):
        main([str(folders / "one"), "--words", "0"])
    with pytest.raises(PromptTuningError, match="there is no such folder"):
        main([str(folders / "one"), "--html", str(folders / "nowhere" / "page.html")])
    with pytest.raises(PromptTuningError, match="give it as backbone="):
        main([str(folders / "one")])
    with pytest.raises(PromptTuningError, match=r"nothing\.jsonl' is not there"):
        main([str(folders / "one"), "--data", "nothing.jsonl"])
