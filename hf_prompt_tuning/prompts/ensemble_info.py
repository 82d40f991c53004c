"""Read and write `ensemble.json`: the prompts that vote, and the metrics of their vote."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PromptTuningError
from .config import check_name
from .info import check_metrics, check_metrics_by_data
from .json_files import numbers_of

ENSEMBLE_FILE = "ensemble.json"
FORMAT_VERSION = 1
MAX_MEMBERS = 1000


@dataclass
class EnsembleInfo:
    """The content of `ensemble.json`. Each member's folder holds that member's own description.

    Attributes:
        members: the names of the prompts, which are also the names of their folders.
        best: the best prompt. The ensemble's folder also holds a copy of its files.
        metrics: the metrics of the vote, by the Trainer's names.
        transfer: by dataset that the prompts were not trained on, the metrics of the vote and the number of `rows`.
    """

    members: list[str]
    best: str
    metrics: dict[str, float] = field(default_factory=dict)
    transfer: dict[str, dict[str, float]] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Write `ensemble.json` into `folder`."""
        values = {"format_version": FORMAT_VERSION} | asdict(self) | {"metrics": numbers_of(self.metrics)}
        values["transfer"] = {name: numbers_of(metrics) for name, metrics in self.transfer.items()}
        (Path(folder) / ENSEMBLE_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EnsembleInfo":
        """Check a parsed `ensemble.json` and return its description.

        Raise PromptTuningError if a field is missing or has the wrong type, or a member's name is invalid.
        """
        if values.get("format_version") != FORMAT_VERSION or isinstance(values["format_version"], bool):
            raise PromptTuningError(
                f"format_version is {values.get('format_version')!r:.80}, and this version reads {FORMAT_VERSION}"
            )
        members, best, metrics = (values.get(name) for name in ("members", "best", "metrics"))
        if not isinstance(members, list) or not 1 < len(members) <= MAX_MEMBERS:
            raise PromptTuningError(f"members is {members!r:.80}, not a list of 2 to {MAX_MEMBERS} names")
        for name in members:
            check_name(name)  # a plain folder name, which cannot lead out of the ensemble's folder
        if len(set(members)) < len(members) or best not in members:
            raise PromptTuningError(f"the members are {members!r:.80} and the best is {best!r:.80}")
        check_metrics("metrics", metrics)
        check_metrics_by_data("transfer", transfer := values.get("transfer", {}))
        return cls(members, best, metrics, transfer)
