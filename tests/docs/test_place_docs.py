"""The code of the page on where a prompt stands runs as it is written."""

import torch

from tests.shared.chat_templates import chat_tokenizer
from tests.shared.doc_pages import run
from tests.shared.places import greedy_by_hand
from tests.shared.tiny_models import tiny_model


def test_place(capsys):
    tokenizer = chat_tokenizer("llama3")
    backbone = tiny_model("llama")
    backbone.generation_config.eos_token_id = None
    torch.manual_seed(0)
    names = run("how-to/place.md", {"backbone": backbone, "tokenizer": tokenizer})
    assert capsys.readouterr().out == "<|begin_of_text|>\n"
    ids = names["batch"]["input_ids"][0]
    model, head = names["model"], len(names["model"].peft_config["chat"].head)
    assert tokenizer.decode(ids[:head]).startswith("<|begin_of_text|><|start_header_id|>system")
    assert names["ids"][0, : len(ids)].tolist() == ids.tolist()
    assert names["ids"][0, len(ids) :].tolist() == greedy_by_hand(model, ids[head:], 8, "chat")
