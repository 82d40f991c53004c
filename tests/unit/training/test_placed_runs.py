"""Runs of prompts that stand behind a head: resumed, mixed with others, as an ensemble, by the command."""

from dataclasses import replace

import pytest
import torch
from transformers import set_seed

from hf_prompt_tuning import (
    MultiPromptTrainer,
    PromptTuningArguments,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_ensemble,
    load_prompt,
)
from hf_prompt_tuning.several.task import PromptTask
from tests.shared.ensembles import MEMBERS
from tests.shared.ensembles import make as make_ensemble
from tests.shared.places import place_config
from tests.shared.resumed_runs import ROWS, SAVED
from tests.shared.several_prompts import arguments as several_arguments
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import TEMPLATE


def run(folder, place, **values):
    set_seed(len(str(folder)))  # what came before must not matter
    torch.manual_seed(1)
    tokenizer = make_tokenizer("llama")
    model = get_prompt_tuning_model(tiny_model("llama"), place_config(place), tokenizer, TEMPLATE)
    torch.manual_seed(len(str(folder)))
    return PromptTuningTrainer(
        model=model,
        args=PromptTuningArguments(output_dir=str(folder), weight_decay=0.1, **SAVED | values),
        train_dataset=ROWS,
        eval_dataset=ROWS[:6],
        processing_class=tokenizer,
    )


def test_a_resumed_run_ends_with_the_same_prompt_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", "after_bos")
    whole.train()
    again = run(tmp_path / "whole_again", "after_bos")
    with torch.no_grad():
        again.model.prompt.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert torch.equal(again.model.prompt, whole.model.prompt)
    with pytest.raises(Exception, match="stands behind the tokens"):
        run(tmp_path / "elsewhere", "start").train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))


def test_prompts_at_several_places_train_in_one_run_as_alone(tmp_path, messages):
    tokenizer = make_tokenizer("llama")
    places = {"front": "start", "behind": "after_bos"}
    tasks = [
        PromptTask(name, place_config(place, num_virtual_tokens=3 + i), messages, messages[:4], TEMPLATE, seed=i)
        for i, (name, place) in enumerate(places.items())
    ]

    def trained(folder, chosen):
        trainer = MultiPromptTrainer(tiny_model("llama"), several_arguments(folder), chosen, tokenizer)
        trainer.train()
        trainer.evaluate()
        trainer.save_model(str(folder / "saved"))
        return trainer

    both = trained(tmp_path / "both", tasks)
    for task in tasks:
        alone = trained(tmp_path / task.name, [task])
        vectors = [t.model.prompt_encoder[task.name].embedding.weight.detach() for t in (both, alone)]
        torch.testing.assert_close(*vectors, rtol=1e-3, atol=1e-5)
        loaded = load_prompt(tmp_path / "both/saved" / task.name, backbone=tiny_model("llama"), tokenizer=tokenizer)
        assert loaded.model.peft_config["default"].prompt_position == places[task.name]
        assert torch.equal(loaded.model.prompt, vectors[0])


def test_an_ensemble_behind_a_head(tmp_path, messages):
    members = [
        replace(MEMBERS[0], config=place_config("after_bos")),
        replace(MEMBERS[1], config=place_config("start")),
        replace(MEMBERS[2], config=place_config("after_bos", num_virtual_tokens=6)),
    ]
    trainer = make_ensemble(tmp_path, messages, members=members)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    tokenizer = trainer.processing_class
    ensemble = load_ensemble(tmp_path / "saved", backbone=tiny_model("llama"), tokenizer=tokenizer)
    assert sorted(p.prompt_position for p in ensemble.model.peft_config.values())[:2] == ["after_bos", "after_bos"]
    scores = ensemble.scores(messages[:3])
    for column, name in enumerate(ensemble.members):
        model = load_prompt(tmp_path / "saved" / name, backbone=tiny_model("llama"), tokenizer=tokenizer).model
        coder = model.row_encoder(tokenizer)
        for row in range(3):
            ids = torch.tensor([coder.content_ids(messages[row])])
            alone = model(input_ids=ids, candidates=coder.label_token_ids).scores[0]
            torch.testing.assert_close(torch.tensor(scores[row, column]), alone, rtol=1e-4, atol=1e-4)
