"""`save_pretrained` with the options that other models and trainers know, and the card that a Trainer writes."""

import pytest
import torch
from huggingface_hub import ModelCard

from hf_prompt_tuning import PromptTuningError, load_prompt
from tests.shared.reference import tiny_prompt_model, with_prompts
from tests.shared.vanilla_trainer import vanilla

VECTORS = "prompt_encoder.default.embedding.weight"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "push_to_hub is given to save_pretrained, which only saves"),
        ({"save_embedding_layers": True}, "save_embedding_layers is True, and the embeddings are the frozen"),
        ({"state_dict": {VECTORS: torch.zeros(5, 32)}}, "state_dict holds other vectors of the prompt 'default'"),
    ],
)
def test_what_would_be_left_out_is_refused(options, message, tmp_path):
    with pytest.raises(PromptTuningError, match=message):
        tiny_prompt_model("llama").save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_what_trainers_give_is_taken(tmp_path):
    model = tiny_prompt_model("llama")
    rounded = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    for state in (model.state_dict(), rounded, {}, None, {VECTORS: torch.zeros(0)}):
        model.save_pretrained(tmp_path, state_dict=state, save_embedding_layers="auto", push_to_hub=False)
        assert torch.equal(load_prompt(str(tmp_path), backbone=model.get_base_model()).model.prompt, model.prompt)


def test_no_prompt_is_not_all_prompts(tmp_path):
    model = with_prompts(tiny_prompt_model("llama"), b=3)
    model.save_pretrained(tmp_path, selected_adapters=[])
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path, selected_adapters=["b"])
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_a_trainers_card_names_peft_and_the_backbone(tmp_path, tokenizer):
    """`Trainer.push_to_hub` writes its own card in place of ours, and lets PEFT complete it."""
    model = tiny_prompt_model("llama", base_model_name_or_path="you/backbone")
    trainer = vanilla(tmp_path, tokenizer, model)
    trainer.save_model()
    ours = ModelCard.load(tmp_path / "README.md").data
    trainer.create_model_card(tags="complaints")
    card = ModelCard.load(tmp_path / "README.md")
    assert "generated automatically according to the information the Trainer had" in card.text
    assert (card.data.library_name, card.data.base_model) == (ours.library_name, ours.base_model)
    assert (card.data.library_name, card.data.base_model) == ("peft", "you/backbone")
    assert {"complaints", *ours.tags} <= set(card.data.tags)


def test_a_card_of_others_stays_as_it_is(tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: mine\n---\nMy own card.")
    tiny_prompt_model("llama").save_pretrained(tmp_path, card=False)
    assert (tmp_path / "README.md").read_text() == "---\nlibrary_name: mine\n---\nMy own card."
