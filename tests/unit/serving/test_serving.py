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


def test_refusals(tmp_path, tokenizer):
    with pytest.raises(PromptTuningError, match="is of a PromptTuningModelForSeq2SeqLM; vLLM takes embeddings for"):
        export_vllm(made(tokenizer, "t5"), tmp_path, tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match="GemmaForCausalLM changes its embeddings after looking them up"):
        export_vllm(made(tokenizer, "gemma"), tmp_path, tokenizer=tokenizer)
    with pytest.raises(PromptTuningError, match="the prompt has no tokenizer, without which"):
        export_vllm(made(tokenizer), tmp_path)
    with pytest.raises(PromptTuningError, match=r"the prompt has no template, .*; set it as the model's info"):
        export_vllm(made(tokenizer, template=None), tmp_path, tokenizer=tokenizer)
    folder = export_vllm(made(tokenizer), tmp_path / "out", tokenizer=tokenizer)
    file = folder / "embeddings.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(PromptLoadError, match=r"is not whole: .*; export it again"):
        VllmPrompt.load(folder)
    with pytest.raises(PromptLoadError, match=r"is not a prompt's prompt_tuning\.json"):
        VllmPrompt.load(tmp_path / "nowhere")
