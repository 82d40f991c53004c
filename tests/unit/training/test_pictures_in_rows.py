"""Rows with pictures in a trainer: the processor's own tokens and pixels, and the losses and answers by hand."""

import re

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptClassificationPipeline,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    PromptTuningTrainer,
    Teacher,
    load_prompt,
)
from hf_prompt_tuning.compat.transformers import picture_token
from tests.shared.picture_rows import LABELS as TEMPLATE
from tests.shared.picture_rows import ROWS
from tests.shared.reference import tiny_prompt_model
from tests.shared.tiny_pictures import by_hand, greedy_by_hand
from tests.shared.tiny_processors import CHAT, SEEING, picture, seeing_model, tiny_processor
from tests.shared.trainers import arguments, losses


def text(words):
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}
CHATS = [
    {
        "messages": [
            {"role": "user", "content": [IMAGE, text("a small dog ?")]},
            {"role": "assistant", "content": [text("great help")]},
            {"role": "user", "content": [text("and"), IMAGE, text("day")]},
            {"role": "assistant", "content": [text("thank you")]},
        ],
        "images": [picture(20, 30), picture(16, 16, 1)],
    },
    {
        "messages": [
            {"role": "user", "content": [text("the old town")]},
            {"role": "assistant", "content": [text("nobody answers")]},
        ],
        "images": [],
    },
]


def trainer_of(name, folder, rows, template, **values):
    processor = tiny_processor(name)
    backbone = seeing_model(name, processor)
    backbone.generation_config.suppress_tokens = list(range(backbone.config.image_token_id, len(processor.tokenizer)))
    trainer = PromptTuningTrainer(
        backbone,
        arguments(folder, **{"learning_rate": 0.5, "per_device_train_batch_size": 3} | values),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        template=template,
        prompt_config=PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM", random_range=1.0),
    )
    return trainer, processor


def seen_alone(processor, text, images, **options):
    """A text with its pictures, as the processor gives it to the backbone."""
    given = {"images": [images]} if images else {}
    made = processor(text=[text], **given, return_tensors="pt", **options)
    return dict(made)


def with_words(row, ids):
    """The row, and words behind it."""
    row, new = dict(row), torch.tensor([list(ids)], dtype=torch.long)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in row:
            more = {"input_ids": new, "attention_mask": torch.ones_like(new)}.get(name, torch.zeros_like(new))
            row[name] = torch.cat([row[name], more], dim=1)
    return row


def sources(processor):
    """What stands before each label of ROWS, alone."""
    for row in ROWS:
        images = [] if row["image"] is None else [row["image"]]
        token = picture_token(processor) if images else ""
        yield seen_alone(processor, f"Seen : {token} {row['question']} Answer :", images)


@pytest.mark.parametrize("name", SEEING)
def test_a_template_with_a_picture(name, tmp_path):
    trainer, processor = trainer_of(name, tmp_path, ROWS, TEMPLATE)
    backbone, vectors = trainer.model.base_model, trainer.model.prompt.detach()
    features = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator(features)
    labels = trainer.rows.tokenizer.label_token_ids
    nll, best = [], []
    for source, feature, index in zip(sources(processor), features, (0, 1, 1), strict=True):
        count = source["input_ids"].shape[1]
        assert feature["input_ids"] == source["input_ids"][0].tolist() + labels[index]
        assert feature["labels"] == [-100] * count + labels[index]
        scores = []
        for words in labels:
            logits = by_hand(backbone, vectors, with_words(source, words))[0, -len(words) - 1 : -1]
            scores.append(-cross_entropy(logits, torch.tensor(words), reduction="sum"))
        nll.append(-scores[index])
        best.append(torch.stack(scores))
    expected = torch.stack(nll).sum() / sum(len(labels[index]) for index in (0, 1, 1))
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)
    found = torch.tensor(trainer.predict(ROWS).predictions)
    torch.testing.assert_close(found, torch.stack(best).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SEEING)
def test_chats_with_pictures(name, tmp_path):
    template = ChatTemplate(max_target_length=9)
    trainer, processor = trainer_of(name, tmp_path, CHATS, template, per_device_eval_batch_size=2)
    backbone, vectors = trainer.model.base_model, trainer.model.prompt.detach()
    tokenizer, total, count = processor.tokenizer, 0.0, 0
    for chat, feature in zip(CHATS, trainer.train_dataset, strict=True):
        whole = processor.apply_chat_template(chat["messages"], tokenize=False)
        row = seen_alone(processor, whole, chat["images"], add_special_tokens=False)
        assert feature["input_ids"] == row["input_ids"][0].tolist()
        labels = torch.tensor(feature["labels"])
        written = [message["content"][0]["text"] for message in chat["messages"] if message["role"] == "assistant"]
        targets = tokenizer.decode(labels[labels >= 0]).split("<end_of_utterance>")
        assert [target.strip() for target in targets] == [*written, ""]
        logits = by_hand(backbone, vectors, row)[0, 2:-1]
        total += cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        count += int((labels >= 0).sum())
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 1)])
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    torch.testing.assert_close(loss, total / count, rtol=1e-4, atol=1e-4)
    if name == "idefics3":
        trainer.save_model()
        check_card(tmp_path / "README.md", processor, "images")
    answers = trainer.predict(CHATS).predictions
    for chat, answer in zip(CHATS, answers, strict=True):
        asked = processor.apply_chat_template(chat["messages"][:-1], tokenize=False, add_generation_prompt=True)
        source = seen_alone(processor, asked, chat["images"], add_special_tokens=False)
        ids = greedy_by_hand(backbone, vectors, source, 9)
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_parts_with_an_index(tmp_path):
    """As data sets of llava's format write them: each part has an index, and keys that others have."""
    keys = {"index": None, "text": None}

    def numbered(content):
        numbers = iter(range(9))
        return [keys | part | ({"index": next(numbers)} if part["type"] == "image" else {}) for part in content]

    turns = CHATS[0]["messages"][:2]
    both = [IMAGE, IMAGE, text("a small dog ?")]
    rows = [[{"role": "user", "content": content}, turns[1]] for content in (both, numbered(both))]
    data = [{"messages": messages, "images": CHATS[0]["images"]} for messages in rows]
    trainer, _ = trainer_of("idefics3", tmp_path, data, ChatTemplate())
    first, second = (trainer.train_dataset[i] for i in (0, 1))
    assert first["input_ids"] == second["input_ids"] and first["labels"] == second["labels"]


def test_a_template_with_markers_and_pictures(tmp_path):
    """What the template marks as the assistant's stands further behind, by what is written for pictures before it."""
    marked = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}"
        "{% elif message['role'] == 'assistant' %}{% generation %}{{ part['text'] }}{{ '<end_of_utterance>' }}"
        "{% endgeneration %}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    template = ChatTemplate(chat=ChatFormat(chat_template=marked))
    trainer, processor = trainer_of("idefics3", tmp_path, CHATS, template)
    labels = torch.tensor(trainer.train_dataset[0]["labels"])
    assert processor.tokenizer.decode(labels[labels >= 0]) == "great help<end_of_utterance>thank you<end_of_utterance>"


def check_card(card, processor, columns):
    """The card names the processor, and its code runs with a backbone, its processor, and a file of a picture."""
    words = card.read_text()
    assert "pipeline_tag: image-text-to-text" in words
    assert "| processor | Idefics3Processor |" in words and "With PEFT alone" not in words
    assert f"| picture columns | {columns} |" in words
    code = re.search(r"## Use\n\n```python\n(.*?)^```", words, re.DOTALL | re.MULTILINE)[1]
    code = re.sub(r"load_prompt\([^,]*,", f"load_prompt({str(card.parent)!r},", code)
    picture(20, 30).save(card.parent / "picture.png")
    code = code.replace("picture.png", str(card.parent / "picture.png"))
    exec(code, {"backbone": seeing_model("idefics3", processor), "processor": processor})


def test_a_run_resumes_and_the_prompt_loads(tmp_path):
    rows = Dataset.from_list(ROWS * 2)
    whole, processor = trainer_of("idefics3", tmp_path / "whole", rows, TEMPLATE, save_strategy="steps", save_steps=1)
    whole.train()
    again, _ = trainer_of("idefics3", tmp_path / "whole", rows, TEMPLATE, save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert len(losses(whole)) == 4 and losses(whole)[0] > losses(whole)[-1]
    assert torch.equal(whole.model.prompt, again.model.prompt)
    whole.save_model(str(tmp_path / "saved"))
    loaded = load_prompt(str(tmp_path / "saved"), backbone=seeing_model("idefics3", processor))
    batch = whole.data_collator([whole.train_dataset[i] for i in (0, 1)])
    with torch.no_grad():
        expected = whole.model(**{k: v for k, v in batch.items() if k != "label"}).logits
        found = loaded.model(**{k: v for k, v in batch.items() if k != "label"}).logits
    torch.testing.assert_close(found, expected)
    check_card(tmp_path / "saved" / "README.md", processor, "image")
    encoder = loaded.model.row_encoder(processor, loaded.template)
    assert encoder.encode_dataset(rows, "other")[0] == whole.train_dataset[0]


def chat(content, **columns):
    rows = [{"role": "user", "content": content}, {"role": "assistant", "content": [text("great")]}]
    return [{"messages": rows, **columns}]


@pytest.mark.parametrize(
    ("rows", "template", "message"),
    [
        (
            ROWS,
            PromptTemplate("{question}", label_column="label"),
            r"column 'image' has pictures, and the source '\{qu",
        ),
        (
            ROWS,
            PromptTemplate("{image} {question}", "{image}"),
            r"the target is made of \{image\}, which has pictures",
        ),
        (
            ROWS,
            PromptTemplate("{image} {question}", label_column="label", max_source_length=20),
            "max_source_length is 20, and the row has pictures, which are not cut",
        ),
        (
            ROWS,
            PromptTemplate("{image} {question}", label_column="label", chat=ChatFormat()),
            "the template tells the row as a chat; give rows of messages",
        ),
        (
            [ROWS[0] | {"question": "an <image> of ?"}],
            TEMPLATE,
            "has 21 times the token '<image>' of pictures, and its 1 pictures have 20",
        ),
        (
            chat([IMAGE, IMAGE, text("a")], images=[picture(8, 8)]),
            ChatTemplate(),
            "2 parts .* 'images' has 1 pictures",
        ),
        (chat([text("a")], images=[picture(8, 8)]), ChatTemplate(), "0 parts .* 'images' has 1 pictures"),
        (chat([IMAGE, text("a")]), ChatTemplate(), "1 parts .* 'images' has 0 pictures"),
        (
            chat([text("a")], picture=picture(8, 8)),
            ChatTemplate(),
            "the columns 'picture' have pictures, .* call 'pict",
        ),
        (
            chat([IMAGE, text("a")], image=picture(8, 8), images=[picture(8, 8)]),
            ChatTemplate(),
            r"the columns 'image', 'images' have pictures, .* call '\w+' so, or remove it",
        ),
        (chat([IMAGE | {"url": "x"}, text("a")]), ChatTemplate(), "has its picture as 'url'; put pictures in the col"),
        (
            chat([{"type": "image_url", "image_url": {"url": "x"}}, text("a")], images=[picture(8, 8)]),
            ChatTemplate(),
            r"its picture as 'image_url'; put pictures in the column 'images', .* \{\"type\": \"image\"\}",
        ),
        (chat([{"type": "input_image"}, text("a")]), ChatTemplate(), "has its picture as 'input_image'; put pictures"),
        (
            chat([IMAGE | {"index": 1}, text("a")], images=[picture(8, 8)]),
            ChatTemplate(),
            "a picture's part has the index 1, and is number 0 of the row",
        ),
        (chat([IMAGE, text("a")], images=["dog.png"]), ChatTemplate(), "'images' holds .'dog.png'., and not pictures"),
        (chat([IMAGE, text("<image>")], image=picture(8, 8)), ChatTemplate(), "has 1 pictures, .* writes 2 times"),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": [text("a")]},
                        {"role": "assistant", "content": [IMAGE, text("b")]},
                    ],
                    "image": picture(8, 8),
                }
            ],
            ChatTemplate(),
            "message 2, the assistant's, has a picture, and the model learns to write texts; put it into a user's",
        ),
        (
            chat([IMAGE, text("a")], image=picture(8, 8)),
            ChatTemplate(max_source_length=99),
            "max_source_length is 99, and the row has pictures",
        ),
    ],
)
def test_what_has_no_place_is_refused(rows, template, message, tmp_path):
    with pytest.raises(PromptTuningError, match=message):
        trainer_of("idefics3", tmp_path, rows, template)


def test_what_comes_behind_the_last_target_is_left_out_with_its_pictures(tmp_path):
    """And so is an answer that is written anew."""
    turns, pictures = CHATS[0]["messages"], [picture(20, 30), picture(16, 16, 1)]
    behind = [{"messages": turns[:3], "images": pictures}]
    before = [{"messages": turns[:2], "images": pictures[:1]}]
    template = ChatTemplate(chat=ChatFormat(assistant_loss="last"))
    trainer, processor = trainer_of("idefics3", tmp_path, behind, template)
    expected, _ = trainer_of("idefics3", tmp_path, before, template)
    assert trainer.train_dataset["input_ids"] == expected.train_dataset["input_ids"]
    found, alone = (trainer.data_collator([each.train_dataset[0]]) for each in (trainer, expected))
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    answer = [turns[0], {"role": "assistant", "content": [IMAGE, text("great help")]}]
    coder = expected.model.row_encoder(processor)
    asked = coder.inputs([{"messages": answer, "images": pictures}])
    alone = coder.inputs([{"messages": turns[:1], "images": pictures[:1]}])
    assert all(torch.equal(asked[name], alone[name]) for name in alone)


def test_where_pictures_are_not_read_a_processor_is_refused(tmp_path):
    processor = tiny_processor("idefics3")
    backbone, args = seeing_model("idefics3", processor), arguments(tmp_path)
    config = PromptTuningConfig(num_virtual_tokens=2)
    teacher = Teacher("Be kind.")
    with pytest.raises(PromptTuningError, match="Idefics3Processor, and a teacher reads texts alone"):
        PromptTuningTrainer(
            backbone,
            args,
            train_dataset=ROWS,
            processing_class=processor,
            template=TEMPLATE,
            prompt_config=config,
            teacher=teacher,
        )
    with pytest.raises(PromptTuningError, match="not put among texts here for LlamaForCausalLM"):
        tiny_prompt_model("llama").row_encoder(processor, TEMPLATE)
    model = tiny_prompt_model("", backbone=backbone)
    model.info.template = TEMPLATE
    reader = PromptClassificationPipeline(model, processor.tokenizer)
    with pytest.raises(PromptTuningError, match=r"\{image\} is a Image .*, and a template takes texts"):
        reader(ROWS[0])
    with pytest.raises(PromptTuningError, match=r"\{image\} is a \w+ .*, and a template takes texts"):
        PromptTuningTrainer(model, args, train_dataset=ROWS, processing_class=processor.tokenizer, template=TEMPLATE)
    with pytest.raises(PromptTuningError, match=r"a prompt is tuned on text: .* Pictures are read with a processor"):
        encoder = model.row_encoder(processor.tokenizer, ChatTemplate(chat=ChatFormat(chat_template=CHAT)))
        encoder.encode(CHATS[0])
