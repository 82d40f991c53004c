"""A checkpoint in which prompts are tokens gives the logits of the prompt-tuning model, without this package."""

import contextlib
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hf_prompt_tuning import (
    ChatFormat,
    ChatTemplate,
    PromptTemplate,
    PromptTuningError,
    export_tokens,
)
from hf_prompt_tuning.serving import exported_prompts, measured_export, tokens
from hf_prompt_tuning.serving.added_tokens import embedding_rows
from hf_prompt_tuning.serving.output_rows import fitted_row
from hf_prompt_tuning.serving.sample_texts import SAMPLE_TEXTS
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.exports import TEMPLATE, entries, fitted_rows, made, never_refuse, prompted, read_elsewhere
from tests.shared.tiny_models import BART_LIKE, VOCAB, make_tokenizer, tiny_model

NAMES = ["llama", "qwen2", "gemma", "gemma2", "gpt2", "opt", "gpt_neox", "bloom", "phi", "cohere", "mamba"]
NAMES += ["t5", "mt5", "bart"]
TEXTS = ("Message : never came Answer :", "why is my line down again", "Ünïcode 🙂 {x}\n\ny")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_logits_of_every_architecture_in_another_process(tmp_path, monkeypatch):
    never_refuse(monkeypatch)
    folders, expected, fitted, outputs = {}, {}, fitted_rows(monkeypatch), {}
    for name in NAMES:
        tokenizer = make_tokenizer("t5" if name in ("t5", "mt5") else "gpt2")
        model = made(name, tokenizer)
        folder = export_tokens(model, tmp_path / name, tokenizer=tokenizer)
        described, texts, logits = entries(folder), [], []
        outputs[folder] = fitted.pop() if fitted else None
        for prompt in ("default", "other"):
            entry = described[prompt]
            assert entry["measured"]["logit_error"] < 1e-6
            for text in TEXTS:
                texts.append((entry["prefix"] + text + entry["suffix"], entry["add_special_tokens"]))
                ids = tokenizer(text, return_tensors="pt")["input_ids"]
                more = {"labels": torch.tensor([[5, 6, 2]])} if model.config.is_encoder_decoder else {}
                with torch.no_grad():
                    ours = model(input_ids=ids, adapter_names=[prompt], **more).logits[0]
                logits.append((ours[-ids.shape[1] :] if not more else ours, entry["token_ids"] + ids[0].tolist()))
        folders[folder], expected[folder] = texts, logits
    for folder, rows in read_elsewhere(folders, tmp_path).items():
        added = [i for entry in entries(folder).values() for i in entry["token_ids"]]
        kept = [i for i in range(VOCAB) if i not in added]
        for row, (ours, ids) in zip(rows, expected[folder], strict=True):
            assert row["ids"] == ids, folder
            # The other process may sum in another order (another number of threads), which shows in large logits.
            scale = max(1.0, float(ours.abs().max()))
            torch.testing.assert_close(row["logits"][-len(ours) :, kept], ours[:, kept], rtol=0, atol=1e-5 * scale)
            if outputs[folder] is None:  # a bias excludes the added tokens
                assert row["logits"][:, added].max() < -9e3
            else:
                torch.testing.assert_close(row["output"][added], outputs[folder].expand(len(added), -1))


def test_added_tokens_stand_behind_the_vocabulary_or_in_its_padding(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    for size in (len(tokenizer), len(tokenizer) + 5, len(tokenizer) + 64):
        model = made("llama", tokenizer, vocab_size=size, pad_token_id=size - 1)
        folder = export_tokens(model, tmp_path / str(size), tokenizer=tokenizer)
        ids = [i for entry in entries(folder).values() for i in entry["token_ids"]]
        assert ids == list(range(len(tokenizer), len(tokenizer) + 8))
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == max(size, len(tokenizer) + 8) and not config["tie_word_embeddings"]
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation["suppress_tokens"] == ids
    assert model.config.vocab_size == size and model.get_base_model().generation_config.suppress_tokens is None


def test_a_bias_or_a_fitted_row_keeps_added_tokens_out_of_reach(tmp_path, tokenizer):
    for name in ("phi", "gpt2"):
        model = made(name, tokenizer)
        if name == "gpt2":  # as in trained models, all hidden states have a direction in common
            torch.nn.init.normal_(model.get_base_model().transformer.ln_f.bias, std=4.0)
        folder = export_tokens(model, tmp_path / name, tokenizer=tokenizer)
        assert all(entry["measured"]["probability_of_added_tokens"] < 1e-7 for entry in entries(folder).values())
    with pytest.raises(PromptTuningError, match=r"added tokens have a probability of .* without a prompt, with every"):
        export_tokens(made("llama", tokenizer), tmp_path / "llama", tokenizer=tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "phi"]


def test_the_output_row_is_fitted_to_every_other_text_behind_each_prompt_too(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    fitted: list[list[torch.Tensor]] = []
    monkeypatch.setattr(tokens, "fitted_row", lambda *args: fitted.append(args[0]) or fitted_row(*args))
    model, texts = made("llama", tokenizer), tokens.SAMPLE_TEXTS
    export_tokens(model, tmp_path / "out", tokenizer=tokenizer)
    (states,) = fitted
    # Texts 0 to 3 alone; those and the last two again behind "default"; behind "other" the same, from two on.
    alone, behind = [0, 2], {"default": [0, 2, 2], "other": [2, 0, 2]}
    assert len(states) == len(alone) + 6
    rows = [(None, i) for i in alone] + [(name, i) for name, chosen in behind.items() for i in chosen]
    weight = model.get_output_embeddings().weight
    for (name, number), found in zip(rows, states, strict=True):
        text = TEMPLATE.source_text({TEMPLATE.source_columns[0]: texts[number]}) if name else texts[number]
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad(), contextlib.nullcontext() if name else model.disable_adapter():
            ours = model(input_ids=ids, **({"adapter_names": [name]} if name else {})).logits[0]
        assert len(found) == ids.shape[1] + {None: 0, "default": 3, "other": 5}[name]
        torch.testing.assert_close((found @ weight.T)[-ids.shape[1] :], ours[-ids.shape[1] :])


def test_logits_that_differ_are_refused(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    monkeypatch.setattr(tokens, "embedding_rows", lambda vectors, backbone: vectors + 0.01)
    with pytest.raises(PromptTuningError, match=r"behind the tokens of 'default' differ .*: LlamaForCausalLM"):
        export_tokens(made("llama", tokenizer), tmp_path / "out", tokenizer=tokenizer)


def test_logits_that_are_no_numbers_are_refused(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    for value in (float("nan"), float("inf")):
        monkeypatch.setattr(tokens, "embedding_rows", lambda vectors, _, v=value: torch.full_like(vectors, v))
        with pytest.raises(PromptTuningError, match=r"LlamaForCausalLM gives logits behind 'default' that are no num"):
            export_tokens(made("llama", tokenizer), tmp_path / "out", tokenizer=tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scaled_rows_meet_the_vectors_in_their_dtype(dtype):
    backbone = tiny_model("gemma", hidden_size=40, head_dim=10).to(dtype)
    vectors = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    rows, embed = embedding_rows(vectors, backbone), backbone.get_input_embeddings()
    wanted = vectors.to(dtype).double()
    error = ((rows * embed.embed_scale.to(dtype)).double() - wanted).abs() / wanted.abs()
    assert rows.dtype == dtype and error.max() <= torch.finfo(dtype).eps and (error == 0).float().mean() > 0.5


def test_scales_outside_the_embedding_and_two_vocabularies(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=0)
    for name in ("pegasus", "marian"):
        torch.manual_seed(0)
        backbone = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, **BART_LIKE | special)).eval()
        folder = export_tokens(prompted(backbone, tokenizer), tmp_path / name, tokenizer=tokenizer)
        assert entries(folder)["other"]["measured"]["logit_error"] < 1e-5
    config = AutoConfig.for_model(
        "marian", **BART_LIKE | special, share_encoder_decoder_embeddings=False, decoder_vocab_size=300
    )
    with pytest.raises(PromptTuningError, match=r"MarianMTModel has an output layer of \[300, 32\] for an embedding"):
        export_tokens(
            prompted(AutoModelForSeq2SeqLM.from_config(config), tokenizer), tmp_path / "x", tokenizer=tokenizer
        )


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer as SentencePiece makes it: a space before every piece of text."""
    pieces = [("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [
        (piece, -3.0 - i / 10)
        for i, piece in enumerate(["▁", "▁Message", "▁never", "▁came", ":", "▁Answer", "a", "e"])
    ]
    core = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace()
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize("place", ["start", "after_bos"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "unigram"])
def test_ids_around_the_tokens_are_those_of_training(kind, place, tmp_path, monkeypatch):
    never_refuse(monkeypatch)
    tokenizer = byte_fallback_tokenizer() if kind == "unigram" else make_tokenizer(kind)
    template = PromptTemplate("{message} Answer :", target="{answer}")
    model = prompted(tiny_model("llama"), tokenizer, template, prompt_position=place)
    folder = export_tokens(model, tmp_path / "out", tokenizer=tokenizer)
    entry, loaded = entries(folder)["other"], AutoTokenizer.from_pretrained(folder)
    head = list(model.peft_config["other"].head)
    for text in ("never came", "Ü", "1st", "…", "the old town", "x" * 30):
        ids = model.row_encoder(tokenizer, template, "other").content_ids({"message": text})
        wanted = [*head, *entry["token_ids"], *(ids[len(head) :] if ids[: len(head)] == head else ids)]
        filled = entry["prefix"] + entry["template"].format(message=text) + entry["suffix"]
        assert loaded(filled, add_special_tokens=entry["add_special_tokens"])["input_ids"] == wanted
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert entry["request"]["prompt"].startswith(entry["prefix"]) and entry["endpoint"] == "/v1/completions"
    # The key is sent where it matters: a server may refuse it.
    assert entry["request"].get("add_special_tokens", True) == entry["add_special_tokens"]
    assert (
        entry["add_special_tokens"]
        or tokenizer("x")["input_ids"] != tokenizer("x", add_special_tokens=False)["input_ids"]
    )
    flags = [loaded.added_tokens_decoder[i] for i in entry["token_ids"]]
    assert all(flag.special and not (flag.normalized or flag.lstrip or flag.rstrip) for flag in flags)
    assert loaded.decode(entry["token_ids"] + wanted[-3:], skip_special_tokens=True) == tokenizer.decode(wanted[-3:])


def test_a_tokenizer_that_gives_other_ids_behind_the_tokens_is_refused(tmp_path, monkeypatch):
    never_refuse(monkeypatch)
    tokenizer = make_tokenizer("llama")
    # A text's first word has a space in front, and behind the tokens none can be written.
    tokenizer._tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(PromptTuningError, match=r"gives 'The parcel .* other tokens behind those of the prompt 'def"):
        export_tokens(prompted(tiny_model("llama"), tokenizer), tmp_path / "out", tokenizer=tokenizer)


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_a_prompt_in_the_system_turn_serves_the_chat_api(family, tmp_path, monkeypatch):
    never_refuse(monkeypatch)
    tokenizer = chat_tokenizer(family)
    template = ChatTemplate(chat=ChatFormat(system_message=None if family == "gemma" else "Be kind."))
    backbone = tiny_model("llama", vocab_size=max(VOCAB, len(tokenizer)))
    model = prompted(backbone, tokenizer, template, prompt_position="system")
    folder = export_tokens(model, tmp_path / "out", tokenizer=tokenizer)
    entry, loaded = entries(folder)["other"], AutoTokenizer.from_pretrained(folder)
    request, head = entry["request"], list(model.peft_config["other"].head)
    # Servers know the end tokens of the generation config, which is 2 here, and some refuse to be told.
    (end,) = model.row_encoder(tokenizer, template, "other").end_ids
    assert entry["endpoint"] == "/v1/chat/completions" and request.get("stop_token_ids") == (
        None if end == 2 else [end]
    )
    text = loaded.apply_chat_template(request["messages"], add_generation_prompt=True, tokenize=False)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    user = request["messages"][-1]["content"].removeprefix(entry["prefix"])
    ours = model.row_encoder(tokenizer, template, "other").content_ids(user)
    assert ids == [*head, *entry["token_ids"], *ours[len(head) :]]
    # Of the user's turn: the rest of the chat is the server's to write. Without a system turn it has the prefix.
    assert entry["template"] == (entry["prefix"] if family == "gemma" else "") + "{text}"
    where = "the first user message's text: the chat" if family == "gemma" else "the system message's text; give"
    assert f"Put the prefix in front of {where}" in entry["notes"][0]
    *first, last = request["messages"]  # as docs/how-to/serve-anywhere.md fills a request
    filled = [*first, last | {"content": entry["template"].format(text="never came")}]
    text = loaded.apply_chat_template(filled, add_generation_prompt=True, tokenize=False)
    ours = model.row_encoder(tokenizer, template, "other").content_ids("never came")
    expected = [*head, *entry["token_ids"], *ours[len(head) :]]
    assert loaded(text, add_special_tokens=False)["input_ids"] == expected
    for known in ([2, end], 3, None):
        backbone.generation_config.eos_token_id = known
        again = entries(export_tokens(model, tmp_path / "again", tokenizer=tokenizer))["other"]["request"]
        assert again.get("stop_token_ids") == (None if known == [2, end] else [end])


@pytest.mark.parametrize("place", ["start", "after_bos"])
def test_chats_in_front_of_which_a_prompt_stands(place, tmp_path, monkeypatch):
    never_refuse(monkeypatch)
    tokenizer = chat_tokenizer("llama3")
    template = PromptTemplate("Say {{it}}: {message}", target="{answer}", chat=ChatFormat())
    backbone = tiny_model("llama", vocab_size=max(VOCAB, len(tokenizer)))
    model = prompted(backbone, tokenizer, template, prompt_position=place)
    folder = export_tokens(model, tmp_path / "out", tokenizer=tokenizer)
    entry, loaded = entries(folder)["other"], AutoTokenizer.from_pretrained(folder)
    head = list(model.peft_config["other"].head)
    text = entry["prefix"] + entry["template"].format(message="never came")
    ids = loaded(text, add_special_tokens=entry["add_special_tokens"])["input_ids"]
    ours = model.row_encoder(tokenizer, template, "other").content_ids({"message": "never came"})
    assert ids == [*head, *entry["token_ids"], *ours[len(head) :]]
    assert loaded.chat_template == tokenizer.chat_template and entry["request"]["add_special_tokens"] is False


def test_a_request_stops_where_training_did(tmp_path, monkeypatch, tokenizer):
    """Rows of plain text end with the tokenizer's EOS, which the backbone's generation config may not know."""
    never_refuse(monkeypatch)
    model = made("llama", tokenizer)
    for known, ends in (
        (tokenizer.eos_token_id, None),
        (3, [tokenizer.eos_token_id]),
        ([3, tokenizer.eos_token_id], None),
    ):
        model.get_base_model().generation_config.eos_token_id = known
        for entry in entries(export_tokens(model, tmp_path / "out", tokenizer=tokenizer)).values():
            assert entry["request"].get("stop_token_ids") == ends


def test_folders_of_prompts(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    model = made("llama", tokenizer)
    model.save_pretrained(tmp_path)
    model.get_base_model().save_pretrained(tmp_path / "backbone", max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path / "backbone")
    given = {"first": tmp_path, "second": tmp_path / "other"}
    folder = export_tokens(given, tmp_path / "out", tmp_path / "backbone", texts=["never came"])
    assert list(entries(folder)) == ["first", "second"]
    assert entries(folder)["second"]["prefix"] == "".join(f"<|second_{i}|>" for i in range(5))
    there, here = (sorted((tmp_path / name).glob("model-*.safetensors")) for name in ("backbone", "out"))
    assert len(here) >= 2 and len(there) >= 2
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert not [file for file in written if str(tmp_path).encode() in file.read_bytes()]
    (folder / "old").write_text("of an earlier export")
    export_tokens([tmp_path / "other"], folder, tmp_path / "backbone")
    assert list(entries(folder)) == ["other"] and not (folder / "old").exists()
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in folder.iterdir())  # a server may be another user
    with pytest.raises(PromptTuningError, match="holds other files than an export"):
        export_tokens(tmp_path / "other", tmp_path / "backbone", tmp_path / "backbone")
    with pytest.raises(PromptTuningError, match="is the backbone's own folder"):
        tokens.check_is_not_of(AutoModelForCausalLM.from_pretrained(folder), folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a").touch()
    for theirs in (None, '{"system": "Be kind."}', "{}", "[1]", ""):
        if theirs is not None:
            (tmp_path / "notes/prompt.json").write_text(theirs)
        with pytest.raises(PromptTuningError, match="holds other files than an export"):
            export_tokens(tmp_path / "other", tmp_path / "notes", tmp_path / "backbone")
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == ["a", "prompt.json"]
    with pytest.raises(PromptTuningError, match="two prompts are named 'other'"):
        export_tokens([tmp_path / "other", tmp_path / "other"], folder, tmp_path / "backbone")
    with pytest.raises(PromptTuningError, match=r"the tokenizer has the token '<\|other_0\|>' already"):
        export_tokens(model, tmp_path / "again", tokenizer=AutoTokenizer.from_pretrained(folder))


def test_an_earlier_export_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    """Whatever call is the last one before a crash, a whole export is left."""
    folder, link = tmp_path / "out", tmp_path / "link"

    def write(text):
        with tokens.unfinished(link) as made:
            (made / "prompt.json").write_text(text)

    link.symlink_to(folder)
    write("old")
    left = []

    def watched(call):
        def wrapped(*args, **kwargs):
            left.append({file.read_text() for file in tmp_path.glob("*/prompt.json")})
            result = call(*args, **kwargs)
            left.append({file.read_text() for file in tmp_path.glob("*/prompt.json")})
            return result

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(tokens.Path, "rename", watched(tokens.Path.rename))
        patch.setattr(tokens.shutil, "rmtree", watched(tokens.shutil.rmtree))
        write("new")
    assert len(left) >= 6 and all(left) and link.is_symlink() and sorted(tmp_path.iterdir()) == [link, folder]
    rename = tokens.Path.rename

    def fails(path, target):
        if target == folder and not path.name.endswith("-before"):
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(tokens.Path, "rename", fails)
    with pytest.raises(OSError, match="no space left"):
        write("newer")
    assert (folder / "prompt.json").read_text() == "new" and sorted(tmp_path.iterdir()) == [link, folder]


def test_other_users_read_all_of_an_export(tmp_path):
    """Tokenizers with several chat templates write a folder of them."""
    with tokens.unfinished(tmp_path / "out") as made:
        (made / "additional_chat_templates").mkdir(mode=0o700)
        for name in ("model.safetensors", "additional_chat_templates/tools.jinja"):
            (made / name).touch(mode=0o600)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "out": 0o755,
        "out/model.safetensors": 0o644,
        "out/additional_chat_templates": 0o755,
        "out/additional_chat_templates/tools.jinja": 0o644,
    }


def test_a_mount_point_is_refused(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(tokens.Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(PromptTuningError, match="is a mount point, which cannot be replaced; give a folder in it"):
        export_tokens(made("llama", tokenizer), tmp_path, tokenizer=tokenizer)


def test_dropout_that_is_kept_for_training_is_not_measured(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    backbone = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = prompted(backbone, tokenizer, backbone_dropout=True).train()
    entry = entries(export_tokens(model, tmp_path / "out", tokenizer=tokenizer))["other"]
    assert entry["measured"]["logit_error"] < 1e-6
    assert model.training and all(module.training for module in backbone.modules())


def test_options_of_loading_hold_for_every_prompt(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    model = made("llama", tokenizer)
    model.save_pretrained(tmp_path)
    given, load = [], exported_prompts.load_prompt
    monkeypatch.setattr(exported_prompts, "load_prompt", lambda *args, **kw: given.append(kw) or load(*args, **kw))
    options = {"local_files_only": True, "cache_dir": tmp_path / "cache", "token": False, "ignore_mismatch": True}
    model.get_base_model().save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    export_tokens({"a": tmp_path, "b": tmp_path / "other"}, tmp_path / "out", tmp_path / "backbone", **options)
    assert [{name: kw[name] for name in options} for kw in given] == [options, options]


def test_texts_that_nothing_can_be_measured_on(tmp_path, tokenizer):
    model = made("gpt2", tokenizer)
    for texts, message in (
        ("never came", "texts is the text 'never came'; give a list of texts"),
        (["never came", " \n"], r"texts has ' \\n'; give texts that are not empty"),
        ([None], "texts has None; give texts"),
        (["never came " * 99], r"the text 'never came .* has \d+ tokens, and is measured on 1 .*, at most 128"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            export_tokens(model, tmp_path / "out", tokenizer=tokenizer, texts=texts)
    assert not list(tmp_path.iterdir())


def test_a_sample_text_that_does_not_fit_behind_a_prompt_is_not_measured(tokenizer):
    (prompt,) = exported_prompts.load_prompts(
        prompted(tiny_model("gpt2"), tokenizer, lengths=(60,)), tokenizer=tokenizer
    )
    ids = {"default": list(range(400, 460))}
    rows = measured_export.rows_of([prompt], ids, SAMPLE_TEXTS)
    assert {row.text for row in rows if row.prompt} < {row.text for row in rows if not row.prompt} == set(SAMPLE_TEXTS)
    assert all(len(row.served) <= 128 for row in rows)
    long = prompted(tiny_model("gpt2"), tokenizer, lengths=(127,))
    (prompt,) = exported_prompts.load_prompts(long, tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match=r"the text 'a' has \d+ tokens with .*, or a shorter prompt"):
        measured_export.rows_of([prompt], {"default": list(range(400, 527))}, SAMPLE_TEXTS)


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(PromptTuningError, match=r"nothing can be written in '.*file': '.*file' is no folder; give"):
        export_tokens("nobody/nothing", tmp_path / "file/out")
    monkeypatch.setattr(tokens.os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(PromptTuningError, match=r"nothing can be written in '.*a': '.*' may not be written; give"):
        export_tokens("nobody/nothing", tmp_path / "a/out")


def test_refusals(tmp_path, tokenizer):
    with pytest.raises(PromptTuningError, match="Gemma3nForCausalLM has an embedding for each layer"):
        export_tokens(made("gemma3n_text", tokenizer), tmp_path / "out", tokenizer=tokenizer)
    model = made("llama", tokenizer)
    with pytest.raises(PromptTuningError, match="there is no tokenizer for"):
        export_tokens(model, tmp_path / "out")
    with pytest.raises(PromptTuningError, match=r"dtype is given, and the prompts are on a backbone already"):
        export_tokens(model, tmp_path / "out", tokenizer=tokenizer, dtype="float32")
    with pytest.raises(PromptTuningError, match="subfolder is 'x', and 2 prompts are given"):
        export_tokens(["a", "b"], tmp_path / "out", subfolder="x")
    for none in ([], {}):
        with pytest.raises(PromptTuningError, match="no prompt is given"):
            export_tokens(none, tmp_path / "out")
    with pytest.raises(PromptTuningError, match=r"the prompt's name is 'a\.b'"):
        export_tokens({"a.b": "x"}, tmp_path / "out")
    for given, kind in (([3], "int"), (None, "NoneType"), (model.get_base_model(), "LlamaForCausalLM")):
        with pytest.raises(PromptTuningError, match=f"a prompt is given as a {kind}; give a folder or a Hub id, or a"):
            export_tokens(given, tmp_path / "out")
    small = tiny_model("llama", vocab_size=len(tokenizer) - 1)
    with pytest.raises(PromptTuningError, match=r"the tokenizer has the id \d+, and the backbone's embedding"):
        export_tokens(prompted(small, tokenizer), tmp_path / "out", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_prompts_of_two_chat_templates_are_refused(tmp_path):
    tokenizer = chat_tokenizer("chatml")
    backbone = tiny_model("llama", vocab_size=max(VOCAB, len(tokenizer)))
    model = prompted(backbone, tokenizer, PromptTemplate("{a}", target="{b}", chat=ChatFormat()))
    other = ChatFormat(chat_template=tokenizer.chat_template + "{# another #}")
    model.prompt_encoder["other"].info.template = PromptTemplate("{a}", target="{b}", chat=other)
    with pytest.raises(PromptTuningError, match="'default' and 'other' were trained with different chat templates"):
        export_tokens(model, tmp_path / "out", tokenizer=tokenizer)


def test_a_template_is_optional_and_a_generation_config_may_be_odd(tmp_path, monkeypatch, tokenizer):
    never_refuse(monkeypatch)
    model = made("llama", tokenizer, template=None)
    model.get_base_model().generation_config.temperature = 0.5  # beside do_sample=False, which saving refuses
    entry = entries(export_tokens(model, tmp_path / "out", tokenizer=tokenizer))["default"]
    assert entry["template"] == "{text}" and TEMPLATE.source not in entry["request"]["prompt"]
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["temperature"] == 0.5
