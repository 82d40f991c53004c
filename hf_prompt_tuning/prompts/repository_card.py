"""The card of a repository of several prompts: a list of them, and how each is loaded."""

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
    """Whether a repository's card is such a list, or not there; a person's own is never written over."""
    return card is None or MARKER in card


def repository_card(
    repo_id: str | None, folders: Iterable[str], bases: Mapping[str, str | None], before: str | None = None
) -> str:
    """The text of the card.

    Args:
        repo_id: the repository; None for a folder of this machine.
        folders: of all prompts in it.
        bases: the Hub ids of those prompts' backbones that are known.
        before: the card that it is written in place of, which knows those of the other prompts.
    """
    known = {row["name"]: row["base"] for row in ROW.finditer(before or "")} | dict(bases)
    prompts = {folder: known.get(folder) for folder in sorted(folders)}
    models = sorted({base for base in prompts.values() if base})
    data = ModelCardData(library_name="peft", base_model=models or None, tags=TAGS)
    body = read_template(TEMPLATE).render(
        marker=MARKER, title=(repo_id or "Soft prompts").split("/")[-1], prompts=prompts, where=repo_id or "."
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def write_repository_card(folder: Path, repo_id: str | None, bases: Mapping[str, str | None]) -> None:
    """Writes the card into a folder of prompts, where there is no other."""
    file = folder / CARD_FILE
    before = file.read_text(encoding="utf-8") if file.exists() else None
    if is_ours(before):
        file.write_text(repository_card(repo_id, bases, bases), encoding="utf-8")
