"""The code of the how-to page on engines runs as it is written."""

from hf_prompt_tuning import PromptTemplate
from tests.shared.doc_pages import run
from tests.shared.exports import entries, made, never_refuse


def test_serve_anywhere(tmp_path, monkeypatch, tokenizer, capsys):
    never_refuse(monkeypatch)
    model = made("llama", tokenizer, PromptTemplate("Message : {message} Label :", target="{label}"))
    for adapter, name in (("default", "complaints"), ("other", "teams")):
        model.set_adapter(adapter)
        folder = tmp_path / "outputs" / name
        model.save_pretrained(folder, selected_adapters=[adapter])
        if adapter != "default":
            (folder / adapter).rename(tmp_path / "moved")
            folder.rmdir()
            (tmp_path / "moved").rename(folder)
    model.get_base_model().save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    names = run("how-to/serve-anywhere.md", {"backbone": "backbone"})
    described = entries(tmp_path / "served")
    assert list(described) == ["complaints", "teams"] and names["text"].startswith("<|complaints_0|>")
    model.set_adapter("default")
    batch = tokenizer("Message : My parcel never came. Label :", return_tensors="pt")
    ours = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert tokenizer.decode(ours, skip_special_tokens=True) in capsys.readouterr().out
    for name, entry in described.items():
        text = entry["prefix"] + "Message : a {b} Label :" + entry["suffix"]
        assert names["filled"](entry, message="a {b}") == entry["request"] | {"prompt": text}, name
    chat = {"template": "{text}", "request": {"messages": [{"role": "system"}, {"role": "user", "content": "x"}]}}
    assert names["filled"](chat, text="a")["messages"] == [{"role": "system"}, {"role": "user", "content": "a"}]
