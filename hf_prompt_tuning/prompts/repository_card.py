"""Write the card of a repository with several prompts: a list of the prompts, and how to load each."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from .card import TAGS, read_template
from .repository_files import CARD_FILE

TEMPLATE = Path(__file__).parent / "repository.md.jinja"
MARKER = "<!-- This list is written anew with every push by hf_prompt_tuning; without this line it is left alone. -->"
ROW = re.compile(r"^\| \[(?P<name>[^]]+)\]\([^)]*\) \| (?:`(?P<base>[^`]+)`|not on the Hub) \|$", re.MULTILINE)


def is_ours(card: str | None) -> bool:
    """Tell whether a repository's card is our list or is missing. A card that a person wrote is never overwritten."""
    return card is None or MARKER in card


def repository_card(
    repo_id: str | None, folders: Iterable[str], bases: Mapping[str, str | None], before: str | None = None
) -> str:
    """Return the text of the card of the prompts in `folders`; `repo_id` is None for a local folder.

    `bases` are the Hub ids of the backbones by folder, as far as they are known. The others are read from the present
    card.
    """
    base_of = {row["name"]: row["base"] for row in ROW.finditer(before or "")} | dict(bases)
    prompts = {folder: base_of.get(folder) for folder in sorted(folders)}
    models = sorted({base for base in prompts.values() if base})
    data = ModelCardData(library_name="peft", base_model=models or None, tags=TAGS)
    body = read_template(TEMPLATE).render(
        marker=MARKER, title=(repo_id or "Soft prompts").split("/")[-1], prompts=prompts, where=repo_id or "."
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def write_repository_card(folder: Path, repo_id: str | None, bases: Mapping[str, str | None]) -> None:
    """Write the card into a folder of prompts, unless a person's card is there."""
    file = folder / CARD_FILE
    before = file.read_text(encoding="utf-8") if file.exists() else None
    if is_ours(before):
        file.write_text(repository_card(repo_id, bases, bases), encoding="utf-8")
