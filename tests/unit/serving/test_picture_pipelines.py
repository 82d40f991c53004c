"""Pipelines with pictures: what the trainer predicts, and what the model writes alone."""

import pytest
import torch
from transformers import pipeline

from hf_prompt_tuning import (
    ChatTemplate,
    PromptClassificationPipeline,
    PromptGenerationPipeline,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    get_prompt_tuning_model,
    load_prompt,
)
from hf_prompt_tuning.serving.pipeline_loading import NamedPrompt
from tests.shared.picture_rows import LABELS, ROWS, SOURCE
from tests.shared.tiny_pictures import greedy_by_hand
from tests.shared.tiny_processors import picture, seeing_model, tiny_processor
from tests.shared.trainers import arguments

TEXTS = PromptTemplate(source=SOURCE, target="{answer}", max_target_length=6)


def made(name, *templates):
    """A model with a prompt for each template, and the processor."""
    processor = tiny_processor(name)
    backbone = seeing_model(name, processor)
    words = backbone.get_input_embeddings().num_embeddings
    backbone.generation_config.suppress_tokens = list(range(backbone.config.image_token_id, words))
    torch.manual_seed(0)
    config = dict(prompt_tuning_init="RANDOM", random_range=1.0)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=3, **config))
    model.info.template = templates[0]
    for i, template in enumerate(templates[1:], start=1):
        model.add_adapter(f"p{i}", PromptTuningConfig(num_virtual_tokens=3 + i, **config))
        model.prompt_info[f"p{i}"].template = template
    return model.eval(), processor


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "qwen2_5_vl"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_are_those_that_the_trainer_predicts(name, batch_size, tmp_path):
    model, processor = made(name, LABELS)
    trainer = PromptTuningTrainer(
        model, arguments(tmp_path), train_dataset=ROWS, processing_class=processor, template=LABELS
    )
    expected = torch.tensor(trainer.predict(ROWS).predictions).softmax(-1)
    classify = PromptClassificationPipeline(model.eval(), processor)
    found = classify(ROWS, batch_size=batch_size, top_k=None)
    for row, scores in zip(found, expected.tolist(), strict=True):
        by_label = {entry["label"]: entry["score"] for entry in row}
        assert [by_label["yes"], by_label["never"]] == pytest.approx(scores, rel=1e-3)
    assert classify(ROWS[0])["label"] == found[0][0]["label"]


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "qwen2_5_vl"])
def test_texts_are_those_of_each_row_alone(name):
    """In a batch with rows of two prompts, with pictures and without."""
    model, processor = made(name, TEXTS, TEXTS)
    write = PromptGenerationPipeline(model, processor.tokenizer, processor)
    names = ["default", "p1", "p1"]
    found = write(ROWS, adapter_names=names, batch_size=3)
    encoder = model.row_encoder(processor)
    for row, adapter, record in zip(ROWS, names, found, strict=True):
        vectors = model.prompt_encoder[adapter].embedding.weight.detach()
        ids = greedy_by_hand(model.base_model, vectors, dict(encoder.inputs([row])), 6)
        assert record["generated_text"] == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def chat(question, *images):
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": parts}], "images": list(images)}


def test_chats():
    model, processor = made("idefics3", ChatTemplate(max_target_length=5))
    write = PromptGenerationPipeline(model, processor)
    rows = [chat("a small dog ?", picture(20, 30), picture(9, 9, 1)), chat("the old town")]
    found = write(rows, batch_size=2)
    for row, record in zip(rows, found, strict=True):
        text = processor.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
        images = {"images": [row["images"]]} if row["images"] else {}
        alone = processor(text=[text], **images, add_special_tokens=False, return_tensors="pt")
        ids = greedy_by_hand(model.base_model, model.prompt.detach(), dict(alone), 5)
        assert record["generated_text"] == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    (answer,) = write(rows[1]["messages"])
    assert answer["generated_text"][-1]["content"].strip() == found[1]["generated_text"]
    with pytest.raises(PromptTuningError, match=r"row 1: the messages have 1 parts .* 'images' has 0 pictures"):
        write([chat("a dog", picture(9, 9)) | {"images": []}])
    with pytest.raises(PromptTuningError, match=r"row 1: the column 'images' holds \['dog.png'\], and not pictures"):
        write([chat("a dog", picture(9, 9)) | {"images": ["dog.png"]}])


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_a_text_among_rows_with_pictures(name):
    """It is the text of a user's turn, and has types of tokens as the others have."""
    model, processor = made(name, ChatTemplate(max_target_length=5))
    write = PromptGenerationPipeline(model, processor)
    rows = [chat("a small dog ?", picture(20, 30)), "the old town", chat("the old town")]
    found = write(rows, batch_size=3)
    assert found == [write(row) for row in rows] and found[1] == found[2]
    token = model.row_encoder(processor).pictures.token
    with pytest.raises(PromptTuningError, match=r"has 1 times the token .* and its 0 pictures have 0; remove"):
        write(f"what is {token} ?")


def test_the_active_prompt_may_be_of_the_other_kind():
    model, processor = made("llava", LABELS, TEXTS)
    classify = PromptClassificationPipeline(model, processor)
    expected = classify(ROWS)
    model.set_adapter("p1")
    assert classify(ROWS, adapter_names="default") == expected


def test_by_name(tmp_path):
    """A prompt's name loads the backbone by its Auto class, and its processor."""
    model, processor = made("llava", LABELS)
    backbone = tmp_path / "backbone"
    model.base_model.save_pretrained(backbone)
    processor.save_pretrained(backbone)
    trainer = PromptTuningTrainer(
        model, arguments(tmp_path / "out"), train_dataset=ROWS, processing_class=processor, template=LABELS
    )
    trainer.save_model()
    expected = PromptClassificationPipeline(model.eval(), processor)(ROWS, top_k=None)
    named = NamedPrompt.from_pretrained(str(tmp_path / "out"), backbone=str(backbone))
    classify = PromptClassificationPipeline(named)
    assert classify(ROWS, top_k=None) == expected
    loaded = load_prompt(tmp_path / "out", backbone=str(backbone))
    parts = {"model": loaded.model, "tokenizer": loaded.tokenizer, "processor": loaded.processor}
    assert pipeline("prompt-classification", **parts)(ROWS, top_k=None) == expected
    with pytest.raises(PromptTuningError, match=r"\{image\} is 'dog.png', and this column has pictures; open a file"):
        classify({"image": "dog.png", "question": "a dog"})


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_transformers_own_pipeline(name):
    model, processor = made(name, ChatTemplate())
    tell = pipeline("image-text-to-text", model=model, processor=processor)
    seen = picture(20, 30)
    content = [{"type": "image", "image": seen}, {"type": "text", "text": "a small dog ?"}]
    (found,) = tell(text=[{"role": "user", "content": content}], max_new_tokens=5, return_full_text=False)
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    alone = processor(text=[text], images=[[seen]], add_special_tokens=False, return_tensors="pt")
    ids = greedy_by_hand(model.base_model, model.prompt.detach(), dict(alone), 5)
    assert found["generated_text"].strip() == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
