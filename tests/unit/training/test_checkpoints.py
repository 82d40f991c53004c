"""Checkpoints on disk: whole or passed over, and what a kill at each stage of a save leaves."""

import json
import shutil

import pytest
from transformers.trainer_utils import get_last_checkpoint

from hf_prompt_tuning import CheckpointSaveError
from hf_prompt_tuning.training.checkpoint_folder import (
    UNFINISHED,
    damage,
    fault,
    newest_whole,
    publish,
    saving,
    seal,
    tidy,
)


def written(folder, content="a prompt"):
    (folder / "sub").mkdir(parents=True)
    (folder / "prompt.safetensors").write_text(content)
    (folder / "sub" / "rank_1").write_text("state")
    return folder


def sealed(folder, content="a prompt"):
    seal(written(folder, content))
    return folder


def cut(folder):
    (folder / "prompt.safetensors").write_text("a pro")


def changed(folder):
    (folder / "prompt.safetensors").write_text("a prampt")


def lacking(folder):
    (folder / "sub" / "rank_1").unlink()


def without_manifest(folder):
    (folder / "manifest.json").unlink()


def half_a_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def another_manifest(folder):
    (folder / "manifest.json").write_text("[1]")


SPOILT = {
    cut: "has 5 bytes of prompt.safetensors, not 8",
    changed: "has another prompt.safetensors than was saved",
    lacking: "lacks sub/rank_1",
    without_manifest: "has no manifest.json",
    half_a_manifest: "cannot be read",
    another_manifest: "cannot be read",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_a_spoilt_checkpoint_is_named_and_hides_no_older_one(spoil, tmp_path, caplog):
    for step in (2, 4, 10):
        sealed(tmp_path / f"checkpoint-{step}")
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-10")
    assert caplog.messages == []
    spoil(tmp_path / "checkpoint-10")
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-4")
    assert len(caplog.messages) == 1
    assert f"checkpoint-10 {SPOILT[spoil]}" in caplog.messages[0]
    assert "checkpoint-4" not in caplog.messages[0]


def test_without_a_whole_one_there_is_none(tmp_path, caplog):
    assert newest_whole(tmp_path / "nowhere") is None
    written(tmp_path / "checkpoint-2")
    assert newest_whole(tmp_path) is None
    assert caplog.messages == [f"Not resumed from in {tmp_path}, not being whole: checkpoint-2 has no manifest.json."]


def test_the_newest_is_the_one_saved_last(tmp_path):
    """A folder may hold an older run's checkpoint of a later step."""
    sealed(tmp_path / "checkpoint-100")
    sealed(tmp_path / "checkpoint-5")
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-5")


def test_a_checkpoint_of_other_hands_has_no_damage_that_is_known(tmp_path):
    assert damage(written(tmp_path / "checkpoint-2")) == ""
    assert fault(tmp_path / "checkpoint-2") == "has no manifest.json"


def files(folder):
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def killed_while_writing(staged, final):
    written(staged, "half")


def killed_while_sealing(staged, final):
    written(staged, "half")
    (staged / "manifest.json").write_text('{"saved_at": 1.0, "files": {"prompt.safe')


def killed_before_the_rename(staged, final):
    sealed(staged, "new")


def killed_between_the_renames(staged, final):
    sealed(staged, "new")
    final.rename(staged.with_name("replaced"))


def killed_after_the_rename(staged, final):
    sealed(staged, "new")
    final.rename(staged.with_name("replaced"))
    staged.rename(final)


STAGES = {
    killed_while_writing: "old",
    killed_while_sealing: "old",
    # The old one of that step is whole, and which of the two is taken makes no difference.
    killed_before_the_rename: "old",
    killed_between_the_renames: "new",
    killed_after_the_rename: "new",
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda f: f.__name__)
def test_whatever_the_stage_a_whole_checkpoint_has_the_name(stage, tmp_path, caplog):
    sealed(tmp_path / "checkpoint-2", "oldest")
    final, staged = sealed(tmp_path / "checkpoint-4", "old"), tmp_path / UNFINISHED / "checkpoint-4"
    stage(staged, final)
    seen = get_last_checkpoint(str(tmp_path))
    assert fault(seen) == ""
    tidy(tmp_path)
    assert newest_whole(tmp_path) == str(final)
    assert files(final)["prompt.safetensors"] == STAGES[stage]
    assert not (tmp_path / UNFINISHED).exists()
    assert caplog.messages == []


@pytest.mark.parametrize("before", [None, cut])
def test_a_sealed_checkpoint_that_a_kill_left_nameless_gets_its_name(before, tmp_path):
    if before:
        before(sealed(tmp_path / "checkpoint-4", "a prompt"))
    sealed(tmp_path / UNFINISHED / "checkpoint-4", "new")
    tidy(tmp_path)
    assert files(tmp_path / "checkpoint-4")["prompt.safetensors"] == "new"
    assert fault(tmp_path / "checkpoint-4") == ""
    assert not (tmp_path / UNFINISHED).exists()


def test_a_checkpoint_can_be_copied_elsewhere(tmp_path):
    sealed(tmp_path / UNFINISHED / "checkpoint-4")
    publish(tmp_path / UNFINISHED / "checkpoint-4", tmp_path / "checkpoint-4")
    assert {f.name for f in tmp_path.iterdir()} == {"checkpoint-4"}
    assert set(json.loads((tmp_path / "checkpoint-4/manifest.json").read_text())["files"]) == {
        "prompt.safetensors",
        "sub/rank_1",
    }
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "elsewhere")
    assert fault(tmp_path / "elsewhere") == ""


def test_what_cannot_be_written_is_one_error(tmp_path):
    written(tmp_path / UNFINISHED / "checkpoint-4")
    message = r"checkpoint-4 could not be saved in .* MB free\): no room"
    with pytest.raises(CheckpointSaveError, match=message), saving(tmp_path, "checkpoint-4"):
        raise RuntimeError("no room\nand a C++ stack")
    assert not (tmp_path / UNFINISHED).exists()
