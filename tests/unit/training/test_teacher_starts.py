"""A prompt that starts from the text that teaches it."""

import pytest
import torch

from hf_prompt_tuning import PromptTuningConfig, PromptTuningError, PromptTuningTrainer, Teacher
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import FREE, arguments

ROWS = [{"message": "never came", "answer": "a complaint"}]


def trainer_of(folder, tokenizer, teacher, **config):
    return PromptTuningTrainer(
        model=tiny_model("llama"),
        args=arguments(folder),
        train_dataset=ROWS,
        processing_class=tokenizer,
        template=FREE,
        prompt_config=PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="TEACHER", **config),
        teacher=teacher,
    )


def embedded(trainer, text):
    ids = trainer.processing_class(text, add_special_tokens=False)["input_ids"][:3]
    return trainer.model.word_embeddings(torch.tensor(ids))


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        (Teacher(text="Classify if the message is a complaint"), "Classify if the message"),
        ([Teacher(column="answer"), Teacher(text="Is it a complaint")], "Is it a complaint"),
    ],
)
def test_the_text_is_the_start(tmp_path, tokenizer, teacher, text):
    trainer = trainer_of(tmp_path, tokenizer, teacher)
    torch.testing.assert_close(trainer.model.prompt.detach(), embedded(trainer, text), rtol=0, atol=0)


@pytest.mark.parametrize("text", ["Classify if the message is a complaint", "Is it", "complaint"])
def test_the_baseline_is_the_start_whatever_the_texts_length(tmp_path, tokenizer, text):
    trainer = trainer_of(tmp_path, tokenizer, Teacher(text=text))
    start = trainer.model.prompt.detach()
    torch.testing.assert_close(trainer.rows.teaching.first_vectors(trainer.model), start, rtol=0, atol=0)


def test_a_text_that_is_given_goes_before_the_teachers(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer, Teacher(text="Is it"), prompt_tuning_init_text="Classify if the message")
    expected = embedded(trainer, "Classify if the message")
    torch.testing.assert_close(trainer.model.prompt.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("teacher", [None, Teacher(column="answer")])
def test_without_a_text_it_is_refused(tmp_path, tokenizer, teacher):
    with pytest.raises(PromptTuningError, match="prompt_tuning_init is TEACHER, and no text teaches the prompt"):
        trainer_of(tmp_path, tokenizer, teacher)
