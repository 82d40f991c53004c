"""One day of a Hub, in a process of its own: what is pushed, what a stranger gets, what goes wrong.

    python -m tests.sessions.hub_session FOLDER        prints what happened as JSON; test_hub.py says what should have
    python -m tests.sessions.hub_session pull ID       a stranger's process: prints the prompt's predictions

A process of its own, because huggingface_hub reads the endpoint when it is imported.
"""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.shared.hub_server import HubServer

ROWS = [
    {"message": text, "label": label}
    for text, label in [("never came", "1"), ("thank you", "2"), ("nobody answers", "1"), ("great help", "2")] * 3
]


def train(folder, backbone, tokenizer, stop_after=None, resume=None, **arguments):
    """A run of four epochs; returns its trainer."""
    import transformers

    from hf_prompt_tuning import (
        PromptTemplate,
        PromptTuningArguments,
        PromptTuningConfig,
        PromptTuningTrainer,
        get_prompt_tuning_model,
    )

    class Stop(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch == stop_after

    template = PromptTemplate(
        "Message : {message} Label :", label_column="label", label_words={"1": "complaint", "2": "no complaint"}
    )
    transformers.set_seed(0)
    model = get_prompt_tuning_model(backbone, PromptTuningConfig(num_virtual_tokens=4), tokenizer, template)
    values = dict(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        save_strategy="epoch",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = PromptTuningTrainer(
        model,
        PromptTuningArguments(**values | arguments),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        processing_class=tokenizer,
        callbacks=[Stop()],
    )
    if arguments:
        trainer.evaluate_untuned()
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def pushed_by_a_trainer(hub: HubServer, folder: Path, backbone, tokenizer) -> dict:
    """A run that is pushed at every save, with checkpoints to resume from, and at its end."""
    import torch
    from huggingface_hub import snapshot_download

    from hf_prompt_tuning import load_prompt

    trainer = train(
        folder / "run",
        backbone,
        tokenizer,
        stop_after=2,
        push_to_hub=True,
        hub_model_id="alice/prompt",
        hub_strategy="checkpoint",
        hub_always_push=True,
        hub_token="hf_alice",
    )
    trainer.evaluate()
    trainer.push_to_hub()
    files = hub.files("alice/prompt")
    facts = {
        "files": sorted(files),
        "secrets": [
            name for name, content in files.items() if b"hf_alice" in content or str(folder).encode() in content
        ],
        "card": files["README.md"].decode(),
        "commits": [title for _, title in hub.commits("alice/prompt")],
        "scores": trainer.predict(ROWS).predictions.tolist(),
    }
    first, last = hub.commits("alice/prompt")[1][0], hub.commits("alice/prompt")[-1][0]
    old = load_prompt("alice/prompt", revision=first, backbone=backbone)[0].prompt
    new = load_prompt("alice/prompt", revision=last, backbone=backbone)[0].prompt
    facts["a revision is its own"] = not torch.equal(old, new) and torch.equal(new, trainer.model.prompt)

    checkpoint = Path(snapshot_download("alice/prompt", allow_patterns="last-checkpoint/*")) / "last-checkpoint"
    resumed = train(folder / "resumed", backbone, tokenizer, resume=str(checkpoint))
    whole = train(folder / "whole", backbone, tokenizer)
    facts["resumed, against never interrupted"] = (resumed.model.prompt - whole.model.prompt).abs().max().item()

    hub.down = True
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("hf_prompt_tuning").addHandler(handler)
    facts["pushed while down"] = trainer.push_to_hub()
    facts["said while down"] = [line for line in records if "could not be pushed" in line]
    facts["saved while down"] = (folder / "run" / "adapter_model.safetensors").exists()
    hub.down = False

    before = hub.commits("alice/prompt")
    with torch.no_grad():
        trainer.model.prompt.add_(1.0)
    hub.cut_uploads(after=0)
    facts["pushed while cut"] = trainer.push_to_hub()
    facts["commits while cut"] = hub.commits("alice/prompt") == before
    hub.heal()
    trainer.push_to_hub("mended")
    mended = load_prompt("alice/prompt", backbone=backbone, cache_dir=folder / "mended")[0].prompt
    facts["mended"] = [hub.commits("alice/prompt")[-1][1], torch.equal(mended, trainer.model.prompt)]
    return facts


def pushed_by_a_model(hub: HubServer, folder: Path, backbone, tokenizer) -> dict:
    """`model.push_to_hub`, to a private repository; and who may read it."""
    from hf_prompt_tuning import PromptLoadError, load_prompt

    model = load_prompt("alice/prompt", backbone=backbone, is_trainable=True)[0]
    facts = {"trainable": model.prompt.requires_grad}
    model.push_to_hub("alice/private", private=True, tokenizer=tokenizer)
    facts["files"] = sorted(hub.files("alice/private"))
    for who, token in {"alice": "hf_alice", "bob": "hf_bob", "nobody": False}.items():
        try:
            load_prompt("alice/private", token=token, backbone=backbone, cache_dir=folder / f"cache-{who}")
            facts[who] = "loaded"
        except PromptLoadError as error:
            facts[who] = str(error)
    return facts


def malicious(hub: HubServer, folder: Path) -> dict:
    """Prompts that name a backbone with code of its own, and folders of this machine."""
    from huggingface_hub import HfApi

    from hf_prompt_tuning import PromptLoadError, load_prompt

    marker, facts, api = folder / "was_run", {}, HfApi()
    code = f"open({str(marker)!r}, 'w').close()\n"
    backbone = folder / "evil_backbone"
    backbone.mkdir()
    (backbone / "modeling_evil.py").write_text(code)
    (backbone / "configuration_evil.py").write_text(code)
    auto_map = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    (backbone / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    api.create_repo("alice/evil-backbone")
    api.upload_folder(repo_id="alice/evil-backbone", folder_path=backbone)
    whole = hub.files("alice/prompt")
    for name in ("alice/evil-backbone", str(folder / "backbone"), "../backbone"):
        # Without the commit of the backbone that it had.
        changed = {"base_model_name_or_path": name, "revision": None}
        adapter = json.loads(whole["adapter_config.json"]) | changed
        made = folder / "evil_prompt"
        made.mkdir(exist_ok=True)
        (made / "adapter_config.json").write_text(json.dumps(adapter))
        (made / "adapter_model.safetensors").write_bytes(whole["adapter_model.safetensors"])
        api.create_repo("alice/evil", exist_ok=True)
        sha = api.upload_folder(repo_id="alice/evil", folder_path=made).oid
        try:
            load_prompt("alice/evil", revision=sha)
            facts[name.replace(str(folder), "FOLDER")] = "loaded"
        except PromptLoadError as error:
            facts[name.replace(str(folder), "FOLDER")] = str(error)
    facts["code was run"] = marker.exists()
    return facts


def session(hub: HubServer, folder: Path) -> dict:
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.shared.tiny_models import make_tokenizer, tiny_model

    tiny_model("llama").save_pretrained(folder / "backbone")
    make_tokenizer().save_pretrained(folder / "backbone")
    HfApi().create_repo("alice/backbone")
    HfApi().upload_folder(repo_id="alice/backbone", folder_path=folder / "backbone")
    backbone = AutoModelForCausalLM.from_pretrained("alice/backbone")
    tokenizer = AutoTokenizer.from_pretrained("alice/backbone")
    facts = {"trainer": pushed_by_a_trainer(hub, folder, backbone, tokenizer)}
    commit = hub.commits("alice/prompt")[-2][0]
    stranger = subprocess.run(
        [sys.executable, "-m", "tests.sessions.hub_session", "pull", "alice/prompt", commit],
        env=hub.environment(folder / "stranger", token=None),
        capture_output=True,
        text=True,
    )
    facts["stranger"] = json.loads(stranger.stdout.splitlines()[-1]) if not stranger.returncode else stranger.stderr
    facts["model"] = pushed_by_a_model(hub, folder, backbone, tokenizer)
    facts["malicious"] = malicious(hub, folder)
    return facts


def pull(prompt: str, revision: str) -> dict:
    """What `load_prompt` gives with nothing but an id, and plain PEFT beside it."""
    import peft
    import torch
    from huggingface_hub import hf_hub_download
    from transformers import AutoModelForCausalLM

    from hf_prompt_tuning import PromptTokenizer, load_prompt

    model, tokenizer, template = load_prompt(prompt, revision=revision)
    coder = PromptTokenizer(template, tokenizer, model.config.is_encoder_decoder)
    sources = [torch.tensor([coder.source_ids(row)[0]]) for row in ROWS]
    card = Path(hf_hub_download(prompt, "README.md", revision=revision)).read_text()
    printed = [as_pasted(code) for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    with torch.no_grad():
        scores = [model(input_ids=ids, candidates=coder.label_token_ids).scores[0].tolist() for ids in sources]
        ours = model(input_ids=sources[0]).logits
        backbone = AutoModelForCausalLM.from_pretrained(model.peft_config["default"].base_model_name_or_path)
        theirs = peft.PeftModel.from_pretrained(backbone, prompt, revision=revision)(input_ids=sources[0]).logits
    return {
        "scores": scores,
        "distance from PEFT": (ours - theirs).abs().max().item(),
        "P": ours.shape[1],
        "card": printed,
    }


def as_pasted(code: str) -> str:
    """What a card's code prints, and the kind of model that it leaves."""
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    return f"{type(names['model']).__name__} {out.getvalue()}".strip()


def main() -> None:
    if sys.argv[1] == "pull":
        print(json.dumps(pull(*sys.argv[2:])))
        return
    folder = Path(sys.argv[1])
    with HubServer(tokens={"hf_alice": "alice", "hf_bob": "bob"}) as hub:
        os.environ.update(hub.environment(folder / "home", token="hf_alice"))
        print(json.dumps(session(hub, folder)))


if __name__ == "__main__":
    main()
