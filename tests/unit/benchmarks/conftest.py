"""Benchmarks are scripts, which find the files beside them."""

import json
import sys

import pytest

from tests.shared.repository import ROOT

sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture
def reviews(tmp_path):
    """A file that describes a task of 20 rows in folds, and one of 90 rows with a test file of 12."""

    def rows(count: int) -> str:
        texts = ["great film", "awful plot", "thank you"]
        return "".join(
            json.dumps({"text": f"{texts[i % 3]} {i}", "mood": ["good", "bad", "good"][i % 3], "number": i}) + "\n"
            for i in range(count)
        )

    for name, count in (("few", 20), ("train", 90), ("test", 12)):
        (tmp_path / f"{name}.jsonl").write_text(rows(count))
    file = tmp_path / "tasks.yaml"
    file.write_text(
        """
few: {train_file: few.jsonl, folds: 4, template: "Message : {text} Label :", label_column: mood, sizes: {all: 2}}
many:
  train_file: train.jsonl
  test_file: test.jsonl
  template: "Message : {text} Label :"
  label_column: mood
  text: "Classify if the message is a complaint or not:"
  sizes: {12: 2, all: 1}
"""
    )
    return file
