"""Export prompts from the command line, for servers that know nothing of soft prompts.

hf-prompt-tuning export PROMPT [PROMPT ...] --to {tokens,gguf,vllm} OUT
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from ..errors import PromptTuningError
from ..serving.exported_prompts import by_name, named_prompts
from ..serving.gguf import export_gguf
from ..serving.tokens import PROMPTS_FILE, export_tokens
from ..serving.vllm import checked_place, export_vllm
from .main import run

LOADING = ("backbone", "gguf_file", "dtype", "token")


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    flags = argparse.ArgumentParser(
        prog="hf-prompt-tuning export",
        description="Write what a server needs that knows nothing of soft prompts.",
    )
    flags.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="folder or Hub id of a prompt; NAME=PROMPT gives it a name"
    )
    flags.add_argument("out", metavar="OUT", help="the folder to write")
    flags.add_argument(
        "--to",
        required=True,
        choices=("tokens", "gguf", "vllm"),
        help="tokens: a checkpoint in which prompts are tokens, for any engine; gguf: such a GGUF file; "
        "vllm: embeddings for vLLM's clients",
    )
    flags.add_argument("--backbone", help="folder or Hub id of the backbone (default: the one that the prompt names)")
    flags.add_argument("--gguf_file", help="GGUF file to load the backbone from")
    flags.add_argument("--dtype", help="float32, bfloat16 or float16 for the backbone (default: its own)")
    flags.add_argument("--token", help="Hub token for private prompts and backbones")
    flags.add_argument("--ignore_mismatch", action="store_true", help="accept another backbone than the prompt's")
    flags.add_argument("--texts", metavar="FILE", help="tokens, gguf: texts of your task, one a line, to measure on")
    flags.add_argument("--embedding_type", help="gguf: F32 (default), F16 or Q8_0 for the embedding matrix")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Export the named prompts, and print where to. Raise PromptTuningError if that fails."""
    args = parser().parse_intermixed_args(argv)
    transformers.utils.logging.disable_progress_bar()
    prompts = _prompts(args.prompts)
    load = {name: getattr(args, name) for name in LOADING if getattr(args, name) is not None}
    load["ignore_mismatch"] = args.ignore_mismatch
    if args.embedding_type is not None and args.to != "gguf":
        raise PromptTuningError(f"embedding_type is given for {args.to}; it is gguf's: leave it out.")
    if args.to == "vllm":
        if args.texts is not None:
            raise PromptTuningError("texts is given, and vllm measures nothing; leave it out.")
        folders = {name: checked_place(args.out if len(prompts) == 1 else Path(args.out, name)) for name in prompts}
        for name, prompt in prompts.items():
            print(export_vllm(prompt, folders[name], **load))
        return
    load["texts"] = _texts(args.texts)
    folder = export_tokens(prompts, args.out, **load) if args.to == "tokens" else _gguf(prompts, args, load)
    print(f"{folder}: {PROMPTS_FILE} in it says how to write the texts of each prompt.")


def _gguf(prompts: Mapping[str, str | Path], args: argparse.Namespace, load: dict[str, Any]) -> Path:
    """Export to GGUF. Raise PromptTuningError if no file is given."""
    if args.gguf_file is None:
        raise PromptTuningError(
            "gguf_file is not given, and gguf writes the backbone's own file again; give --gguf_file PATH."
        )
    file = Path(load.pop("backbone", ""), load.pop("gguf_file"))
    kind = {} if args.embedding_type is None else {"embedding_type": args.embedding_type}
    return export_gguf(prompts, args.out, file, **kind, **load)


def _prompts(words: Sequence[str]) -> dict[str, str | Path]:
    """Return prompts by name. Raise PromptTuningError if some are given as NAME=PROMPT, and some are not."""
    unnamed = [word for word in words if "=" not in word]
    if len(unnamed) == len(words):
        return named_prompts(words)
    if unnamed:
        raise PromptTuningError(f"{unnamed[0]!r} has no name, and others do; give NAME=PROMPT for all.")
    pairs = (word.partition("=") for word in words)
    return by_name((name, prompt) for name, _, prompt in pairs)


def _texts(file: str | None) -> list[str]:
    """Return the lines of a file that are not empty. Raise PromptTuningError if it cannot be read."""
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise PromptTuningError(f"texts is {file!r}, which could not be read: {error}. Give a text file.") from error
    return [line for line in lines if line.strip()]


if __name__ == "__main__":
    run(main)
