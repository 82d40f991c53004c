"""Chats with a prompt at each place: rows begin with its head, and are what the backbone by hand makes of them."""

import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    DataCollatorForPromptTuning,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    get_prompt_tuning_model,
    load_prompt,
)
from tests.shared.chat_templates import CHATML, FAMILIES, chat_tokenizer
from tests.shared.conversations import CHATS, FORMATS, ROWS
from tests.shared.places import greedy_by_hand, real_logits, whole_loss_by_hand
from tests.shared.reference import relative_error
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import make

PLACES = ["after_bos", "system"]
WORDS = PromptTemplate(
    "Message : {message}", label_column="label", label_words={"1": "complaint", "2": "help"}, chat=ChatFormat()
)


def setting(family, place, template=None):
    """A tokenizer, a template for conversations and a model with a prompt at a place."""
    tokenizer = chat_tokenizer(family)
    template = ChatTemplate(chat=FORMATS[family]) if template is None else template
    torch.manual_seed(0)
    config = dict(num_virtual_tokens=4, prompt_tuning_init="RANDOM", random_range=1.0, prompt_position=place)
    return (
        tokenizer,
        template,
        get_prompt_tuning_model(tiny_model("llama"), PromptTuningConfig(**config), tokenizer, template),
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_of_chats(family, place, tmp_path):
    tokenizer, template, model = setting(family, place)
    trainer = make(tmp_path, tokenizer, ROWS, template, model)
    rows = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in trainer.train_dataset]
    head = list(model.peft_config["default"].head)
    system = place == "system" and family not in ("gemma", "mistral")
    for (ids, _), chat in zip(rows, CHATS, strict=True):
        turns = [{"role": "system", "content": ""}, *chat] if system else chat
        written = tokenizer.apply_chat_template(turns)["input_ids"]
        assert ids.tolist() == written[: len(ids)]
        # Where the template writes no BOS, the token stands before the row, which does not have it.
        assert (ids[: len(head)].tolist() == head) == (place == "system" or FAMILIES[family].bos is not None)
    if rows[0][0][: len(head)].tolist() != head:
        rows = [(torch.cat([torch.tensor(head), ids]), torch.cat([torch.tensor([-100]), row])) for ids, row in rows]
    reference = whole_loss_by_hand(model, rows)
    (expected,) = torch.autograd.grad(reference, model.prompt)
    batch = DataCollatorForPromptTuning(tokenizer)(list(trainer.train_dataset))
    for layout in ("packed", "cached", "padded"):
        model.use_layout(layout)
        loss = trainer.compute_loss(model, batch)
        (gradient,) = torch.autograd.grad(loss, model.prompt)
        assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
        assert relative_error(gradient, expected) < 1e-5


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_ranked_and_answers_written(family, place, tmp_path):
    tokenizer, template, model = setting(family, place, WORDS)
    rows = [{"message": "never came", "label": "1"}, {"message": "thank you for the quick help", "label": "2"}]
    trainer = make(tmp_path, tokenizer, rows, template, model, eval_rows=rows, max_steps=1)
    coder, found = model.row_encoder(tokenizer), trainer.predict(rows).predictions
    head = list(model.peft_config["default"].head)
    for i, row in enumerate(rows):
        ids = coder.content_ids(row)
        ids = ids[len(head) :] if ids[: len(head)] == head else ids
        for j, words in enumerate(coder.label_token_ids):
            scores = real_logits(model, torch.tensor([*ids, *words])).log_softmax(-1)[-len(words) - 1 : -1]
            assert found[i, j] == pytest.approx(scores.gather(1, torch.tensor(words)[:, None]).sum().item(), rel=1e-4)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_prompt(tmp_path / "saved", backbone=tiny_model("llama"), tokenizer=tokenizer).model
    assert loaded.info.place["head_text"] == tokenizer.decode(head)
    again = make(tmp_path, tokenizer, None, None, loaded, eval_rows=rows).predict(rows).predictions
    assert again == pytest.approx(trainer.predict(rows).predictions, rel=1e-4)


@pytest.mark.parametrize("place", ["start", *PLACES])
@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "qwen3"])
def test_the_pipeline_and_generate(family, place):
    tokenizer, _, model = setting(family, place)
    chat, head = CHATS[0][:3], list(model.eval().peft_config["default"].head)
    turns = [{"role": "system", "content": ""}, *chat] if place == "system" and family != "gemma" else chat
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    new = greedy_by_hand(model, torch.tensor(ids[len(head) :] if ids[: len(head)] == head else ids), 8)
    made = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    ends = {tokenizer.eos_token_id, 2, *model.row_encoder(tokenizer).end_ids}
    if not ends & set(new):
        assert made[0].tolist() == [*ids, *new]
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    answer = pipe(chat, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"]
    end = next((i for i, token in enumerate(new) if token in ends), 8)
    assert answer == tokenizer.decode(new[:end], skip_special_tokens=True)


def test_a_chat_template_with_another_head_is_refused(tmp_path):
    tokenizer, template, model = setting("llama3", "system")
    tokenizer.chat_template = CHATML
    with pytest.raises(PromptTuningError, match="give the chat template that it was trained with"):
        make(tmp_path, tokenizer, ROWS, template, model)
    with pytest.raises(PromptTuningError, match="prompt_position is system, and the template makes plain text"):
        setting("llama3", "system", PromptTemplate("{message}", target="{answer}"))
