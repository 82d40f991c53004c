"""Loss and gradient of learning from a teacher equal those by hand, in every layout, at every place, of every kind."""

import pytest
import torch

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    Teacher,
    get_prompt_tuning_model,
)
from hf_prompt_tuning.layouts.base import IGNORED
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.conversations import CHATS
from tests.shared.ensembles import make as make_ensemble
from tests.shared.places import place_config
from tests.shared.reference import loss_and_gradient, relative_error
from tests.shared.teaching import ROWS, TEXT, kl, logits_behind, logits_of_text, loss_by_hand, taught
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE


def trainer_of(folder, name, place="start", **values):
    return taught(folder, name=name, place=place, **values)


def batch_of(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def loss_of(trainer):
    """The trainer's own loss of all rows, as a number, and the prompt's gradient."""
    return loss_and_gradient(trainer.model, trainer.compute_loss(trainer.model, batch_of(trainer)))


def by_hand(trainer, teacher_logits, temperature=1.0, weight=1.0):
    rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    students = [logits_behind(trainer.model, *row) for row in rows]
    targets = [torch.tensor([i for i in labels if i != IGNORED]) for _, labels in rows]
    loss = loss_by_hand(teacher_logits, students, targets, temperature, weight)
    return loss_and_gradient(trainer.model, loss)


def rows_behind_text(trainer, texts, tokenizer):
    """[BOS | text | row] and its labels, put together here."""
    for row, text in zip(trainer.train_dataset, texts, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        lead = ids[:1] if ids[0] == 1 else []
        context = tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
        yield lead + context + ids[len(lead) :], [IGNORED] * (len(lead) + len(context)) + labels[len(lead) :]


def require_equal(trainer, expected):
    loss, gradient = loss_of(trainer)
    assert loss == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
    assert relative_error(gradient, expected[1]) < 1e-4


@pytest.mark.parametrize("place", ["start", "after_bos"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "bloom", "mamba", "gemma3n_text", "gemma3_text"])
def test_a_text_teaches_in_every_layout(tmp_path, name, place):
    for layout in ("auto", "packed", "cached", "padded"):
        try:
            trainer = trainer_of(
                tmp_path, name, place, layout=layout, distillation_temperature=2.0, distillation_weight=0.7
            )
            trainer.compute_loss(trainer.model, batch_of(trainer))
        except PromptTuningError:
            assert layout in ("packed", "cached")
            continue
        rows = rows_behind_text(trainer, [TEXT] * 3, trainer.processing_class)
        teachers = [logits_of_text(trainer.model, *row) for row in rows]
        require_equal(trainer, by_hand(trainer, teachers, 2.0, 0.7))


def rows_in_chats(trainer, messages, chats):
    """The conversation with these messages in front, rendered here up to the answer, and the student's targets."""
    for row, chat in zip(trainer.train_dataset, chats, strict=True):
        text = trainer.processing_class.apply_chat_template(
            [*messages, *chat[:-1]], add_generation_prompt=True, tokenize=False
        )
        source = trainer.processing_class(text, add_special_tokens=False)["input_ids"]
        targets = [i for i in row["labels"] if i != IGNORED]
        yield source + targets, [IGNORED] * len(source) + targets


SHOTS = [
    {"role": "user", "content": "line down"},
    {"role": "assistant", "content": "complaint"},
]


@pytest.mark.parametrize("place", ["start", "after_bos", "system"])
@pytest.mark.parametrize("family", ["chatml", "llama3", "mistral", "qwen3", "phi"])
def test_a_system_message_and_turns_teach_in_chats(tmp_path, family, place):
    tokenizer = chat_tokenizer(family)
    template = ChatTemplate(chat=ChatFormat(assistant_loss="last"))
    random = {"prompt_tuning_init": "RANDOM", "random_range": 1.0}
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_position=place, **random)
    backbone = tiny_model("llama", max_position_embeddings=256)
    model = get_prompt_tuning_model(backbone, config, tokenizer, template)
    rows = [{"messages": chat} for chat in CHATS]
    system = [{"role": "system", "content": TEXT}]
    for teacher, messages in (
        (Teacher(text=TEXT), system),
        (Teacher(messages=SHOTS), SHOTS),
        (Teacher(messages=system + SHOTS), system + SHOTS),
    ):
        trainer = trainer_of(
            tmp_path, "llama", model=model, teacher=teacher, tokenizer=tokenizer, template=template, rows=rows
        )
        teachers = [logits_of_text(model, *row) for row in rows_in_chats(trainer, messages, CHATS)]
        require_equal(trainer, by_hand(trainer, teachers))


@pytest.mark.parametrize("limit", [None, 18])
def test_a_text_teaches_rows_that_a_template_tells_as_chats(tmp_path, limit):
    tokenizer = chat_tokenizer("chatml")
    template = PromptTemplate(source="{message}", target="{answer}", chat=ChatFormat(), max_source_length=limit)
    trainer = trainer_of(tmp_path, "llama", tokenizer=tokenizer, template=template)
    texts = [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
    read = [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts]
    assert (read == [row["message"] for row in ROWS]) is (limit is None)
    chats = [[{"role": "user", "content": text}, None] for text in read]
    system = [{"role": "system", "content": TEXT}]
    teachers = [logits_of_text(trainer.model, *row) for row in rows_in_chats(trainer, system, chats)]
    require_equal(trainer, by_hand(trainer, teachers))


def test_the_teacher_reads_the_turns_that_the_student_reads(tmp_path):
    tokenizer, rows = chat_tokenizer("chatml"), [{"messages": chat} for chat in CHATS]
    template = ChatTemplate(chat=ChatFormat(assistant_loss="last"), max_source_length=60)
    trainer = trainer_of(tmp_path, "llama", tokenizer=tokenizer, template=template, rows=rows)
    system = tokenizer(f"<|im_start|>system\n{TEXT}<|im_end|>\n", add_special_tokens=False)["input_ids"]
    whole = trainer_of(tmp_path, "llama", tokenizer=tokenizer, template=ChatTemplate(chat=template.chat), rows=rows)
    lengths = [[len(row["input_ids"]) for row in each.train_dataset] for each in (trainer, whole)]
    assert lengths[0] != lengths[1]
    for row in trainer.train_dataset:
        assert row["teacher_0_input_ids"] == system + row["input_ids"]
        assert row["teacher_0_labels"] == [IGNORED] * len(system) + row["labels"]


def test_a_text_of_each_row_teaches(tmp_path):
    texts = ["Be kind.", "The old town and the day and night", "A dog"]
    rows = [row | {"context": text} for row, text in zip(ROWS, texts, strict=True)]
    trainer = trainer_of(tmp_path, "llama", teacher=Teacher(column="context"), rows=rows)
    behind = rows_behind_text(trainer, texts, trainer.processing_class)
    require_equal(trainer, by_hand(trainer, [logits_of_text(trainer.model, *row) for row in behind]))


@pytest.mark.parametrize("place", ["start", "after_bos"])
def test_several_teachers_teach_their_mean_distribution(tmp_path, place):
    texts = [TEXT, "summary of the long story about a small dog"]
    trainer = trainer_of(tmp_path, "llama", place, teacher=[Teacher(text=text) for text in texts])
    rows = [
        [
            logits_of_text(trainer.model, *row)
            for row in rows_behind_text(trainer, [text] * 3, trainer.processing_class)
        ]
        for text in texts
    ]
    mean = [torch.stack([logits.softmax(-1) for logits in each]).mean(0).log() for each in zip(*rows, strict=True)]
    require_equal(trainer, by_hand(trainer, mean))


def test_other_prompts_teach_from_a_folder_and_by_name(tmp_path):
    torch.manual_seed(3)
    model = get_prompt_tuning_model(tiny_model("llama"), place_config("start"))
    for name, place in (("long", "after_bos"), ("near", "start")):
        model.add_adapter(name, place_config(place, num_virtual_tokens=9))
    model.save_pretrained(tmp_path / "saved")
    model.delete_adapter("near")
    for prompt, name in (("long", "long"), (tmp_path / "saved/long", "long"), (tmp_path / "saved", "default")):
        student = (
            model if prompt == "long" else get_prompt_tuning_model(tiny_model("llama"), place_config("after_bos"))
        )
        trainer = trainer_of(tmp_path, "llama", model=student, teacher=Teacher(prompt=prompt))
        rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
        with torch.no_grad():
            teachers = [logits_behind(model, *row, name) for row in rows]
        require_equal(trainer, by_hand(trainer, teachers))
        assert set(trainer.model.peft_config) == ({"default", "long"} if prompt == "long" else {"default"})


def test_an_ensemble_teaches_its_mean_distribution(tmp_path, messages):
    ensemble = make_ensemble(tmp_path / "ensemble", messages, template=FREE, evaluate=False)
    ensemble.save_model(str(tmp_path / "ensemble"))
    tokenizer = ensemble.processing_class
    trainer = trainer_of(tmp_path, "llama", teacher=Teacher(prompt=str(tmp_path / "ensemble")), tokenizer=tokenizer)
    rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    with torch.no_grad():
        members = [
            [logits_behind(ensemble.model, *row, name).softmax(-1) for name in ensemble.members] for row in rows
        ]
    require_equal(trainer, by_hand(trainer, [torch.stack(each).mean(0).log() for each in members]))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_text_in_front_of_an_encoder_teaches(tmp_path, name):
    tokenizer = make_tokenizer("t5")
    trainer = trainer_of(tmp_path, name, tokenizer=tokenizer, distillation_temperature=1.5, distillation_weight=0.4)
    backbone, context = trainer.model.get_base_model(), tokenizer(TEXT + "\n\n", add_special_tokens=False)["input_ids"]
    scale = getattr(backbone.get_encoder(), "embed_scale", 1.0)
    if hasattr(backbone.get_input_embeddings(), "embed_scale"):
        scale = 1.0
    teachers, students, targets = [], [], []
    for row in trainer.train_dataset:
        labels = torch.tensor(row["labels"])
        embeds = [backbone.get_input_embeddings()(torch.tensor(ids)) * scale for ids in (context, row["input_ids"])]
        for first, logits in ((embeds[0], teachers), (trainer.model.prompt, students)):
            inputs = torch.cat([first, embeds[1]])[None]
            logits.append(backbone(inputs_embeds=inputs, labels=labels[None]).logits[0])
        targets.append(labels)
    teachers = [logits.detach() for logits in teachers]
    expected = loss_and_gradient(trainer.model, loss_by_hand(teachers, students, targets, 1.5, 0.4))
    require_equal(trainer, expected)


def test_rows_of_token_ids_are_taught_with_pads_on_either_side(tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 300, (length,), generator=generator).tolist() for length in (5, 2, 8)]
    rows = [{"input_ids": row, "labels": [IGNORED, *row[1:]]} for row in ids]
    for side in ("left", "right"):
        tokenizer = make_tokenizer("llama")
        tokenizer.padding_side = side
        trainer = trainer_of(tmp_path, "llama", template=None, tokenizer=tokenizer, rows=rows)
        teachers = [logits_of_text(trainer.model, *row) for row in rows_behind_text(trainer, [TEXT] * 3, tokenizer)]
        require_equal(trainer, by_hand(trainer, teachers))


def test_a_step_projects_only_the_labelled_positions(tmp_path):
    trainer = trainer_of(tmp_path, "llama", layout="packed", check_layout=False)
    head, seen = trainer.model.get_base_model().get_output_embeddings(), []
    head.register_forward_hook(lambda module, given, output: seen.append(output.shape[:2].numel()))
    trainer.compute_loss(trainer.model, batch_of(trainer))  # the context is computed
    seen.clear()
    trainer.compute_loss(trainer.model, batch_of(trainer)).backward()
    labelled = sum(label != IGNORED for row in trainer.train_dataset for label in row["labels"])
    assert seen == [labelled, labelled]  # the teacher's and the student's, and the context no more
    assert trainer.model.chosen_layouts == ["packed"]


def test_the_context_is_computed_once_and_a_changed_backbone_again(tmp_path, passes):
    trainer = trainer_of(tmp_path, "llama", layout="packed", max_steps=5, check_layout=False)
    trainer.train()
    assert passes == [1]
    with torch.no_grad():
        trainer.model.get_base_model().get_output_embeddings().weight.mul_(1.5)
    teachers = [
        logits_of_text(trainer.model, *row) for row in rows_behind_text(trainer, [TEXT] * 3, trainer.processing_class)
    ]
    require_equal(trainer, by_hand(trainer, teachers))
    assert passes == [1, 1]


def test_the_backbone_stays_and_the_teacher_is_not_saved(tmp_path):
    trainer = trainer_of(tmp_path, "llama", max_steps=3)
    before = {name: value.clone() for name, value in trainer.model.get_base_model().state_dict().items()}
    start = trainer.model.prompt.detach().clone()
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.get_base_model().state_dict().items())
    assert not torch.equal(trainer.model.prompt, start)
    trainer.save_model(str(tmp_path / "saved"))
    assert not [file for file in (tmp_path / "saved").rglob("*") if "teacher" in file.name]
    assert set(trainer.model.peft_config) == {"default"}


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_the_scores_of_labels_teach(tmp_path, messages, name, weight):
    tokenizer = make_tokenizer("t5" if name == "t5" else "llama")
    words = {"1": "complaint", "2": "no complaint", "3": "great"}
    template = PromptTemplate(source="Message : {message} Label :", label_column="label", label_words=words)
    rows = [row | ({"label": None} if weight == 1 and i % 2 else {}) for i, row in enumerate(messages[:6])]
    values = {"distillation_temperature": 2.0, "distillation_weight": weight, "distill_over": "labels"}
    for layout in ("auto", "cached", "padded") if name != "t5" else ("auto",):
        trainer = trainer_of(
            tmp_path, name, tokenizer=tokenizer, template=template, rows=rows, layout=layout, **values
        )
        coder, model, total = trainer.model.row_encoder(tokenizer), trainer.model, 0.0
        context = tokenizer(TEXT + "\n\n", add_special_tokens=False)["input_ids"]
        for row in rows:
            own = coder.source_ids(row)[0]
            lead = own[:1] if name != "t5" and own[0] == 1 else []
            options = {"candidates": coder.label_token_ids}
            student = model(input_ids=torch.tensor([own]), **options).scores[0]
            with torch.no_grad():
                behind = torch.tensor([lead + context + own[len(lead) :]])
                teacher = model(input_ids=behind, adapter_names=["__base__"], **options).scores[0]
            total = total + weight * 4 * kl(teacher, student, 2.0)
            if weight < 1:
                right = ["1", "2", "3"].index(row["label"])
                total = total - (1 - weight) * student[right] / len(coder.label_token_ids[right])
        require_equal(trainer, loss_and_gradient(model, total / len(rows)))


@pytest.mark.parametrize("k", [1, 5, 399, 1000])
def test_the_most_likely_tokens_teach(tmp_path, k):
    trainer = trainer_of(tmp_path, "llama", teacher_top_k=k, distillation_temperature=2.0)
    rows = rows_behind_text(trainer, [TEXT] * 3, trainer.processing_class)
    teachers = [logits_of_text(trainer.model, *row) for row in rows]
    least = [logits.topk(min(k, logits.shape[1]), dim=1).values[:, -1:] for logits in teachers]
    kept = [logits.masked_fill(logits < low, -30000.0) for logits, low in zip(teachers, least, strict=True)]
    loss, gradient = loss_of(trainer)
    students = [logits_behind(trainer.model, row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    total = 0.0
    for teacher, student in zip(kept, students, strict=True):
        p, log_q = (teacher.double() / 2).softmax(-1), (student.double() / 2).log_softmax(-1)
        total = total + 4 * (torch.xlogy(p, p) - p * log_q).sum()
    expected = loss_and_gradient(trainer.model, total / sum(map(len, students)))
    assert loss == pytest.approx(expected[0], rel=1e-4) and relative_error(gradient, expected[1]) < 1e-4


def test_predictions_of_a_computed_prompt_are_not_overwritten(tmp_path):
    model = get_prompt_tuning_model(tiny_model("llama"), place_config("start"))
    model.add_adapter("other", place_config("start", num_virtual_tokens=6))
    rows = [{"input_ids": [i], "labels": [i]} for i in (7, 9, 8)]
    for layout in ("cached", "packed", "padded"):
        options = {"model": model, "template": None, "rows": rows, "layout": layout}
        trainer = trainer_of(tmp_path, "llama", teacher=Teacher(prompt="other"), **options)
        with torch.no_grad():
            teachers = [logits_behind(model, *row.values(), "other") for row in rows]
        for _ in range(2):
            require_equal(trainer, by_hand(trainer, teachers))


def test_rows_that_are_all_alike_or_a_single_one_are_taught(tmp_path):
    for rows in (ROWS[:1], [ROWS[0]] * 3):
        trainer = trainer_of(tmp_path, "llama", rows=rows)
        behind = list(rows_behind_text(trainer, [TEXT] * len(rows), trainer.processing_class))
        require_equal(trainer, by_hand(trainer, [logits_of_text(trainer.model, *row) for row in behind]))


@pytest.mark.parametrize("place", ["start", "system"])
def test_a_prompt_that_stands_in_place_of_the_text_has_an_empty_system_turn_behind_it(tmp_path, place):
    tokenizer = chat_tokenizer("chatml")
    own = "<|im_start|>system\nYou are a model.<|im_end|>\n"
    tokenizer.chat_template = (  # as SmolLM2's and Qwen2.5's
        f"{{% if messages[0].role != 'system' %}}{{{{ {own!r} }}}}{{% endif %}}{tokenizer.chat_template}"
    )
    template = ChatTemplate(chat=ChatFormat(assistant_loss="last"))
    random = {"prompt_tuning_init": "RANDOM", "random_range": 1.0}
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_position=place, **random)
    model = get_prompt_tuning_model(tiny_model("llama", max_position_embeddings=256), config, tokenizer, template)
    common = {"model": model, "tokenizer": tokenizer, "template": template}
    trainer = trainer_of(tmp_path, "llama", rows=[{"messages": chat} for chat in CHATS], **common)
    begins = {"start": own, "system": "<|im_end|>\n"}[place] + "<|im_start|>user\n"
    head = list(model.active_peft_config.head)
    read = [tokenizer.decode(row["input_ids"][len(head) :]) for row in trainer.train_dataset]
    assert all(text.startswith(begins) for text in read)
    assert model.info.template.chat.system_message == {"start": None, "system": ""}[place]
    system = [{"role": "system", "content": TEXT}]
    require_equal(
        trainer, by_hand(trainer, [logits_of_text(model, *row) for row in rows_in_chats(trainer, system, CHATS)])
    )
    rows = trainer.rows([{"messages": [{"role": "user", "content": "why"}]}], "asked", require_target=False)
    assert tokenizer.decode(rows[0]["input_ids"][len(head) :]).startswith(begins + "why")
