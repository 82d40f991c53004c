"""Show what a run reached: accuracy before and after, and three predictions.

python examples/show_results.py OUTPUT_DIR
"""

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    before = next(log for log in history if "eval_accuracy" in log and log["step"] == 0)
    after = json.loads((folder / "eval_results.json").read_text())
    print(f"\naccuracy before training (the prompt is its initial words): {before['eval_accuracy']:.3f}")
    print(f"accuracy after training:                                    {after['eval_accuracy']:.3f}\n")
    for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[:3]:
        row = json.loads(line)
        print(f"{row['input']}\n  -> {row['prediction']}   (written as: {row['reference']})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
