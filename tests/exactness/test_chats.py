"""Loss, gradient, generation and ranking on chats equal the backbone called by hand on what the template writes."""

from dataclasses import replace

import pytest
import torch
from transformers import TextIteratorStreamer

from hf_prompt_tuning import (
    ChatFormat,
    DataCollatorForPromptTuning,
    PromptTemplate,
    PromptTuningArguments,
    PromptTuningTrainer,
)
from hf_prompt_tuning.models.scoring import longest_target
from tests.shared.chat_templates import FAMILIES
from tests.shared.conversations import CHATS, ROWS, chat_setting
from tests.shared.reference import greedy, reference_loss, relative_error, row_encoder_of
from tests.shared.trainers import make


def by_hand(name, tokenizer):
    """Each row's tokens, and its labels, found by the text of each answer in what the template writes."""
    end = {"gemma": "<end_of_turn>", "phi": "<|end|>"}.get(name, tokenizer.eos_token)
    rows = []
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        spans, at = [], 0
        for answer in answers:
            start = text.index(answer + end, at)
            at = start + len(answer + end)
            before = {"mistral": 1, "qwen3": len("<think>\n\n</think>\n\n")}.get(name, 0)
            spans.append((start - before, at))
        spans = spans[-1:] if name == "qwen3" else spans
        kept = [any(a < to and b > start for start, to in spans) for a, b in ids["offset_mapping"]]
        labels = [i if keep else -100 for i, keep in zip(ids["input_ids"], kept, strict=True)]
        rows.append((torch.tensor(ids["input_ids"]), torch.tensor(labels)))
    return rows


@pytest.mark.parametrize("layout", ["packed", "cached", "padded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient(name, layout, tmp_path):
    tokenizer, template, model = chat_setting(name)
    trainer = make(tmp_path, tokenizer, ROWS, template, model, layout=layout)
    expected = by_hand(name, tokenizer)
    for row, (ids, labels) in zip(trainer.train_dataset, expected, strict=True):
        assert row["input_ids"] == ids.tolist() and row["labels"] == labels.tolist()
    batch = DataCollatorForPromptTuning(tokenizer)(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(loss, model.prompt)
    reference = reference_loss(model, expected)
    (by_rows,) = torch.autograd.grad(reference, model.prompt)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert relative_error(gradient, by_rows) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_an_evaluation_are_generated_behind_all_before_the_last_turn(name, side, tmp_path):
    tokenizer, template, model = chat_setting(name)
    tokenizer.padding_side = side
    trainer = make(tmp_path, tokenizer, None, template, model, eval_rows=ROWS, per_device_eval_batch_size=3)
    output = trainer.predict(ROWS)
    think = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert output.label_ids == [think + chat[-1]["content"] for chat in CHATS]
    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id, *row_encoder_of(trainer).end_ids}
    longest = longest_target(trainer.eval_dataset)
    for chat, text in zip(CHATS, output.predictions, strict=True):
        ids = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"]
        new = greedy(model, torch.tensor(ids), longest)
        end = next((i for i, token in enumerate(new) if token in ends), len(new))
        assert tokenizer.decode(new[:end], skip_special_tokens=True).strip() == text


def test_an_evaluation_row_that_ends_with_a_users_turn_is_answered_and_judged_by_nothing(tmp_path):
    """Not by its earlier answer, in place of the one that is asked for."""
    tokenizer, template, model = chat_setting("chatml")
    asked = [{"messages": chat} for chat in (CHATS[1], CHATS[0][:3])]
    trainer = make(tmp_path, tokenizer, None, template, model, eval_rows=asked)
    output = trainer.predict(asked)
    assert output.label_ids == [CHATS[1][-1]["content"], None]
    ids = tokenizer.apply_chat_template(CHATS[0][:3], add_generation_prompt=True)["input_ids"]
    new = greedy(model, torch.tensor(ids), longest_target(trainer.eval_dataset))
    assert output.predictions[1] == tokenizer.decode(new, skip_special_tokens=True).strip()
    alone = trainer.predict(asked[:1])
    for name in ("loss", "rougeL", "exact_match"):
        assert output.metrics.get(f"test_{name}") == pytest.approx(alone.metrics.get(f"test_{name}"), rel=1e-5)
    assert output.metrics["test_loss"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_ranked_as_the_assistants_words(name, tmp_path):
    tokenizer, _, model = chat_setting(name)
    template = PromptTemplate(
        "Message : {message}", label_column="label", label_words={"1": "complaint", "2": "help"}, chat=ChatFormat()
    )
    rows = [{"message": "never came", "label": "1"}, {"message": "thank you for the quick help", "label": "2"}]
    trainer = make(tmp_path, tokenizer, rows, template, model, eval_rows=rows)
    output = trainer.predict(rows)
    end = {"gemma": "<end_of_turn>", "phi": "<|end|>"}.get(name, tokenizer.eos_token)
    for i, row in enumerate(rows):
        user = [{"role": "user", "content": f"Message : {row['message']}"}]
        before = tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
        for j, words in enumerate(("complaint", "help")):
            whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": words}], tokenize=False)
            answer = whole[len(before) : whole.rindex(words + end) + len(words + end)]
            source, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, answer))
            assert tokenizer(before + answer, add_special_tokens=False)["input_ids"] == source + ids
            labels = torch.tensor([-100] * len(source) + ids)
            with torch.no_grad():
                loss = reference_loss(model, [(torch.tensor(source + ids), labels)])
            assert output.predictions[i, j] == pytest.approx(-loss.item() * len(ids), rel=1e-4)
            if row["label"] == str(j + 1):
                assert trainer.train_dataset[i]["input_ids"] == source + ids
                assert trainer.train_dataset[i]["labels"] == labels.tolist()
    trainer.train()
    assert {"eval_accuracy", "eval_f1"} <= trainer.evaluate().keys()
    assert trainer.model.info.calibration["rows"] == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_takes_what_the_chat_template_gives(name):
    """With no further word, one by one and in a batch that is padded at either side, streaming included."""
    tokenizer, _, model = chat_setting(name)
    asked = [chat[:-1] for chat in CHATS]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 399}
    expected = []
    for chat in asked:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        new = greedy(model, ids["input_ids"][0], 5)
        out = model.generate(**ids, **options)
        assert out[0].tolist() == [*ids["input_ids"][0].tolist(), *new][: out.shape[1]]
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        model.generate(**ids, **options, streamer=streamer)
        assert "".join(streamer) == tokenizer.decode(new)
        expected.append(new)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        out = model.generate(**batch, **options)
        assert out[:, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_is_written_as_the_assistants_turn(name, tmp_path):
    """Its target is the turn with its end, and its prediction what is written up to it."""
    tokenizer, _, model = chat_setting(name)
    template = PromptTemplate("Message : {message}", target="{answer}", chat=ChatFormat(), max_target_length=12)
    rows = [{"message": "never came", "answer": "thank you"}, {"message": "day and night", "answer": "a small dog"}]
    template = replace(template, max_target_length=24) if name == "qwen3" else template
    trainer = make(tmp_path, tokenizer, rows, template, model, eval_rows=rows)
    encoder = row_encoder_of(trainer)
    output = trainer.predict(rows)
    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id, *encoder.end_ids}
    for row, encoded, text in zip(rows, trainer.train_dataset, output.predictions, strict=True):
        user = [{"role": "user", "content": f"Message : {row['message']}"}]
        source = tokenizer.apply_chat_template(user, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": row["answer"]}])["input_ids"]
        assert encoded["input_ids"] == whole[: len(encoded["input_ids"])]
        assert encoded["labels"] == [-100] * len(source) + whole[len(source) : len(encoded["labels"])]
        assert encoded["labels"][-1] == encoder.end_ids[-1]
        new = greedy(model, torch.tensor(source), template.max_target_length)
        end = next((i for i, token in enumerate(new) if token in ends), len(new))
        assert tokenizer.decode(new[:end], skip_special_tokens=True).strip() == text


def test_a_long_source_is_cut_within_the_users_turn(tmp_path):
    tokenizer, _, model = chat_setting("llama3")
    template = PromptTemplate("Message : {message} ?", target="{answer}", chat=ChatFormat(), max_source_length=60)
    trainer = make(tmp_path, tokenizer, [{"message": "day " * 90, "answer": "thank you"}], template, model)
    (row,) = trainer.train_dataset
    source = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    text = tokenizer.decode(source)
    assert 57 < len(source) <= 60 and text.count("day") > 5
    assert text.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nMessage : day")
    assert text.endswith(" ?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_training_moves_the_prompt_and_a_resumed_run_ends_the_same(tmp_path):
    tokenizer, template, model = chat_setting("llama3")
    whole = make(tmp_path / "whole", tokenizer, ROWS, template, model, save_strategy="epoch")
    before = model.prompt.detach().clone()
    whole.train()
    assert not torch.equal(before, model.prompt)
    again = make(tmp_path / "again", tokenizer, ROWS, template, chat_setting("llama3")[2])
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert torch.equal(again.model.prompt, model.prompt)


def test_a_stranger_gets_the_same_text(tmp_path):
    """Also with a tokenizer that has another chat template now."""
    tokenizer, template, model = chat_setting("llama3")
    trainer = make(tmp_path, tokenizer, ROWS, template, model)
    trainer.save_model()
    kind = type(model)
    loaded = kind.from_pretrained(model.get_base_model(), str(tmp_path))
    assert loaded.info.template == trainer.model.info.template
    assert loaded.info.template.chat == ChatFormat(chat_template=FAMILIES["llama3"].template)
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert loaded.row_encoder(tokenizer).encode(ROWS[0]) == {
        **trainer.train_dataset[0],
        "was_cut": False,
        "unwritten": None,
    }
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "The rows are conversations" in card and FAMILIES["llama3"].template in card


def test_several_evaluation_sets_of_chats(tmp_path):
    tokenizer, template, model = chat_setting("chatml")
    trainer = PromptTuningTrainer(
        model,
        PromptTuningArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, disable_tqdm=True),
        train_dataset=ROWS,
        eval_dataset={"one": ROWS[:1], "both": ROWS[:2]},
        processing_class=tokenizer,
        template=template,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_one_loss", "eval_both_rougeL"} <= metrics.keys()
