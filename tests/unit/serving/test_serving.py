"""What a server gets is what the backbone would have got."""

import base64
import io
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prompt_tuning import (
    ChatTemplate,
    PromptLoadError,
    PromptTemplate,
    PromptTuningConfig,
    PromptTuningError,
    VllmPrompt,
    export_vllm,
    get_prompt_tuning_model,
)
from tests.shared.chat_templates import chat_tokenizer
from tests.shared.conversations import CHATS
from tests.shared.tiny_models import tiny_model

TEXT = PromptTemplate("Message : {message} Answer :", target="{answer}", max_target_length=6)
ROW = {"message": "never came"}


def made(tokenizer, name="llama", dtype=torch.float32, template=TEXT):
    torch.manual_seed(0)
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    return get_prompt_tuning_model(tiny_model(name).to(dtype), config, tokenizer, template)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_payload_fed_to_the_backbone_writes_the_same_text(dtype, tmp_path, tokenizer):
    model = made(tokenizer, dtype=dtype)
    folder = export_vllm(model, tmp_path / "out", tokenizer=tokenizer)
    request = VllmPrompt.load(folder).request(ROW, "alice/llama", stop=["."])
    assert json.loads(json.dumps(request))["max_tokens"] == 6
    assert (request["prompt"], request["model"], request["stop"]) == ("", "alice/llama", ["."])
    sent = torch.load(io.BytesIO(base64.b64decode(request["extra_body"]["prompt_embeds"])), weights_only=True)
    ids = tokenizer("Message : never came Answer :", return_tensors="pt")["input_ids"]
    assert sent.dtype == dtype and sent.shape == (3 + ids.shape[1], 32)
    with torch.no_grad():
        logits = model.base_model(inputs_embeds=sent[None]).logits
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
    served = model.base_model.generate(inputs_embeds=sent[None], **options)
    assert served.tolist() == model.generate(input_ids=ids, **options)[:, ids.shape[1] :].tolist()


def test_chats(tmp_path):
    tokenizer = chat_tokenizer("llama3")
    model = made(tokenizer, template=ChatTemplate())
    request = VllmPrompt.load(export_vllm(model, tmp_path / "out", tokenizer=tokenizer)).request(CHATS[0][:-1], "m")
    sent = torch.load(io.BytesIO(base64.b64decode(request["extra_body"]["prompt_embeds"])), weights_only=True)
    batch = tokenizer.apply_chat_template(CHATS[0][:-1], add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.base_model(inputs_embeds=sent[None]).logits
        torch.testing.assert_close(logits, model(**batch).logits, rtol=0, atol=0)
    assert request["extra_body"]["stop_token_ids"] == [tokenizer.convert_tokens_to_ids("<|eot_id|>")]


def test_options_of_vllms_own_stand_beside_the_embeddings(tmp_path):
    """The client sends them in `extra_body`, where the prompt and the row are, too."""
    tokenizer = chat_tokenizer("llama3")
    prompt = VllmPrompt.load(export_vllm(made(tokenizer, template=ChatTemplate()), tmp_path, tokenizer=tokenizer))
    chat, end = CHATS[0][:-1], tokenizer.convert_tokens_to_ids("<|eot_id|>")
    own = {"top_k": 5, "stop_token_ids": [7, end]}
    body = prompt.request(chat, "m", extra_body=own)["extra_body"]
    assert body == {"top_k": 5, "stop_token_ids": [end, 7], "prompt_embeds": prompt.payload(chat)}
    assert own == {"top_k": 5, "stop_token_ids": [7, end]}
    assert prompt.request(chat, "m", extra_body=None) == prompt.request(chat, "m")
    for options in ({"prompt": "Be kind."}, {"extra_body": {"prompt_embeds": "…"}}):
        with pytest.raises(PromptTuningError, match="is given, and the prompt and the row are the embeddings"):
            prompt.request(chat, "m", **options)


def test_a_folder_of_something_else_is_kept(tmp_path, tokenizer):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine.txt").write_text("mine")
    with pytest.raises(PromptTuningError, match="holds other files than an export; give a new folder"):
        export_vllm(made(tokenizer), tmp_path, tokenizer=tokenizer)
    assert (tmp_path / "tokenizer" / "mine.txt").read_text() == "mine"
    for _ in range(2):  # an earlier export is replaced
        export_vllm(made(tokenizer), tmp_path / "out", tokenizer=tokenizer)


def test_a_saved_prompt_is_exported_by_its_folder(tmp_path, tokenizer):
    model = made(tokenizer)
    model.save_pretrained(tmp_path / "prompt")
    model.get_base_model().save_pretrained(tmp_path / "backbone")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    export_vllm(tmp_path / "prompt", tmp_path / "out", backbone=backbone, tokenizer=tokenizer)
    loaded = VllmPrompt.load(tmp_path / "out")
    assert torch.equal(loaded.prompt, model.prompt)
    assert torch.equal(loaded.embedding, model.word_embeddings.weight)
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in written if str(tmp_path).encode() in file.read_bytes()]


def test_after_an_error_the_earlier_export_is_there(tmp_path, monkeypatch, tokenizer):
    folder, other = tmp_path / "out", made(tokenizer)
    export_vllm(made(tokenizer), folder, tokenizer=tokenizer)
    (folder / "mine.txt").write_text("mine")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with torch.no_grad():
        other.prompt_encoder["default"].embedding.weight.add_(1.0)
    other.info.metrics = {"eval_loss": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", fails)
        for place in (folder, tmp_path / "new"):
            with pytest.raises(OSError, match="no space left"):
                export_vllm(other, place, tokenizer=tokenizer)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert sorted(tmp_path.iterdir()) == [folder]
    export_vllm(other, folder, tokenizer=tokenizer)
    assert torch.equal(VllmPrompt.load(folder).prompt, other.prompt) and (folder / "results.json").exists()
    export_vllm(made(tokenizer), folder, tokenizer=tokenizer)
    assert not (folder / "results.json").exists() and (folder / "mine.txt").read_text() == "mine"
    # A client may be another user than the one that exports.
    parts = ("embeddings.safetensors", "prompt_tuning.json", "tokenizer/tokenizer.json")
    assert all((folder / name).stat().st_mode & 0o777 == 0o644 for name in parts)
    assert (folder / "tokenizer").stat().st_mode & 0o777 == 0o755


def fails(*args, **kwargs):
    raise OSError("no space left")


def test_a_plain_answer_ends_with_the_tokenizers_eos(tmp_path, tokenizer):
    """Training writes it behind each target, and the server's generation config may name another token."""
    prompt = VllmPrompt.load(export_vllm(made(tokenizer), tmp_path, tokenizer=tokenizer))
    body = prompt.request(ROW, "m", extra_body={"stop_token_ids": [7]})["extra_body"]
    assert body["stop_token_ids"] == [tokenizer.eos_token_id, 7]


def test_an_embedding_that_waits_in_memory_for_its_device_is_exported(tmp_path, tokenizer):
    from accelerate import cpu_offload

    model = made(tokenizer)
    weight = model.word_embeddings.weight.clone()
    cpu_offload(model.get_base_model(), execution_device=torch.device("cpu"))
    assert torch.equal(VllmPrompt.load(export_vllm(model, tmp_path, tokenizer=tokenizer)).embedding, weight)


def test_refusals(tmp_path, tokenizer):
    with pytest.raises(PromptTuningError, match="is of a PromptTuningModelForSeq2SeqLM; vLLM takes embeddings for"):
        export_vllm(made(tokenizer, "t5"), tmp_path, tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match="GemmaForCausalLM changes its embeddings after looking them up"):
        export_vllm(made(tokenizer, "gemma"), tmp_path, tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match="the prompt has no tokenizer, without which"):
        export_vllm(made(tokenizer), tmp_path)
    with pytest.raises(PromptTuningError, match=r"the prompt has no template, .*; set it as the model's info"):
        export_vllm(made(tokenizer, template=None), tmp_path, tokenizer=tokenizer)
    for given in ({"dtype": "float16"}, {"backbone": "elsewhere"}, {"ignore_mismatch": True}):
        with pytest.raises(PromptTuningError, match=f"{next(iter(given))} is given, and the prompt is on a backbone"):
            export_vllm(made(tokenizer), tmp_path, tokenizer=tokenizer, **given)
    with pytest.raises(PromptTuningError, match="the prompt is of a list; vLLM takes embeddings for"):
        export_vllm(["a", "b"], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(PromptTuningError, match="file' holds other files than an export; give a new folder"):
        export_vllm(made(tokenizer), tmp_path / "file", tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match=r"nothing can be written in '.*a': '.*file' is no folder"):
        export_vllm(made(tokenizer), tmp_path / "file/a", tokenizer=tokenizer)
    folder = export_vllm(made(tokenizer), tmp_path / "out", tokenizer=tokenizer)
    (folder / "tokenizer").rename(folder / "moved")
    with pytest.raises(PromptLoadError, match=r"tokenizer', the export's tokenizer, is not there; export it again"):
        VllmPrompt.load(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(PromptLoadError, match=r"the tokenizer of '.*tokenizer' could not be loaded: "):
        VllmPrompt.load(folder)
    assert VllmPrompt.load(folder, tokenizer).coder.tokenizer is tokenizer
    file = folder / "embeddings.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(PromptLoadError, match=r"is not whole: .*; export it again"):
        VllmPrompt.load(folder)
    with pytest.raises(PromptLoadError, match=r"is not a prompt's prompt_tuning\.json"):
        VllmPrompt.load(tmp_path / "nowhere")
