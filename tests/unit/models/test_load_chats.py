"""A loaded prompt's tokenizer writes chats as its training did, whatever chat template the backbone has."""

import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import ChatFormat, ChatTemplate, PromptTemplate, load_prompt
from tests.shared.chat_templates import CHATML, chat_tokenizer
from tests.shared.conversations import ROWS, SYSTEM, TURNS
from tests.shared.prompt_pipelines import made
from tests.shared.tiny_models import tiny_model

OWN = CHATML.replace("<|im_start|>", "<|im_end|><|im_start|>")
OPTIONS = {"max_new_tokens": 4, "do_sample": False}


def saved(folder, template):
    """A prompt in `folder / "prompt"`, trained with another chat template than its backbone in `folder` has."""
    tokenizer = chat_tokenizer("chatml")
    tiny_model("llama").save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    model = made(tokenizer, template)
    model.save_pretrained(folder / "prompt")
    return model, model.row_encoder(tokenizer, template)


@pytest.mark.parametrize(
    "template",
    [
        ChatTemplate(chat=ChatFormat(chat_template=OWN)),
        PromptTemplate("{text}", "{answer}", chat=ChatFormat(chat_template=OWN)),
    ],
)
def test_the_tokenizer_writes_the_prompts_chat_template(template, tmp_path, caplog):
    _, encoder = saved(tmp_path, template)
    model, tokenizer, _ = load_prompt(tmp_path / "prompt", backbone=tmp_path / "backbone")
    assert tokenizer.chat_template == OWN and "chat template" not in caplog.text
    asked = [{"role": "user", "content": "never came"}]
    row = {"messages": asked} if isinstance(template, ChatTemplate) else {"text": "never came"}
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert ids == encoder.source_ids(row)[0]
    assert ids != chat_tokenizer("chatml").apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    batch = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    new = model.generate(**batch, **OPTIONS)[:, len(ids) :]
    again = model.generate(input_ids=torch.tensor([encoder.source_ids(row)[0]]), **OPTIONS)
    assert torch.equal(new, again[:, len(ids) :])


def test_a_tokenizer_that_is_given_is_not_changed(tmp_path, caplog):
    saved(tmp_path, ChatTemplate(chat=ChatFormat(chat_template=OWN)))
    mine = chat_tokenizer("chatml")
    before = mine.chat_template
    loaded = load_prompt(tmp_path / "prompt", backbone=tiny_model("llama"), tokenizer=mine)
    assert mine.chat_template == before
    assert loaded.tokenizer is not mine and loaded.tokenizer.chat_template == OWN
    assert caplog.text.count("another chat template than that of the tokenizer given") == 1


@pytest.mark.parametrize("template", [ChatTemplate(), PromptTemplate("{text}", "{answer}")])
def test_a_tokenizer_with_the_prompts_chat_template_stays_itself(template, tmp_path, caplog):
    saved(tmp_path, template)
    mine = chat_tokenizer("chatml")
    assert load_prompt(tmp_path / "prompt", backbone=tiny_model("llama"), tokenizer=mine).tokenizer is mine
    assert "chat template" not in caplog.text


def test_a_pipeline_and_generate_answer_alike(tmp_path):
    saved(tmp_path, ChatTemplate(chat=ChatFormat(chat_template=OWN, system_message=SYSTEM["content"])))
    model, tokenizer, _ = load_prompt(tmp_path / "prompt", backbone=tmp_path / "backbone")
    pipe = pipeline("prompt-generation", model=model, tokenizer=tokenizer)
    assert pipe.tokenizer.chat_template == OWN
    batch = pipe.tokenizer.apply_chat_template(
        [SYSTEM, TURNS[0]], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    new = pipe.model.generate(**batch, **OPTIONS)[0, batch["input_ids"].shape[1] :]
    answer = pipe(ROWS[0]["messages"][:1], **OPTIONS)[0]["generated_text"][-1]["content"]
    assert answer.strip() == pipe.tokenizer.decode(new, skip_special_tokens=True).strip()
