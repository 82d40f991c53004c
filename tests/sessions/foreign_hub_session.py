"""Foreign trainers push to a Hub on this machine, in a process of its own; prints what arrived as JSON.

python -m tests.sessions.foreign_hub_session FOLDER        test_foreign_hub.py says what should have
"""

import json
import os
import sys
from pathlib import Path

from tests.shared.hub_server import HubServer


def pushed(hub: HubServer, folder: Path) -> dict:
    """By trainer: the files that it pushed, and how far the prompt that a stranger gets is from its own.

    Under "… callback" what `PromptHubCallback` pushed meanwhile, beside the best prompt, which the trainer ends with.
    """
    import transformers

    from hf_prompt_tuning import load_prompt
    from hf_prompt_tuning.training.callbacks import PromptHubCallback
    from tests.shared.foreign_trainers import COMMON, rows_of, targets_of
    from tests.shared.reference import tiny_prompt_model
    from tests.shared.tiny_models import make_tokenizer
    from tests.shared.versions import HAS_TRL

    runs = [
        (transformers.Trainer, transformers.TrainingArguments, "llama", rows_of(), {}),
        (transformers.Seq2SeqTrainer, transformers.Seq2SeqTrainingArguments, "t5", targets_of(rows_of()), {}),
    ]
    if HAS_TRL:
        from trl import SFTConfig, SFTTrainer

        runs.append((SFTTrainer, SFTConfig, "llama", rows_of(), {"bf16": False}))
    tokenizer, facts = make_tokenizer(), {}
    for trainer_class, arguments, name, data, values in runs:
        repo = f"alice/{trainer_class.__name__}"
        hub_values = {"push_to_hub": True, "hub_model_id": repo, "hub_token": "hf_alice", "save_strategy": "epoch"}
        hub_values |= {"eval_strategy": "epoch", "load_best_model_at_end": True}
        trainer = trainer_class(
            model=tiny_prompt_model(name),
            args=arguments(str(folder / trainer_class.__name__), **COMMON | hub_values | values),
            train_dataset=data,
            eval_dataset=data,
            callbacks=[PromptHubCallback(f"{repo}-best", token="hf_alice")],
            processing_class=tokenizer,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.train()
        trainer.push_to_hub()
        for name, where in ((trainer_class.__name__, repo), (f"{trainer_class.__name__} callback", f"{repo}-best")):
            got = load_prompt(where, backbone=trainer.model.get_base_model(), tokenizer=tokenizer)[0]
            distance = (got.prompt - trainer.model.prompt).abs().max().item()
            evaluated = got.info.metrics.get("eval_loss")
            facts[name] = {"files": sorted(hub.files(where)), "distance": distance, "loss": evaluated}
            facts[name]["best"] = trainer.state.best_metric
    return facts


def main() -> None:
    folder = Path(sys.argv[1])
    with HubServer(tokens={"hf_alice": "alice"}) as hub:
        os.environ.update(hub.environment(folder / "home", token="hf_alice"))
        print(json.dumps(pushed(hub, folder)))


if __name__ == "__main__":
    main()
