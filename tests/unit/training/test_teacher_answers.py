"""Targets that a teacher writes: what they are, that they are kept, and when the kept ones are refused."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import set_seed

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptTuningConfig,
    PromptTuningError,
    Teacher,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.layouts.base import IGNORED
from hf_prompt_tuning.models.create import add_prompt
from hf_prompt_tuning.training.answer_files import ANSWERS_FILE, UNFINISHED_FILE, read_answers
from hf_prompt_tuning.training.teacher_answers import Writer
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.ensembles import make as make_ensemble
from tests.shared.teaching import TEXT, taught
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE

ROWS = [{"message": text} for text in ("never came", "thank you for the quick help", "why", "day and night")]

make = partial(taught, rows=ROWS, eval_rows=ROWS[:2], teacher_writes=2, teacher_max_new_tokens=5)


def targets(rows, column="labels"):
    return [[i for i in row[column] if i != IGNORED] for row in rows]


@torch.no_grad()
def greedy_by_hand(backbone, ids, steps, ends):
    new = []
    while len(new) < steps and not (new and new[-1] in ends):
        new.append(int(backbone(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_answers_are_those_of_the_backbone_behind_the_text(tmp_path, side):
    tokenizer = make_tokenizer("llama")
    tokenizer.padding_side = side
    trainer = make(tmp_path, tokenizer=tokenizer, teacher_writes=1, teacher_temperature=0.0)
    context = tokenizer(TEXT + "\n\n", add_special_tokens=False)["input_ids"]
    coder = trainer.model.row_encoder(tokenizer)
    for data, rows in ((trainer.train_dataset, ROWS), (trainer.eval_dataset, ROWS[:2])):
        assert len(data) == len(rows)
        for row, given in zip(data, rows, strict=True):
            source = coder.source_ids(given)[0]
            answer = greedy_by_hand(trainer.model.get_base_model(), [1, *context, *source[1:]], 5, [2])
            assert row["input_ids"] == source + answer
            assert row["labels"] == [IGNORED] * len(source) + answer and row["length"] == len(row["labels"])
            assert row["teacher_0_input_ids"] == [1, *context, *source[1:], *answer]
            assert row["teacher_0_labels"] == [IGNORED] * (len(source) + len(context)) + answer


def test_sampled_answers_are_kept_and_used_again(tmp_path):
    set_seed(3)
    first = make(tmp_path)
    assert len(first.train_dataset) == 8 and len(first.eval_dataset) == 2
    assert len(set(map(tuple, targets(first.train_dataset)))) > 4  # sampled, not the most likely ones
    answer = targets(first.train_dataset)[0]
    assert first.model.info.example["target"] == first.processing_class.decode(answer, skip_special_tokens=True)
    text = (tmp_path / ANSWERS_FILE).read_text()
    assert [json.loads(line)["data"] for line in text.splitlines()] == ["training"] * 5 + ["evaluation"] * 3
    set_seed(4)
    again = make(tmp_path)
    assert again.train_dataset.to_dict() == first.train_dataset.to_dict()
    assert (tmp_path / ANSWERS_FILE).read_text() == text
    (tmp_path / ANSWERS_FILE).unlink()
    set_seed(5)
    assert make(tmp_path).train_dataset.to_dict() == first.train_dataset.to_dict()
    other = make(tmp_path / "other", seed=7)
    assert targets(other.train_dataset) != targets(first.train_dataset)
    first.train()
    assert "eval_kl" in first.evaluate()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": Teacher(text="Be kind")}, "another teacher"),
        ({"rows": ROWS[1:]}, "other rows"),
        ({"teacher_writes": 3}, "teacher_writes=2, and this run has 3"),
        ({"teacher_temperature": 0.5}, "teacher_temperature=1.0, and this run has 0.5"),
        ({"teacher_top_p": 0.5}, "teacher_top_p=1.0"),
        ({"teacher_max_new_tokens": 6}, "teacher_max_new_tokens=5"),
        ({"seed": 7}, "seed=42"),
        ({"name": "gemma"}, "another backbone"),
    ],
)
def test_answers_of_another_run_are_refused(tmp_path, change, words):
    make(tmp_path, eval_rows=None)
    with pytest.raises(PromptTuningError, match=words):
        make(tmp_path, **{"eval_rows": None} | change)


def test_a_damaged_file_is_refused_and_a_half_written_one_ignored(tmp_path):
    (tmp_path / f"{ANSWERS_FILE}.partial").write_text("{")
    make(tmp_path)
    (tmp_path / ANSWERS_FILE).write_text('{"data": "training", "token_ids"')
    with pytest.raises(PromptTuningError, match="is not a file of a teacher's answers"):
        make(tmp_path)


def test_a_file_without_its_end_is_refused(tmp_path):
    make(tmp_path, eval_rows=None)
    file = tmp_path / ANSWERS_FILE
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PromptTuningError, match="has training answers to 3 rows of 4, so it is not whole"):
        make(tmp_path, eval_rows=None)


def test_an_answer_fits_behind_each_teacher(tmp_path):
    """One teacher writes it, and all of them read it: it ends where the row of the longest would have no more room."""
    long = Teacher(text="day and night " * 36)
    trainer = make(tmp_path, [Teacher(text="a dog"), long], teacher_writes=1, teacher_max_new_tokens=40)
    rooms = [
        128 - len(ids) + len(new)
        for ids, new in zip(trainer.train_dataset["teacher_1_input_ids"], targets(trainer.train_dataset), strict=True)
    ]
    assert all(0 < room < 40 for room in rooms)
    for row, room in zip(trainer.train_dataset, rooms, strict=True):
        assert len(targets([row])[0]) <= room
        assert targets([row]) == targets([row], "teacher_0_labels") == targets([row], "teacher_1_labels")
    trainer.train()


def test_an_answer_fits_behind_each_prompt_that_teaches(tmp_path):
    place = {"num_virtual_tokens": 100, "prompt_tuning_init": "RANDOM"}
    model = get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=3))
    add_prompt(model, "long", PromptTuningConfig(**place))
    teachers = [Teacher(text="a dog"), Teacher(prompt="long")]
    trainer = make(tmp_path, teachers, model=model, teacher_writes=1, teacher_max_new_tokens=60)
    assert max(map(len, trainer.train_dataset["teacher_1_input_ids"])) <= 28
    trainer.train()


def test_an_answer_may_hold_what_ends_a_line_elsewhere(tmp_path):
    lines = [{"data": "training", "settings": {}}, {"data": "training", "texts": ["a\u2028b\x85"], "token_ids": [[7]]}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / ANSWERS_FILE).write_text(text, encoding="utf-8")
    assert read_answers(tmp_path / ANSWERS_FILE) == {"training": ({}, [[[7]]])}


def dies_after(monkeypatch, batches):
    """Let a teacher write so many batches, and no more."""
    write, written = Writer._batch, []

    def dying(*args):
        if len(written) == batches:
            raise KeyboardInterrupt
        written.append(write(*args))
        return written[-1]

    monkeypatch.setattr(Writer, "_batch", dying)
    return written


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("end", ["", '{"token_ids": [[3', '{"token_ids": [[3]]}'])
def test_writing_that_was_interrupted_goes_on_where_it_stopped(tmp_path, monkeypatch, caplog, batches, end):
    """In batches of 3: three for the training rows (8 answers), one for the evaluation rows (2 answers)."""
    uses = {"per_device_eval_batch_size": 3}
    whole = make(tmp_path / "whole", **uses)
    with monkeypatch.context() as patched:
        dies_after(patched, batches)
        if batches < 4:
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / "cut", **uses)
            unfinished = tmp_path / "cut" / UNFINISHED_FILE
            unfinished.write_text(unfinished.read_text() + end)
        else:
            make(tmp_path / "cut", **uses)
    set_seed(9)
    torch.rand(batches)
    with monkeypatch.context() as patched:
        written = dies_after(patched, 9)
        again = make(tmp_path / "cut", **uses)
    assert len(written) == 4 - batches
    assert ("this line is dropped" in caplog.text) is (end != "" and batches < 4)
    assert ("answers were written before, and are kept" in caplog.text) is (batches in (1, 2))
    for name in ("train_dataset", "eval_dataset"):
        assert getattr(again, name).to_dict() == getattr(whole, name).to_dict()
    files = [(tmp_path / folder / ANSWERS_FILE).read_bytes() for folder in ("whole", "cut")]
    assert files[0] == files[1] and not (tmp_path / "cut" / UNFINISHED_FILE).exists()


def test_unfinished_answers_of_another_run_or_damaged_ones_are_refused(tmp_path, monkeypatch):
    uses = {"per_device_eval_batch_size": 3}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        dies_after(patched, 2)
        make(tmp_path, **uses)
    with pytest.raises(PromptTuningError, match=rf"{UNFINISHED_FILE} has the training answers of another teacher"):
        make(tmp_path, teacher=Teacher(text="Be kind"), **uses)
    kept = (tmp_path / UNFINISHED_FILE).read_text()
    (tmp_path / UNFINISHED_FILE).write_text(kept.replace('"training"', '"evaluation"'))
    with pytest.raises(PromptTuningError, match="has unfinished evaluation answers, and this run has none to"):
        make(tmp_path, **uses)
    more = kept + '{"token_ids": [[3], [3], [3]]}\n'
    for damaged in (kept.replace("token_ids", "ids"), kept.replace('{"token', "{token"), "[]\n", more):
        (tmp_path / UNFINISHED_FILE).write_text(damaged)
        with pytest.raises(PromptTuningError, match=rf"{UNFINISHED_FILE} is not a file of a teacher's answers"):
            make(tmp_path, **uses)
    (tmp_path / UNFINISHED_FILE).write_text(kept)
    other_size = make(tmp_path, per_device_eval_batch_size=2)
    assert len(other_size.train_dataset) == 8
    # One that is finished, and was not removed, does not count.
    lines = (tmp_path / ANSWERS_FILE).read_text().splitlines(keepends=True)
    (tmp_path / ANSWERS_FILE).write_text("".join(lines[:5]))
    (tmp_path / UNFINISHED_FILE).write_text(kept)
    again = make(tmp_path, **uses)
    assert again.train_dataset.to_dict() == other_size.train_dataset.to_dict() and len(again.eval_dataset) == 2


def test_a_chat_is_answered_in_place_of_its_last_answer(tmp_path):
    tokenizer = chat_tokenizer("chatml")
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "no"}]
    rows = [{"messages": [*turns, {"role": "user", "content": "never came"}]}, {"messages": turns}]
    trainer = make(tmp_path, rows=rows, eval_rows=None, template=ChatTemplate(chat=ChatFormat()), tokenizer=tokenizer)
    for row, chat in zip(list(trainer.train_dataset)[::2], ([*turns, rows[0]["messages"][2]], turns[:1]), strict=True):
        for column, messages in (("", chat), ("teacher_0_", [{"role": "system", "content": TEXT}, *chat])):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            source = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert row[f"{column}input_ids"][: len(source)] == source
            assert row[f"{column}labels"] == [IGNORED] * len(source) + row[f"{column}input_ids"][len(source) :]
        assert targets([row]) == targets([row], "teacher_0_labels")


@pytest.mark.parametrize("answer", ["", "a long answer that the teacher does not read " * 3])
def test_answers_that_rows_have_are_not_read(tmp_path, answer):
    """They may be empty, or too long for `max_target_length`, which limits what the teacher writes."""
    turn = {"role": "user", "content": "why"}
    chats = [{"messages": [turn, {"role": "assistant", "content": answer}]}]
    template = ChatTemplate(chat=ChatFormat(), max_target_length=8)
    values = {"rows": chats, "eval_rows": None, "teacher_max_new_tokens": None, "teacher_writes": 1}
    trainer = make(tmp_path / "chats", template=template, tokenizer=chat_tokenizer("chatml"), **values)
    alone = make(
        tmp_path / "alone",
        template=template,
        tokenizer=chat_tokenizer("chatml"),
        **values | {"rows": [{"messages": [turn]}]},
    )
    assert list(trainer.train_dataset) == list(alone.train_dataset)
    texts = [row | {"answer": answer} for row in ROWS]
    short = replace(FREE, max_target_length=8)
    trainer = make(tmp_path / "texts", template=short, **values | {"rows": texts})
    alone = make(tmp_path / "rows", template=short, **values | {"rows": ROWS})
    assert list(trainer.train_dataset) == list(alone.train_dataset)


def test_rows_have_their_own_targets_if_they_are_given_later(tmp_path):
    trainer = make(tmp_path)
    rows = [row | {"answer": "a dog"} for row in ROWS]
    data = trainer.rows(rows, "test", require_target=False)
    assert targets(data) == [trainer.rows.tokenizer.target_ids("a dog")] * 4
    assert trainer.evaluate(rows)["eval_kl"] > 0
    assert "test_kl" not in trainer.predict(rows).metrics


def test_the_members_of_an_ensemble_take_turns(tmp_path, messages):
    ensemble = make_ensemble(tmp_path / "ensemble", messages, template=FREE, evaluate=False)
    ensemble.save_model(str(tmp_path / "ensemble"))
    teacher = Teacher(prompt=tmp_path / "ensemble")
    tokenizer = ensemble.processing_class
    values = {"tokenizer": tokenizer, "teacher_writes": 1, "teacher_temperature": 0.0, "eval_rows": None}
    trainer = make(tmp_path, teacher, **values)
    coder = ensemble.model.row_encoder(tokenizer)
    for i, row in enumerate(ROWS):
        ids = torch.tensor([coder.source_ids(row)[0]])
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
        new = ensemble.model.generate(input_ids=ids, adapter_names=[ensemble.members[i % 3]], **options)
        assert targets(trainer.train_dataset)[i] == new[0, ids.shape[1] :].tolist()


def test_an_encoder_decoder_is_taught_what_it_writes_behind_the_text(tmp_path):
    tokenizer = make_tokenizer("t5")
    trainer = make(tmp_path, tokenizer=tokenizer, name="t5", teacher_writes=1, teacher_temperature=0.0)
    context = tokenizer(TEXT + "\n\n", add_special_tokens=False)["input_ids"]
    for row in trainer.train_dataset:
        ids = torch.tensor([context + row["input_ids"]])
        options = {"max_new_tokens": 5, "do_sample": False}
        new = trainer.model.get_base_model().generate(input_ids=ids, **options)[0, 1:].tolist()
        assert row["labels"] == row["teacher_0_labels"] == new
    trainer.train()
