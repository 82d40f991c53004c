"""A run that pushes its checkpoints, in a process of its own, for signals to end.

    python -m tests.sessions.pushed_session FOLDER DOOR SECONDS

It prints `step N` for each step, and trains until it is ended. After a signal it waits SECONDS for the Hub.
"""

import sys
from pathlib import Path

from transformers import TrainerCallback

from hf_prompt_tuning import PromptTuningArguments, PromptTuningTrainer
from hf_prompt_tuning.training import publishing
from tests.shared.reference import tiny_prompt_model
from tests.shared.resumed_runs import ROWS, SAVED
from tests.shared.tiny_models import make_tokenizer
from tests.shared.trainers import TEMPLATE


class Say(TrainerCallback):
    """Tells the test how far the run is."""

    def on_save(self, args, state, control, **kwargs):
        print(f"step {state.global_step}", flush=True)


def main() -> None:
    folder, door, seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    publishing.LAST_SECONDS = float(seconds)
    trains = door != "end"
    values = dict(num_train_epochs=1000 if trains else 1, save_steps=2, save_strategy="steps" if trains else "no")
    trainer = PromptTuningTrainer(
        model=tiny_prompt_model("llama", num_virtual_tokens=4),
        args=PromptTuningArguments(
            output_dir=str(folder / "run"),
            push_to_hub=True,
            hub_model_id="alice/p",
            hub_strategy="checkpoint",
            save_on_signal=True,
            save_total_limit=2,
            **SAVED | values,
        ),
        train_dataset=ROWS,
        processing_class=make_tokenizer(),
        template=TEMPLATE,
        callbacks=[Say()],
    )
    trainer.train()
    print("pushing", flush=True)
    trainer.push_to_hub()
    print("over", flush=True)


if __name__ == "__main__":
    main()
