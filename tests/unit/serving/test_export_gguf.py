"""A GGUF file with prompts as tokens: their rows, and every other byte as it was."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prompt_tuning import ChatFormat, ChatTemplate, PromptTuningError, export_gguf
from hf_prompt_tuning.serving import measured_export
from hf_prompt_tuning.serving.gguf import _special_of as special_of
from tests.shared.architectures import tiny_backbone
from tests.shared.exports import entries, fitted_rows, never_refuse, prompted
from tests.shared.tiny_models import make_tokenizer, tiny_model
from tests.shared.versions import finds_gguf

gguf = pytest.importorskip("gguf", reason="gguf is an extra")
if not finds_gguf():
    pytest.skip("this transformers does not find gguf's version on Python 3.10", allow_module_level=True)

from tests.shared.gguf_files import PIECES, write_gguf  # noqa: E402

SIZE = 401
TEXT = "Message : never came Answer :"
CHATS = """{% for message in messages %}{{ message.role }}\n{{ message.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write a backbone's file, and return its path."""
    never_refuse(monkeypatch)

    def make(tied=False, architecture="llama", values=None, **kinds):
        (tmp_path / "backbone").mkdir(exist_ok=True)
        path = tmp_path / "backbone/tiny.gguf"
        named = {name.replace("__", "."): kind for name, kind in kinds.items()}
        tokenizer = make_tokenizer("gpt2")
        tokenizer.add_tokens("<|endoftext|>", special_tokens=True)  # which transformers adds to each such file
        write_gguf(
            backbone_of(architecture, vocab_size=SIZE, tie_word_embeddings=tied),
            path,
            tokenizer,
            named,
            **(values or {}),
        )
        return path

    return make


def backbone_of(architecture, **values):
    # transformers reads no other size of Qwen 3's heads from a GGUF file.
    return (
        tiny_backbone("qwen3", head_dim=128, **values)
        if architecture == "qwen3"
        else tiny_model(architecture, **values)
    )


def model_of(path, **values):
    """The file's backbone with two random prompts, and its tokenizer."""
    backbone = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return prompted(backbone.eval(), tokenizer, **values), tokenizer


def values(reader):
    return {field.name: b"".join(part.tobytes() for part in field.parts) for field in reader.fields.values()}


KINDS = {
    "untied": dict(),
    "tied": dict(tied=True),
    "quantized": dict(token_embd__weight="Q4_1", output__weight="Q8_0"),
    "tied_quantized": dict(tied=True, token_embd__weight="Q4_1"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["F32", "F16", "Q8_0"])
def test_the_file_has_the_prompts_and_all_that_it_had(kind, stored, file, tmp_path, monkeypatch):
    path, fitted = file(**KINDS[kind]), fitted_rows(monkeypatch)
    model, tokenizer = model_of(path)
    folder = export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer, embedding_type=stored)
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(folder / "tiny.gguf")
    old, new = ({tensor.name: tensor for tensor in reader.tensors} for reader in (before, after))
    assert list(new) == [*old, *(["output.weight"] if "output.weight" not in old else [])]
    for name, tensor in old.items():
        if name not in ("token_embd.weight", "output.weight"):
            assert tensor.data.tobytes() == new[name].data.tobytes() and tensor.tensor_type == new[name].tensor_type
    source = old.get("output.weight", old["token_embd.weight"])
    output, embedding = new["output.weight"], new["token_embd.weight"]
    assert output.tensor_type == source.tensor_type and embedding.tensor_type.name == stored
    assert output.data.tobytes().startswith(source.data.tobytes())
    added = gguf.dequantize(output.data, output.tensor_type)[SIZE:]
    error = {"F32": 0.0, "Q8_0": 1e-2, "Q4_1": 0.1}[output.tensor_type.name]
    assert len(added) == 8 and abs(added - fitted[0].numpy()).max() <= error * abs(fitted[0]).max()
    assert [int(size) for size in embedding.shape] == [int(size) for size in output.shape] == [32, SIZE + 8]
    assert all(int(tensor.data_offset) % after.alignment == 0 for tensor in after.tensors)
    ours, theirs = values(before), values(after)
    changed = {name for name in ours if ours[name] != theirs[name]}
    lists = {f"tokenizer.ggml.{name}" for name in ("tokens", "token_type")}
    assert changed == {*lists, "llama.vocab_size", "GGUF.tensor_count", "GGUF.kv_count"} - (
        set() if "output.weight" not in old else {"GGUF.tensor_count"}
    )
    assert theirs.keys() - ours.keys() == {"tokenizer.ggml.suppress_tokens"}
    field = after.fields["tokenizer.ggml.suppress_tokens"]
    assert [int(field.parts[i][0]) for i in field.data] == list(range(SIZE, SIZE + 8))
    check_logits(model, tokenizer, folder, stored)


def check_logits(model, tokenizer, folder, stored):
    """Assert that transformers reads from the file what the prompt-tuning model computes."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf").eval()
    extended = AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
    error = {"F32": 1e-5, "F16": 2e-2, "Q8_0": 0.2}[stored]
    for name, entry in entries(folder).items():
        ids = extended(entry["prefix"] + TEXT, return_tensors="pt")["input_ids"]
        plain = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == entry["token_ids"] + plain[0].tolist()
        with torch.no_grad():
            ours = model(input_ids=plain, adapter_names=[name]).logits[0, -plain.shape[1] :]
            served = loaded(input_ids=ids).logits[0, -plain.shape[1] :, :SIZE]
        assert (ours - served).norm() <= error * ours.norm()
        assert entry["measured"]["vector_error"] <= {"F32": 0.0, "F16": 1e-3, "Q8_0": 1e-2}[stored]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwens(architecture, tied, file, tmp_path):
    path = file(tied, architecture)
    model, tokenizer = model_of(path)
    folder = export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer)
    check_logits(model, tokenizer, folder, "F32")
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(folder / "tiny.gguf")
    assert {tensor.name for tensor in after.tensors} == {*(tensor.name for tensor in before.tensors), "output.weight"}
    assert after.fields[f"{architecture}.vocab_size"].parts[-1].tolist() == [SIZE + 8]


@pytest.mark.parametrize("place", ["start", "after_bos"])
def test_llama_cpp_writes_a_space_behind_the_tokens_itself(place, file, tmp_path):
    """With SentencePiece, and it writes BOS in front of every text, which training at the start did not."""
    path = tmp_path / "pieces.gguf"
    write_gguf(tiny_model("llama", vocab_size=len(PIECES)), path, "pieces")
    model, tokenizer = model_of(path, prompt_position=place)
    entry = entries(export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer))["other"]
    assert not entry["prefix"].endswith(" ") and len(entry["notes"]) == (1 if place == "after_bos" else 2)
    sent = entry["request"]["prompt"]
    if place == "after_bos":
        assert entry["prefix"] == "".join(f"<|other_{i}|>" for i in range(5)) and sent.startswith(entry["prefix"])
        return
    ids = entry["token_ids"]
    assert sent[: len(ids) + 1] == [*ids, tokenizer.bos_token_id] and "add_special_tokens" not in entry["request"]
    assert tokenizer.decode(sent[len(ids) :], skip_special_tokens=True).startswith("Message : ")


def test_ids_are_sent_where_llama_cpp_writes_bos_and_training_did_not(file, tmp_path):
    path = file(values={"add_bos_token": False})
    model, tokenizer = model_of(path)
    assert isinstance(
        entries(export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer))["other"]["request"]["prompt"], str
    )
    write_bos(path)
    entry = entries(export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer))["other"]
    assert entry["request"]["prompt"][:5] == entry["token_ids"] and "Send token ids" in entry["notes"][0]


def write_bos(path):
    """Change a file's flag, so that llama.cpp writes BOS in front of any text."""
    data, key = path.read_bytes(), b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    assert data.count(key + b"\0") == 1
    path.write_bytes(data.replace(key + b"\0", key + b"\1"))


def test_a_bos_that_training_did_not_write_in_front_of_chats_is_refused(file, tmp_path):
    path = file(values={"add_bos_token": False})
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.chat_template = CHATS
    backbone = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    template = ChatTemplate(chat=ChatFormat(system_message="Be kind."))
    model = prompted(backbone, tokenizer, template, prompt_position="system")
    entry = entries(export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer))["other"]
    assert entry["endpoint"] == "/v1/chat/completions"
    written = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="tiny.gguf")
    text = written.apply_chat_template(entry["request"]["messages"], add_generation_prompt=True, tokenize=False)
    message = entry["request"]["messages"][-1]["content"]
    ids = model.row_encoder(tokenizer, template, "other").content_ids(message)
    head = len(model.peft_config["other"].head)
    expected = [*ids[:head], *entry["token_ids"], *ids[head:]]
    assert written(text, add_special_tokens=False)["input_ids"] == expected
    write_bos(path)
    with pytest.raises(PromptTuningError, match=r"llama\.cpp writes '.+' around every chat \(tiny\.gguf has add_bos"):
        export_gguf(model, tmp_path / "again", path, tokenizer=tokenizer)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("theirs", [None, "{{ messages }}", CHATS])
def test_the_server_writes_chats_as_training_did(theirs, file, tmp_path):
    """llama-server reads the file's chat template, which need not be the one of training."""
    path = file(values={"add_bos_token": False} | ({} if theirs is None else {"chat_template": theirs}))
    backbone = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    template = ChatTemplate(chat=ChatFormat(chat_template=CHATS, system_message="Be kind."))
    model = prompted(backbone, tokenizer, template, prompt_position="system", chat=template.chat)
    folder = export_gguf(model, tmp_path / "out", path, tokenizer=tokenizer)
    before, after = values(gguf.GGUFReader(path)), values(gguf.GGUFReader(folder / "tiny.gguf"))
    assert after["tokenizer.chat_template"].endswith(CHATS.encode())
    assert (before.get("tokenizer.chat_template") == after["tokenizer.chat_template"]) == (theirs == CHATS)
    plain, tokenizer = model_of(path)
    folder = export_gguf(plain, tmp_path / "plain", path, tokenizer=tokenizer)
    after = values(gguf.GGUFReader(folder / "tiny.gguf"))
    assert before.get("tokenizer.chat_template") == after.get("tokenizer.chat_template")


def written(file, types):
    """Write a file of two tokens with values of other types than llama.cpp's, and return it as it is read."""
    from hf_prompt_tuning.serving.gguf_file import EMBEDDING, GGUFFile

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_token_list(["a", "b"])
    for key, (value, kind) in types.items():
        is_list = isinstance(value, list)
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY if is_list else kind, sub_type=is_list and kind)
    writer.add_tensor(EMBEDDING, torch.zeros(2, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(file)


def test_values_keep_their_types(tmp_path):
    kind = gguf.GGUFValueType
    types = {
        "llama.vocab_size": (2, kind.UINT64),
        "tokenizer.ggml.token_type": ([1, 1], kind.UINT8),
        "tokenizer.ggml.scores": ([0.5, 1.5], kind.FLOAT64),
        "tokenizer.ggml.suppress_tokens": ([1], kind.INT64),
        "general.tags": (["x", "y"], kind.STRING),
    }
    old = written(tmp_path / "old.gguf", types)
    old.write(tmp_path / "new.gguf", ["c", "d"], {})
    fields = gguf.GGUFReader(tmp_path / "new.gguf").fields
    assert {key: (fields[key].contents(), fields[key].types[-1]) for key in types} == {
        "llama.vocab_size": (4, kind.UINT64),
        "tokenizer.ggml.token_type": ([1, 1, 3, 3], kind.UINT8),
        "tokenizer.ggml.scores": ([0.5, 1.5, -1000.0, -1000.0], kind.FLOAT64),
        "tokenizer.ggml.suppress_tokens": ([1, 2, 3], kind.INT64),
        "general.tags": (["x", "y"], kind.STRING),
    }
    small = written(tmp_path / "small.gguf", {"tokenizer.ggml.suppress_tokens": ([1], kind.INT8)})
    with pytest.raises(PromptTuningError, match=r"suppress_tokens is of GGUF's type 1, which cannot hold 201; "):
        small.write(tmp_path / "none.gguf", ["x"] * 200, {})


@pytest.mark.parametrize(
    ("model", "pre", "ids"),
    [
        ("gpt2", "midm-2.0", ([11], [])),
        ("gpt2", "qwen2", ([], [])),
        ("llama", "default", ([1], [])),
        ("llama", "lfm2", ([1], [])),
    ],
)
def test_what_llama_cpp_writes_around_a_text_if_a_file_does_not_say(model, pre, ids, tmp_path):
    kind = gguf.GGUFValueType.STRING
    file = written(tmp_path / "a.gguf", {"tokenizer.ggml.model": (model, kind), "tokenizer.ggml.pre": (pre, kind)})
    assert special_of(file) == ids


def test_prompts_of_folders(file, tmp_path):
    path = file()
    model, _ = model_of(path)
    model.save_pretrained(tmp_path / "prompts")
    folder = export_gguf({"a": tmp_path / "prompts", "b": tmp_path / "prompts/other"}, tmp_path / "out", path)
    assert {name: len(entry["token_ids"]) for name, entry in entries(folder).items()} == {"a": 3, "b": 5}
    assert sorted(item.name for item in folder.iterdir()) == ["prompt.json", "tiny.gguf"]


def test_scores_and_tokens_that_are_suppressed_already_keep_theirs(tmp_path):
    from hf_prompt_tuning.serving.gguf_file import EMBEDDING, GGUFFile

    writer = gguf.GGUFWriter(tmp_path / "old.gguf", "llama")
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.5])
    writer.add_array("tokenizer.ggml.suppress_tokens", [1])
    writer.add_tensor(EMBEDDING, torch.zeros(2, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    old = GGUFFile(tmp_path / "old.gguf")
    longer = old.matrix(EMBEDDING).with_rows(torch.ones(2, 32).numpy())
    old.write(tmp_path / "new.gguf", ["x", "y"], {EMBEDDING: longer})
    new = GGUFFile(tmp_path / "new.gguf")
    lists = {
        name: [field.parts[i].tolist()[0] for i in field.data]
        for name, field in new.reader.fields.items()
        if name.endswith(("scores", "suppress_tokens"))
    }
    assert new.tokens == ["a", "b", "x", "y"] and new.matrix(EMBEDDING).numbers().mean(1).tolist() == [0, 0, 1, 1]
    assert lists == {
        "tokenizer.ggml.scores": [0.5, 1.5, -1000.0, -1000.0],
        "tokenizer.ggml.suppress_tokens": [1, 2, 3],
    }


def test_refusals(file, tmp_path, monkeypatch):
    path = file()
    model, tokenizer = model_of(path)
    given = dict(tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match="embedding_type is 'Q4_K'; give one of F32, F16, Q8_0"):
        export_gguf(model, tmp_path / "out", path, embedding_type="Q4_K", **given)
    other = prompted(tiny_model("llama", seed=1, vocab_size=SIZE), tokenizer)
    with pytest.raises(PromptTuningError, match=r"tiny\.gguf is not the file of the prompts' backbone"):
        export_gguf(other, tmp_path / "out", path, **given)
    with pytest.raises(PromptTuningError, match=r"the tokenizer has 400 tokens, and tiny\.gguf 401"):
        export_gguf(model, tmp_path / "out", path, tokenizer=make_tokenizer("gpt2"))
    biased, _ = model_of(path)
    biased.get_base_model().lm_head.bias = torch.nn.Parameter(torch.zeros(SIZE))
    with pytest.raises(PromptTuningError, match="LlamaForCausalLM has a bias in its output"):
        export_gguf(biased, tmp_path / "out", path, **given)
    (tmp_path / "broken.gguf").write_bytes(path.read_bytes()[:900])
    with pytest.raises(PromptTuningError, match=r"broken\.gguf' could not be read as a GGUF file: "):
        export_gguf(model, tmp_path / "out", tmp_path / "broken.gguf", **given)
    data = path.read_bytes()
    (tmp_path / "gpt2.gguf").write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1))
    with pytest.raises(PromptTuningError, match=r"gpt2\.gguf is of the architecture 'gemma', and tokens are added to"):
        export_gguf(model, tmp_path / "out", tmp_path / "gpt2.gguf", **given)
    with pytest.raises(PromptTuningError, match="backbone is given, and gguf_file is the backbone; leave it out"):
        export_gguf(tmp_path / "prompt", tmp_path / "out", path, backbone="elsewhere")
    for name, tensor in (("token_embd.weight", "blk.0.lora_a"), ("tokenizer.ggml.tokens", "token_embd.weight")):
        writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
        writer.add_tensor(tensor, torch.zeros(2, 32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(PromptTuningError, match=rf"part\.gguf has no {name}, so it is no whole model"):
            export_gguf(model, tmp_path / "out", tmp_path / "part.gguf", **given)
    monkeypatch.setattr(measured_export, "REACH", 2.0**-24)
    with pytest.raises(PromptTuningError, match=r"added tokens have a probability of"):
        export_gguf(model, tmp_path / "out", path, **given)
    assert not (tmp_path / "out").exists()


def test_types_that_the_package_cannot_write_are_named():
    from hf_prompt_tuning.serving.gguf_file import as_matrix

    with pytest.raises(PromptTuningError, match="the matrix is of type Q6_K, which the gguf package cannot write"):
        as_matrix(torch.zeros(2, 256).numpy(), gguf.GGMLQuantizationType.Q6_K)
    with pytest.raises(PromptTuningError, match=r"a matrix with rows of 40 cannot be of type Q8_0 \(Can't quantize"):
        as_matrix(torch.zeros(2, 40).numpy(), gguf.GGMLQuantizationType.Q8_0)
