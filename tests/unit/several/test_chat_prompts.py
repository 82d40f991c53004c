"""Several prompts for conversations: an ensemble, and tasks of chats and of texts in one run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import IterableDataset

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    MultiPromptTrainer,
    PromptTask,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    inspect_prompt,
)
from hf_prompt_tuning.several.ensemble import PromptEnsemble, load_ensemble
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.conversations import CHATS, ROWS, chat_setting
from tests.shared.places import place_config, placed_model
from tests.shared.reference import greedy
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import FREE, TEMPLATE, make

CHAT = ChatTemplate(max_target_length=7)
ASKED = [chat[:-1] for chat in CHATS]


def test_an_ensemble_answers_chats(tmp_path):
    tokenizer = chat_tokenizer("gemma")
    members = [PromptTask(f"p{i}", random_prompt(3 + i), learning_rate=0.1, seed=i) for i in range(3)]
    trainer = EnsembleTrainer(tiny_model("llama"), arguments(tmp_path), members, ROWS, ROWS, tokenizer, CHAT)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    ensemble = load_ensemble(tmp_path, backbone=tiny_model("llama"), tokenizer=tokenizer)
    found = ensemble.predict(ASKED)
    assert found == ensemble.predict(ROWS)
    ends = {2, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    for chat, record in zip(ASKED, found, strict=True):
        ids = torch.tensor(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        for name, vote in record["votes"].items():
            new = greedy(ensemble.model, ids, 7, name)
            end = next((i for i, token in enumerate(new) if token in ends), 7)
            assert tokenizer.decode(new[:end], skip_special_tokens=True).strip() == vote
    with pytest.raises(PromptTuningError, match="row 1: inputs hold"):
        ensemble.predict(ASKED[0])


def test_a_member_with_another_head_than_the_templates_is_refused_before_rows_are_encoded(tmp_path):
    tokenizer, rows = chat_tokenizer("chatml"), [{"messages": "never read"}]
    members = [PromptTask("p0", random_prompt(3)), PromptTask("p1", place_config("system"))]
    with pytest.raises(
        PromptTuningError, match=r"prompt 'p1': the chat template writes the tokens .* behind \[1, 7, 9\]"
    ):
        EnsembleTrainer(tiny_model("llama"), arguments(tmp_path), members, rows, rows, tokenizer, CHAT)
    model = placed_model("llama", "start")
    model.add_adapter("p1", place_config("system"))
    with pytest.raises(PromptTuningError, match="the ensemble's prompt 'p1': the chat template writes"):
        PromptEnsemble(model, ["default", "p1"], tokenizer, CHAT)


@pytest.mark.parametrize("first", [0, 1])
def test_members_at_different_places_read_other_rows_as_their_own(first, tmp_path, messages):
    """All rows have the system turn, that one of them stands in."""
    tokenizer, template = chat_tokenizer("chatml"), replace(TEMPLATE, chat=ChatFormat())
    members = [
        PromptTask("short", replace(random_prompt(3), prompt_position="system"), seed=1, learning_rate=0.3),
        PromptTask("long", random_prompt(6), seed=2, learning_rate=0.3),
    ]
    members = [members[first], members[1 - first]]
    rows = messages[:5]
    trainer = EnsembleTrainer(
        *(tiny_model("llama"), arguments(tmp_path, num_train_epochs=1, max_grad_norm=1.0), members),
        *(messages, rows, tokenizer, template),
    )
    trainer.train()
    own = trainer.evaluate()
    ensemble = PromptEnsemble(trainer.model, [member.name for member in members], tokenizer, template)
    scores = ensemble.scores(rows)
    np.testing.assert_allclose(trainer.predict(rows).predictions, scores, rtol=1e-5, atol=1e-5)
    others = {key: value for key, value in own.items() if key.endswith(("loss", "accuracy", "f1"))}
    assert len(others) == 9
    found, transfer = (
        trainer.evaluate(list(rows), metric_key_prefix="other"),
        trainer.evaluate_transfer({"same": rows}),
    )
    for key, value in others.items():
        name = key.removeprefix("eval_")
        assert found[f"other_{name}"] == transfer[f"transfer_same_{name}"] == pytest.approx(value, rel=1e-5)
    untuned = trainer.evaluate_untuned()
    assert trainer.evaluate_untuned(list(rows))["untuned_loss"] == pytest.approx(untuned["untuned_loss"], rel=1e-5)


def test_members_that_start_from_a_prompt_in_the_system_turn_stand_there(tmp_path):
    """Their configs name no place, and the rows have the system turn all the same."""
    tokenizer = chat_tokenizer("chatml")
    config = replace(random_prompt(3), prompt_position="system")
    get_prompt_tuning_model(tiny_model("llama"), config, tokenizer, CHAT).save_pretrained(tmp_path / "first")
    started = PromptTuningConfig(init_prompt=str(tmp_path / "first"))
    members = [PromptTask("p0", random_prompt(3)), PromptTask("p1", started)]
    trainer = EnsembleTrainer(tiny_model("llama"), arguments(tmp_path), members, ROWS, ROWS, tokenizer, CHAT)
    (head,) = {config.head for config in trainer.model.peft_config.values() if config.head}
    for ids in trainer.tasks["p1"].train_dataset["input_ids"]:
        assert tuple(ids[: len(head)]) == head
    trainer.train()


def test_tasks_of_chats_and_of_texts(tmp_path, messages):
    """Each has the loss and the texts that it has alone."""
    tokenizer = chat_tokenizer("chatml")
    free = [{"message": row["message"], "answer": row["message"][-9:].strip()} for row in messages[:4]]
    tasks = [
        PromptTask("chats", random_prompt(4), ROWS, ROWS, CHAT, seed=1),
        PromptTask("texts", random_prompt(3), free, free, FREE, seed=2),
    ]
    trainer = MultiPromptTrainer(tiny_model("llama"), arguments(tmp_path, num_train_epochs=1), tasks, tokenizer)
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_chats_loss", "eval_texts_loss", "eval_chats_rougeL"} <= metrics.keys()
    info = trainer.model.prompt_info["chats"]
    assert info.template.chat.chat_template == tokenizer.chat_template
    output = trainer.predict_tasks({"chats": ROWS})["chats"]
    assert output.label_ids == [chat[-1]["content"] for chat in CHATS]


def test_a_stream_of_chats(tmp_path):
    tokenizer, template, model = chat_setting("phi")
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    whole = make(tmp_path, tokenizer, ROWS, template, chat_setting("phi")[2], max_steps=1)
    streamed = make(tmp_path, tokenizer, stream, template, model, max_steps=1)
    rows = list(streamed.train_dataset)
    assert [row["labels"] for row in rows] == whole.train_dataset["labels"][:]
    streamed.train()
    assert np.isfinite(streamed.state.log_history[-1]["train_loss"])


def test_a_prompt_for_chats_is_inspected():
    tokenizer, template, model = chat_setting("chatml")
    model.info.template = template
    found = inspect_prompt(model, tokenizer=tokenizer, data=ROWS)
    (prompt,) = found.prompts
    assert prompt.source == "{messages}" and prompt.rows == prompt.labelled_rows == 4
    assert all(position.loss_without is not None for position in prompt.positions)
