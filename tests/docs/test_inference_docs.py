"""The code of the how-to pages on generation and mixed batches runs as it is written."""

import torch

from tests.shared.doc_pages import run
from tests.shared.reference import greedy, tiny_prompt_model, with_prompts


def test_generate(tokenizer):
    model = tiny_prompt_model("llama").eval()
    names = run("how-to/generate.md", {"model": model, "tokenizer": tokenizer})
    assert names["tokens"].shape == (2, names["batch"]["input_ids"].shape[1] + 8)
    assert len(names["answers"]) == 2
    assert torch.equal(torch.cat(names["written"], dim=1), names["tokens"][:, -8:])


def test_mix(tmp_path, tokenizer):
    model = tiny_prompt_model("llama").eval()
    with_prompts(tiny_prompt_model("llama"), other=3).save_pretrained(tmp_path)
    names = run(
        "how-to/mix.md", {"model": model, "tokenizer": tokenizer, "folder": tmp_path / "other", "torch": torch}
    )
    ids, mask = names["batch"]["input_ids"], names["batch"]["attention_mask"].bool()
    expected = [greedy(model, ids[b, mask[b]], 1, name)[0] for b, name in enumerate(names["names"])]
    assert names["last"].argmax(-1).tolist() == expected
    assert names["tokens"][:, ids.shape[1]].tolist() == expected
    assert names["scores"].shape == (3, 4)
