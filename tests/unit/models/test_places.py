"""Where a prompt stands: its head is found, trained beside, saved, loaded, and refused by name where it is none."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptLoadError,
    PromptMismatchError,
    PromptTuningConfig,
    PromptTuningError,
    VllmPrompt,
    export_vllm,
    get_prompt_tuning_model,
    import_prompt,
    inspect_prompt,
    load_prompt,
)
from hf_prompt_tuning.prompts.files import read_prompt
from tests.shared.chat_templates import FAMILIES, chat_tokenizer
from tests.shared.places import HEADS, assembled, greedy_by_hand, place_config, placed_model, real_logits
from tests.shared.short_runs import scaled_trainer
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.trainers import FREE, TEMPLATE, make

PLACES = ["after_bos", "system"]
IDS = torch.tensor([[21, 22, 23, 24]])
SYSTEM = {
    "chatml": "<|im_start|>system\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\n",
    "mistral": "<s>[INST]",
    "qwen3": "<|im_start|>system\n",
    "phi": "<|system|>\n",
    "tools": "<|im_start|>system\n",
}


def head_of(tokenizer, place, backbone=None, **values):
    """The text of the head that a new prompt gets."""
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position=place, **values)
    model = get_prompt_tuning_model(backbone or tiny_model("llama"), config, tokenizer)
    head = model.peft_config["default"].head
    return head if tokenizer is None else tokenizer.decode(list(head))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_of_a_chat_template(name):
    tokenizer = chat_tokenizer(name)
    assert head_of(tokenizer, "system") == SYSTEM[name]
    ids = tokenizer(SYSTEM[name], add_special_tokens=False)["input_ids"]
    roles = ["system", "user"] if FAMILIES[name].has_system else ["user"]
    for text in ("the parcel", "You are", " again", "", "{}"):
        chat = [{"role": role, "content": text} for role in roles]
        written = tokenizer.apply_chat_template(chat, return_dict=True, add_generation_prompt=True)["input_ids"]
        assert written[: len(ids)] == ids or text == " again"  # what merges with the head's end


def test_the_token_after_which_a_prompt_stands():
    assert head_of(make_tokenizer("llama"), "after_bos") == "<s>"
    assert head_of(make_tokenizer("gpt2"), "after_bos") == "<s>"  # its BOS, which it does not write
    assert head_of(make_tokenizer("gpt2"), "after_bos", sink_token="</s>") == "</s>"
    assert head_of(None, "after_bos") == (1,)
    assert head_of(chat_tokenizer("llama3"), "after_bos") == "<|begin_of_text|>"
    assert head_of(None, "after_bos", head_token_ids=(5, 6)) == (5, 6)


@pytest.mark.parametrize(
    ("tokenizer", "backbone", "template", "head"),
    [
        (make_tokenizer("llama"), "llama", None, "<s>"),  # it writes BOS
        (make_tokenizer("gpt2"), "gpt2", None, ""),  # it does not
        (chat_tokenizer("chatml"), "llama", ChatTemplate(), ""),
        (chat_tokenizer("llama3"), "llama", ChatTemplate(), "<|begin_of_text|>"),
        (make_tokenizer("bart"), "bart", None, ""),  # an encoder-decoder
        (None, "llama", None, ""),
    ],
)
def test_an_automatic_place_is_behind_the_bos_that_a_decoders_tokenizer_writes(tokenizer, backbone, template, head):
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position="auto")
    made = get_prompt_tuning_model(tiny_model(backbone), config, tokenizer, template).active_peft_config
    assert made.prompt_position == ("after_bos" if head else "start")
    assert (tokenizer.decode(list(made.head)) if made.head else "") == head
    assert head_of(None, "start") == ()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("gpt2", dict(prompt_position="middle"), "prompt_position is 'middle'; use one of start, after_bos, system"),
        ("gpt2", dict(sink_token="</s>"), "sink_token is '</s>', and prompt_position is start"),
        ("gpt2", dict(prompt_position="system"), "has no chat template, before whose system text"),
        ("gpt2", dict(prompt_position="after_bos", sink_token="a b c"), "tokens of the tokenizer; give one token's"),
        ("llama", dict(prompt_position="after_bos", sink_token="</s>"), "writes '<s>' in front of every text; leave"),
        (None, dict(prompt_position="system"), "prompt_position is system, which needs a tokenizer"),
        ("gpt2", dict(head_token_ids=(1,)), "nothing stands before a prompt at start"),
        ("gpt2", dict(prompt_position="after_bos", head_token_ids=(999,)), "the prompt's head has the token id 999"),
    ],
)
def test_refused_places(kind, values, message):
    with pytest.raises(PromptTuningError, match=message):
        config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", **values)
        get_prompt_tuning_model(tiny_model("llama"), config, None if kind is None else make_tokenizer(kind))


@pytest.mark.parametrize("failure", ["raise_exception('no system turn')", "'no system turn: ' + 1"])
def test_a_template_may_refuse_a_system_turn_by_any_error(failure):
    tokenizer = chat_tokenizer("chatml")
    refuses = "{% if messages[0].role == 'system' %}{{ " + failure + " }}{% endif %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position="system")
    model = get_prompt_tuning_model(tiny_model("llama", vocab_size=400), config, tokenizer)
    head = model.peft_config["default"].head
    assert tokenizer.decode(head) == "<|im_start|>user\n"
    ids = model.row_encoder(tokenizer, ChatTemplate()).content_ids([{"role": "user", "content": "why"}])
    assert tuple(ids[: len(head)]) == head


def test_places_of_encoder_decoders_and_of_backbones_without_bos():
    assert head_of(make_tokenizer("llama"), "after_bos", tiny_model("bart")) == "<s>"
    with pytest.raises(
        PromptTuningError, match="T5ForConditionalGeneration is a encoder-decoder whose tokenizer writ"
    ):
        head_of(make_tokenizer("t5"), "after_bos", tiny_model("t5"))
    assert head_of(make_tokenizer("t5"), "after_bos", tiny_model("t5"), sink_token="</s>") == "</s>"
    with pytest.raises(PromptTuningError, match="is an encoder-decoder, which reads no chats"):
        head_of(chat_tokenizer("chatml"), "system", tiny_model("bart"))
    with pytest.raises(
        PromptTuningError, match="is a backbone without a BOS token; give the tokenizer, or sink_token"
    ):
        backbone = tiny_model("llama")
        backbone.config.bos_token_id = None
        head_of(None, "after_bos", backbone)


def test_a_template_that_writes_the_date_is_refused():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}\n{{ messages[0].content }}"
    with pytest.raises(PromptTuningError, match=r"writes today's date \(.*\) before the system text"):
        head_of(tokenizer, "system")
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(PromptTuningError, match="writes no token before the first text"):
        head_of(tokenizer, "system")
    tokenizer.chat_template = "hello"
    with pytest.raises(PromptTuningError, match="writes neither a system turn's text nor a user's"):
        head_of(tokenizer, "system")


def test_a_template_that_leaves_out_an_empty_system_turn_takes_a_system_message():
    tokenizer = chat_tokenizer("phi")
    tokenizer.chat_template = (  # as Phi 3.5's own
        "{% for m in messages %}{% if m.role != 'system' or m.content %}"
        "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    )
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="RANDOM", prompt_position="system")
    model = get_prompt_tuning_model(tiny_model("llama", vocab_size=400), config, tokenizer)
    encoder = model.row_encoder(tokenizer, ChatTemplate(chat=ChatFormat(system_message="Be kind.")))
    ids = encoder.content_ids([{"role": "user", "content": "why"}])
    assert tokenizer.decode(ids).startswith("<|system|>\nBe kind.<|end|>\n<|user|>\nwhy")
    assert tuple(ids[:2]) == model.peft_config["default"].head


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoder(name):
    model = placed_model(name, "after_bos").eval()
    targets = torch.tensor([[31, 32, 2]])
    expected = model.get_base_model()(**assembled(model, IDS[0]), labels=targets).logits
    with_head = torch.cat([torch.tensor([[1]]), IDS], dim=1)
    for ids in (IDS, with_head, torch.cat([torch.zeros(1, 2, dtype=torch.long), with_head], dim=1)):
        mask = (ids != 0).long()
        output = model(input_ids=ids, attention_mask=mask, labels=targets)
        torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
        assert output.encoder_last_hidden_state.shape[:2] == (1, 4 + ids.shape[1])
        loss = torch.nn.functional.cross_entropy(expected[0], targets[0])
        torch.testing.assert_close(
            model(input_ids=ids, attention_mask=mask, labels=targets, only_labelled=True).loss, loss
        )
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        by_hand = model.get_base_model().generate(**assembled(model, IDS[0]), max_new_tokens=4, do_sample=False)
        assert torch.equal(made, by_hand)
        if ids is not IDS:
            again = model(
                input_ids=ids, attention_mask=mask, labels=targets, encoder_outputs=[output.encoder_last_hidden_state]
            )
            torch.testing.assert_close(again.logits, expected, rtol=1e-4, atol=1e-5)
    states = model(input_ids=IDS, labels=targets).encoder_last_hidden_state
    with pytest.raises(PromptTuningError, match="encoder_outputs are given for texts without the tokens"):
        model(input_ids=IDS, labels=targets, encoder_outputs=[states])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_prompt_has_its_head_in_front(place, dtype, tmp_path):
    model = placed_model("llama", place, dtype=dtype)
    model.save_pretrained(tmp_path)
    head = torch.tensor(HEADS[place])
    rows = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(rows, torch.cat([model.word_embeddings(head).float(), model.prompt]))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_virtual_tokens"] == 4 + len(head)
    described = json.loads((tmp_path / "prompt_tuning.json").read_text())
    assert described["format_version"] == 2
    assert described["place"] == {"prompt_position": place, "head_token_ids": head.tolist()}
    card = (tmp_path / "README.md").read_text()
    assert f"token ids {head.tolist()} ({place})" in card and f"To PEFT the prompt has {4 + len(head)} vectors" in card
    backbone = tiny_model("llama").to(dtype)
    peft = PeftModel.from_pretrained(tiny_model("llama").to(dtype), tmp_path).eval()
    loaded = load_prompt(tmp_path, backbone=backbone).model
    config = loaded.peft_config["default"]
    assert (config.num_virtual_tokens, config.prompt_position, config.head) == (4, place, tuple(head.tolist()))
    with torch.no_grad():
        expected = real_logits(model, IDS[0])
        torch.testing.assert_close(peft(input_ids=IDS).logits[0], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded(input_ids=IDS).logits[0], expected[len(head) :], rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter_model.safetensors"
    ).read_bytes()
    assert torch.equal(import_prompt(tmp_path), model.prompt)
    further = get_prompt_tuning_model(backbone, PromptTuningConfig(init_prompt=str(tmp_path)))
    assert torch.equal(further.prompt, model.prompt)
    assert further.peft_config["default"].place() == described["place"]
    moved = get_prompt_tuning_model(backbone, PromptTuningConfig(init_prompt=str(tmp_path), prompt_position="start"))
    assert torch.equal(moved.prompt, model.prompt) and not moved.peft_config["default"].head


@pytest.mark.parametrize("name", ["gpt2", "gemma", "bloom", "opt", "bart"])
def test_peft_gives_the_same_for_texts_without_the_head(name, tmp_path):
    model = placed_model(name, "after_bos").eval()
    model.save_pretrained(tmp_path)
    peft = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    more = {"labels": torch.tensor([[31, 32, 2]])} if name == "bart" else {}
    with torch.no_grad():
        theirs, ours = (each(input_ids=IDS, **more).logits[0] for each in (peft, model))
    torch.testing.assert_close(theirs[-ours.shape[0] :], ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_a_placed_prompt_survives_the_hub(place, hub, tmp_path):
    model = placed_model("llama", place)
    model.push_to_hub("alice/placed")
    loaded = load_prompt("alice/placed", backbone=tiny_model("llama")).model
    assert torch.equal(loaded.prompt, model.prompt) and loaded.info.place == model.info.place
    further = PromptTuningConfig(init_prompt="alice/placed")
    further = get_prompt_tuning_model(tiny_model("llama"), further)
    assert torch.equal(further.prompt, model.prompt) and further.peft_config["default"].head == HEADS[place]


def test_files_of_a_placed_prompt_that_do_not_fit(tmp_path):
    model = placed_model("llama", "system")
    model.save_pretrained(tmp_path)
    other = placed_model("llama", "after_bos")
    with pytest.raises(
        PromptLoadError, match=r"stands behind the tokens \[1, 7, 9\], and the prompt 'default' behind"
    ):
        other.load_adapter(tmp_path, "default")
    other.load_adapter(tmp_path, "chat")
    assert torch.equal(other.prompt_encoder["chat"].embedding.weight, model.prompt)

    def described(**place):
        file = tmp_path / "prompt_tuning.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"place": place}))

    rows = {"prompt_embeddings": torch.ones(7, 32)}
    good = (tmp_path / "adapter_model.safetensors").read_bytes()
    save_file(rows, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PromptMismatchError, match="its first rows are not their embeddings in this backbone"):
        load_prompt(tmp_path, backbone=tiny_model("llama"))
    load_prompt(tmp_path, backbone=tiny_model("llama"), ignore_mismatch=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(good)
    described(prompt_position="system", head_token_ids=list(range(7)))
    with pytest.raises(PromptLoadError, match=r"tells of 7 head tokens, and adapter_model\.safetensors holds 7 rows"):
        read_prompt(tmp_path)
    described(prompt_position="system", head_token_ids=[1, 7, 999])
    with pytest.raises(PromptMismatchError, match="the token id 999"):
        load_prompt(tmp_path, backbone=tiny_model("llama"))
    for place in (
        {"prompt_position": "middle", "head_token_ids": [1]},
        {"prompt_position": "system", "head_token_ids": []},
        {"prompt_position": "system", "head_token_ids": ["a"]},
        {"prompt_position": "system"},
        {"prompt_position": "system", "head_token_ids": [1], "head_text": 3},
    ):
        described(**place)
        with pytest.raises(PromptLoadError, match=r"is not a prompt's prompt_tuning\.json: place"):
            read_prompt(tmp_path)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
@pytest.mark.parametrize(
    ("place", "precision"),
    [("system", "fp32"), ("after_bos", "bf16"), ("system", "fp16"), ("after_bos", "loaded in float16")],
)
def test_the_fixed_vectors_are_the_embeddings_after_training(place, optim, precision, tmp_path, tokenizer, messages):
    """Whatever decays or is cast, the optimizer knows the P rows alone. They are fp32, the head is the backbone's."""
    ids, dtype = list(HEADS[place]), getattr(torch, precision.rpartition(" ")[2], torch.float32)
    model = placed_model("llama", place, dtype=dtype)
    before = model.word_embeddings.weight.clone()
    values = {"weight_decay": 0.5, "learning_rate": 0.1, "optim": optim, "save_strategy": "epoch"}
    values |= {name: name == precision for name in ("bf16", "fp16")}

    def run(model):
        trainer = make(tmp_path, tokenizer, messages, model=model, **values)
        return scaled_trainer(trainer, 2.0**10) if precision == "fp16" else trainer

    trainer = run(model)
    start = model.prompt.detach().clone()
    trainer.train()
    trained, rows = model.prompt_encoder["default"], model.prompt.detach()
    vectors = model._prompts(1, None).vectors[0]
    assert torch.equal(model.word_embeddings.weight, before) and before.dtype == dtype
    assert torch.equal(vectors[: len(ids)].to(dtype), before[ids]) and torch.equal(vectors[len(ids) :], rows)
    assert torch.equal(trained.head, before[ids].float()) and rows.dtype == torch.float32
    assert not torch.equal(rows, start) and rows.isfinite().all()
    assert [group["params"] for group in trainer.optimizer.param_groups if group["params"]] == [[model.prompt]]
    states = [v for state in trainer.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    assert {v.shape for v in states if v.dim()} <= {(4, 32), (4,), (32,)}  # Adafactor keeps rows and columns
    saved = read_prompt(tmp_path / f"checkpoint-{trainer.state.global_step}")
    assert torch.equal(saved.vectors, rows) and torch.equal(saved.head, before[ids].float())
    again = run(placed_model("llama", place, dtype=dtype, random_range=0.1))
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{trainer.state.global_step // 2}"))
    assert torch.equal(again.model.prompt, rows)


def test_vllm_gets_the_head_and_texts_without_it(tmp_path):
    tokenizer = make_tokenizer("llama")
    model = get_prompt_tuning_model(tiny_model("llama"), place_config("after_bos"), tokenizer, FREE)
    exported = VllmPrompt.load(export_vllm(model, tmp_path / "out", tokenizer=tokenizer))
    embeds = exported.embeds({"message": "never came"})
    ids = tokenizer("Message : never came Answer :", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 1 and embeds.shape == (4 + ids.shape[1], 32)
    served = model.base_model.generate(inputs_embeds=embeds[None], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert served[0].tolist() == greedy_by_hand(model, ids[0, 1:], 5)


def test_a_text_that_fits_exactly_behind_bos(tmp_path, messages):
    tokenizer = make_tokenizer("llama")
    longest = max(len(tokenizer(f"Message : {row['message']} Label : complaint")["input_ids"]) for row in messages) + 8

    def made(positions):
        backbone = tiny_model("gpt2", n_positions=positions)
        model = get_prompt_tuning_model(backbone, place_config("after_bos"), tokenizer, TEMPLATE)
        return model, make(tmp_path, tokenizer, messages, model=model, max_steps=1)

    model, trainer = made(longest + 4)
    lengths = max(len(row["input_ids"]) for row in trainer.train_dataset)
    made(lengths + 4)[1].train()  # BOS, the prompt and the text fill all positions
    with pytest.raises(PromptTuningError, match="behind the prompt the backbone has positions for"):
        made(lengths + 3)
    assert model.room() == longest - 1


def test_rows_of_token_ids_that_begin_differently_are_refused_before_training(tmp_path, tokenizer):
    model = placed_model("llama", "system")
    rows = [{"input_ids": [1, 7, 9, 5], "labels": [-100, -100, -100, 5]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    with pytest.raises(PromptTuningError, match=r"row 2 of the training data: the row begins with \[5, 6\]"):
        make(tmp_path, tokenizer, rows, template=None, model=model)
    rows[1]["input_ids"] = [1, 8]
    with pytest.raises(PromptTuningError, match=r"row 2 of the training data: the row begins with \[1, 8\], and the"):
        make(tmp_path, tokenizer, rows, template=None, model=model)


def test_batches_that_begin_differently_are_refused():
    model = placed_model("llama", "system")
    with pytest.raises(PromptTuningError, match="row 1 does not begin with the tokens that its prompt stands behind"):
        model(input_ids=torch.tensor([[1, 7, 9, 5], [5, 6, 7, 8]]))
    with pytest.raises(
        PromptTuningError, match="row 0 begins with the first token of its prompt's head, and not with"
    ):
        model.generate(input_ids=torch.tensor([[1, 8, 9, 5]]), max_new_tokens=2)
    ids = torch.tensor([[1, 7, 9, 5, 6]])
    with pytest.raises(PromptTuningError, match="labels are given on the tokens that the prompt stands behind"):
        model(input_ids=ids, labels=ids, only_labelled=True)
    with pytest.raises(PromptTuningError, match="shift_labels has a label for a row's very first token"):
        model(input_ids=ids, shift_labels=torch.tensor([[1, 7, 9, 5, 6, -100]]))
    embeds = model.word_embeddings(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("how", ["forward", "generate", "embedded", "left pads"])
def test_a_second_bos_is_read_as_text_with_one_warning(how, caplog):
    model = placed_model("llama", "after_bos").eval()
    ids, once = torch.tensor([[0, 1, 1, 21], [1, 21, 22, 23]]), torch.tensor([[1, 21, 1, 22]])
    mask = torch.tensor([[0, 1, 1, 1], [1] * 4])
    if how != "left pads":
        ids, mask = ids[:1, 1:], None

    def call(ids, mask):
        if how == "generate":
            return model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
        texts = {"inputs_embeds": model.word_embeddings(ids)} if how == "embedded" else {"input_ids": ids}
        return model(**texts, attention_mask=mask).logits

    call(once, None)
    assert not caplog.messages
    logits = call(ids, mask)
    assert [message.startswith("A row begins with what its prompt stands behind, and") for message in caplog.messages]
    call(ids, mask)
    assert len(caplog.messages) == 1
    if how == "forward":
        torch.testing.assert_close(logits[0, -1], real_logits(model, ids[0, 1:])[-1])


def test_labels_of_heads_are_predicted_by_the_head(tmp_path):
    model = placed_model("llama", "system")
    ids = torch.tensor([[1, 7, 9, 5, 6]])
    logits = real_logits(model, ids[0, 3:])
    places = torch.tensor([0, 1, 6, 7])
    expected = torch.nn.functional.cross_entropy(logits[places], ids[0, 1:])
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    loss = model(input_ids=ids, labels=ids, num_items_in_batch=8).loss
    torch.testing.assert_close(loss, expected / 2)
    output = model(input_ids=ids).logits[0, 4:]
    torch.testing.assert_close(torch.nn.functional.cross_entropy(output[:-1], ids[0, 1:]), expected)


def test_without_its_prompt_a_row_keeps_its_bos():
    model = placed_model("llama", "after_bos")
    ids = torch.tensor([[1, 21, 22]])
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, model.base_model(input_ids=ids).logits)
    only = torch.tensor([[1]])
    torch.testing.assert_close(model(input_ids=only).logits[0], real_logits(model, ids[0, :0]))
    made = model.eval().generate(input_ids=only, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made[0].tolist() == [1, *greedy_by_hand(model, ids[0, :0], 4)]


def test_a_streamer_gets_the_callers_ids():
    model, got = placed_model("llama", "system").eval(), []

    class Streamer:
        def put(self, value):
            got.extend(value.flatten().tolist())

        def end(self):
            got.append(None)

    ids = torch.tensor([[1, 7, 9, 21, 22]])
    made = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, streamer=Streamer(), pad_token_id=0)
    assert got == [*made[0].tolist(), None]


def test_the_inspector_looks_at_the_trained_vectors(messages):
    tokenizer = make_tokenizer("llama")
    backbone = tiny_model("llama")
    backbone.set_attn_implementation("eager")
    model = get_prompt_tuning_model(backbone, place_config("after_bos"), tokenizer, TEMPLATE)
    inspection = inspect_prompt(model, tokenizer, messages)
    prompt = inspection.prompts[0]
    assert len(prompt.positions) == 4 and not prompt.notes
    assert "  stands      after_bos, behind '<s>', token ids [1]\n" in inspection.to_text()
    assert "after_bos, behind &#39;&lt;s&gt;&#39;, token ids [1]" in inspection.to_html()
    ids = torch.tensor([model.row_encoder(tokenizer).encode(messages[0])["input_ids"]])
    layers = backbone(**assembled(model, ids[0, 1:]), output_attentions=True).attentions
    shares = torch.stack([layer[0, :, 5:, 1:5].mean((0, 1)) for layer in layers])
    one = inspect_prompt(model, tokenizer, messages[:1]).prompts[0].attention_by_layer
    torch.testing.assert_close(torch.tensor(one), shares, rtol=1e-4, atol=1e-5)
