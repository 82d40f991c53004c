"""Free text of backbones with the special tokens of the real models: a decoder often starts with what ends texts."""

import pytest
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM

from hf_prompt_tuning import PromptTemplate
from hf_prompt_tuning.several.ensemble import PromptEnsemble
from hf_prompt_tuning.several.ensemble_trainer import EnsembleTrainer
from hf_prompt_tuning.several.task import PromptTask
from hf_prompt_tuning.several.trainer import MultiPromptTrainer
from tests.shared.reference import row_encoder_of, tiny_prompt_model
from tests.shared.several_prompts import arguments, random_prompt
from tests.shared.tiny_models import BART_LIKE, make_tokenizer, scale_weights
from tests.shared.trainers import make

LIMIT = 6
FREE = PromptTemplate(source="Message : {message} Answer :", target="{answer}", max_target_length=LIMIT)
ROWS = [{"message": text, "answer": "a small dog"} for text in ("thank you", "nobody answers", "the town of night")]
LED_LIKE = {
    name: value for name, value in BART_LIKE.items() if name not in ("max_position_embeddings", "scale_embedding")
}
BACKBONES = {
    # bos, pad and eos are 1, 0 and 2 in these tests' tokenizer.
    "bart": (BART_LIKE, dict(decoder_start_token_id=2, forced_bos_token_id=1)),
    "mbart": (BART_LIKE, dict(decoder_start_token_id=2, forced_bos_token_id=17)),
    "m2m_100": (BART_LIKE, dict(decoder_start_token_id=2)),
    "led": (
        LED_LIKE | dict(max_encoder_position_embeddings=128, max_decoder_position_embeddings=64, attention_window=16),
        dict(decoder_start_token_id=2),
    ),
    "pad-is-eos": (BART_LIKE, dict(decoder_start_token_id=2, pad_token_id=2)),
}


def backbone(name):
    values, special = BACKBONES[name]
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False) | special
    config = transformers.AutoConfig.for_model("bart" if name == "pad-is-eos" else name, **values | special)
    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_config(config)
    scale_weights(model, 1.5)
    # Untied, an encoder has a matrix of its own, and a backbone with another than it names is refused.
    model.get_encoder().embed_tokens.weight.data.copy_(model.get_input_embeddings().weight)
    return model.eval()


@torch.no_grad()
def written(model, prompt, row, encoder):
    """The text by hand: one row, no pads, no cache, one pass for each token."""
    ids = torch.tensor([encoder.source_ids(row)[0]])
    embeds = torch.cat([prompt[None], model.get_input_embeddings()(ids)], dim=1)
    own, tokens = model.generation_config, [model.config.decoder_start_token_id]
    forced = {1: own.forced_bos_token_id, LIMIT: own.forced_eos_token_id}
    while len(tokens) <= LIMIT and (tokens[-1] != 2 or len(tokens) == 1):
        logits = model(inputs_embeds=embeds, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
        given = forced.get(len(tokens))
        tokens.append(int(logits.argmax()) if given is None else given)
    return encoder.tokenizer.decode(tokens[1:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", BACKBONES)
def test_texts_are_what_the_decoder_writes(name, tmp_path):
    tokenizer = make_tokenizer("t5")
    model = tiny_prompt_model(name, num_virtual_tokens=4, backbone=backbone(name))
    trainer = make(tmp_path, tokenizer, None, FREE, model, eval_rows=ROWS)
    expected = [written(model.get_base_model(), model.prompt.detach(), row, row_encoder_of(trainer)) for row in ROWS]
    assert all(expected)
    assert trainer.predict(ROWS).predictions == expected
    right = [row | {"answer": text} for row, text in zip(ROWS, expected, strict=True)]
    fitting = make(tmp_path, tokenizer, None, FREE, model, eval_rows=right[:1])
    assert fitting.evaluate()["eval_exact_match"] == 1


@pytest.mark.parametrize("name", BACKBONES)
def test_labels_are_scored_as_the_backbone_scores_them(name, tmp_path):
    """Its own loss of each label's words, one row at a time."""
    words = {"1": "complaint", "2": "no complaint"}
    template = PromptTemplate(source="Message : {message} Label :", label_column="Label", label_words=words)
    rows = [row | {"Label": "1"} for row in ROWS]
    model = tiny_prompt_model(name, num_virtual_tokens=4, backbone=backbone(name))
    trainer = make(tmp_path, make_tokenizer("t5"), rows, template, model, eval_rows=rows, max_steps=1)
    found, base = trainer.predict(rows).predictions, model.get_base_model()
    for scores, row in zip(found, rows, strict=True):
        ids = torch.tensor([row_encoder_of(trainer).source_ids(row)[0]])
        embeds = torch.cat([model.prompt[None], base.get_input_embeddings()(ids)], dim=1).detach()
        for score, tokens in zip(scores, row_encoder_of(trainer).label_token_ids, strict=True):
            with torch.no_grad():
                loss = base(inputs_embeds=embeds, labels=torch.tensor([tokens])).loss.item()
            assert score == pytest.approx(-loss * len(tokens), rel=1e-4)
    trainer.train()


def test_several_prompts_write_the_same(tmp_path):
    tokenizer, template = make_tokenizer("t5"), FREE
    members = [PromptTask("one", random_prompt(4), seed=1), PromptTask("two", random_prompt(6), seed=2)]
    trainer = EnsembleTrainer(backbone("bart"), arguments(tmp_path), members, None, ROWS, tokenizer, template)
    model = trainer.model
    prompts = {name: model.prompt_encoder[name].embedding.weight.detach() for name in ("one", "two")}
    expected = [
        [written(model.get_base_model(), prompts[name], row, row_encoder_of(trainer)) for name in prompts]
        for row in ROWS
    ]
    assert trainer.predict(ROWS).predictions == expected
    records = PromptEnsemble(model, ["one", "two"], tokenizer, FREE).predict(ROWS)
    assert [list(record["votes"].values()) for record in records] == expected
    tasks = [PromptTask(member.name, member.config, None, ROWS, FREE, seed=member.seed) for member in members]
    outputs = MultiPromptTrainer(backbone("bart"), arguments(tmp_path), tasks, tokenizer).predict_tasks(
        {"one": ROWS, "two": ROWS}
    )
    assert [list(pair) for pair in zip(*(output.predictions for output in outputs.values()), strict=True)] == expected
