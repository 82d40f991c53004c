"""Export prompts as tokens of a GGUF file, for llama.cpp and Ollama."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..models.soft_prompts import SoftPrompts
from .added_tokens import check_extensible, embedding_rows
from .exported_prompts import ExportedPrompt, Prompts, load_prompts
from .gguf_file import EMBEDDING, OUTPUT, TOKENS, GGUFFile, Matrix, as_matrix
from .measured_export import rows_of
from .output_rows import bias_of
from .prompt_texts import PromptText, RowTexts, chat_template_of, prompt_text, special_around, with_tokens
from .sample_texts import SAMPLE_TEXTS, checked_texts
from .tokens import check_ids, check_is_not_of, checked_folder, unfinished, with_prompts, write_prompts

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Architectures of which llama.cpp looks up rows as they are, and reads an output matrix if there is one."""
TYPES = ("F32", "F16", "Q8_0")
WITH_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
WITH_BOS += ("tekken", "chameleon")
"""Names of byte-level tokenizers that write BOS in llama.cpp where a file does not say whether they do."""
USUAL_IDS = {"llama": (1, 2), "gpt2": (11, 11)}
"""The ids of BOS and EOS in llama.cpp where a file does not say them, by the kind of its tokenizer."""


def export_gguf(
    prompts: Prompts,
    out: str | Path,
    gguf_file: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Iterable[str] = (),
    embedding_type: str = "F32",
    **load: Any,
) -> Path:
    """Write a backbone's GGUF file again, with prompts as tokens of its vocabulary, and a `prompt.json` beside it.

    The embedding matrix is stored in `embedding_type`. The output matrix keeps its type, and is one of its own. The
    lists of tokens are longer. The chat template is that of training, if the prompts were trained on chats. All else
    is the same, byte for byte.

    Args:
        prompts: as in `export_tokens`, trained on the backbone as transformers reads it from the file.
        out: the folder, as in `export_tokens`. The file in it has the name of `gguf_file`.
        gguf_file: the backbone's file.
        tokenizer, texts: as in `export_tokens`.
        embedding_type: F32, which keeps all numbers; or F16 or Q8_0, which round a prompt's vectors, too.
        **load: passed to `load_prompt`.

    Raises:
        PromptTuningError: as in `export_tokens`; or the file is damaged, of several parts, no whole model, of another
            backbone, or of an architecture that is not known to work; or its output matrix, or a list of its tokens,
            is of a type that cannot be written.
    """
    file, folder, texts = _opened(gguf_file, embedding_type), checked_folder(out), checked_texts(texts)
    exported = _loaded(prompts, file, load | {"tokenizer": tokenizer})
    base, own = exported[0].model.get_base_model(), exported[0].tokenizer
    check_extensible(base)
    _check_same(file, base)
    check_is_not_of(base, folder)
    extended = with_tokens(own, exported)
    ids = {prompt.name: extended.convert_tokens_to_ids(prompt.tokens) for prompt in exported}
    check_ids(ids, own, base)
    _check_place(file, ids[exported[0].name][0])
    forms = {p.name: _for_llama_cpp(prompt_text(p, extended, ids[p.name]), p, file) for p in exported}
    rows = rows_of(exported, ids, [*SAMPLE_TEXTS, *texts])
    served, measured = with_prompts(base, exported, ids, rows, _as_stored(file))
    vectors = torch.cat([embedding_rows(prompt.vectors, base) for prompt in exported]).float().cpu().numpy()
    matrices = _matrices(file, served, vectors, embedding_type)
    with unfinished(folder) as made:
        tokens = [token for prompt in exported for token in prompt.tokens]
        file.write(made / file.path.name, tokens, matrices, chat_template_of(exported))
        error = _error(matrices[EMBEDDING], vectors)
        write_prompts(made, file.path.stem, exported, ids, forms, measured, error)
    return folder


def _loaded(prompts: Prompts, file: GGUFFile, load: dict[str, Any]) -> list[ExportedPrompt]:
    """Load prompts on the file's backbone. Raise PromptTuningError if another one is given."""
    if "backbone" in load:
        raise PromptTuningError("backbone is given, and gguf_file is the backbone; leave it out.")
    if not isinstance(prompts, SoftPrompts):
        load |= {"backbone": file.path.parent, "gguf_file": file.path.name}
    return load_prompts(prompts, **load)


def _opened(gguf_file: str | Path, embedding_type: str) -> GGUFFile:
    """Open the backbone's file.

    Raise PromptTuningError if it is not known that llama.cpp takes such a file with an output matrix of its own, or
    the embedding matrix cannot be of that type.
    """
    if embedding_type not in TYPES:
        raise PromptTuningError(f"embedding_type is {embedding_type!r:.80}; give one of {', '.join(TYPES)}.")
    file = GGUFFile(gguf_file)
    if (architecture := file.value("general.architecture")) not in ARCHITECTURES:
        raise PromptTuningError(
            f"{file.path.name} is of the architecture {architecture!r}, and tokens are added to "
            f"{', '.join(ARCHITECTURES)}; export a checkpoint (export_tokens) and convert it with llama.cpp."
        )
    if EMBEDDING not in file.tensors or TOKENS not in file.reader.fields:
        raise PromptTuningError(
            f"{file.path.name} has no {EMBEDDING if EMBEDDING not in file.tensors else TOKENS}, so it is no whole "
            "model (an adapter, or a part of one); give the backbone's file."
        )
    return file


def _check_same(file: GGUFFile, base: PreTrainedModel) -> None:
    """Raise PromptTuningError if the backbone's embedding matrix is not the file's, or its output has a bias."""
    matrix, weight = file.matrix(EMBEDDING), base.get_input_embeddings().weight
    some = slice(0, None, max(1, len(weight) // 64))
    same = len(matrix.data) == len(weight) == len(file.tokens)
    if not same or not np.allclose(matrix.numbers(some), weight[some].float().cpu().numpy(), rtol=1e-2, atol=1e-3):
        raise PromptTuningError(f"{file.path.name} is not the file of the prompts' backbone; give the one it is from.")
    if bias_of(base) is not None:
        raise PromptTuningError(f"{type(base).__name__} has a bias in its output, which is not known to work in GGUF.")


def _check_place(file: GGUFFile, first: int) -> None:
    """Raise PromptTuningError if the first added id is not the one behind the file's tokens."""
    if first != len(file.tokens):
        raise PromptTuningError(
            f"the tokenizer has {first} tokens, and {file.path.name} {len(file.tokens)}; give the file's tokenizer."
        )


def _for_llama_cpp(form: PromptText, prompt: ExportedPrompt, file: GGUFFile) -> PromptText:
    """Return how a prompt's tokens are written for llama.cpp, whose tokenizer is not the one that was tried.

    With SentencePiece it writes a space behind any special token, so that the prefix must not end with one. It writes
    BOS and EOS if the file says so, and a request cannot forbid it.

    Raises:
        PromptTuningError: it writes them into chats, too, and training did not.
    """
    if file.value("tokenizer.ggml.model") == "llama" and file.value("tokenizer.ggml.add_space_prefix") is not False:
        form = replace(form, prefix=form.prefix.rstrip(" "), any_beginning=False)
    tokenizer, rows = prompt.tokenizer, RowTexts(prompt)
    written = special_around(tokenizer("x")["input_ids"], tokenizer) if form.add_special_tokens else ([], [])
    theirs = _special_of(file)
    if not form.is_system:
        return form if theirs == written else replace(form, as_ids=True)
    before, behind = theirs
    ids = tokenizer(rows.text("x"), add_special_tokens=False)["input_ids"]  # a BOS of the chat's is not repeated
    if behind or ids[: len(before)] != before:
        raise PromptTuningError(
            f"llama.cpp writes {tokenizer.decode([*before, *behind])!r} around every chat ({file.path.name} has "
            f"add_bos_token or add_eos_token), and {prompt.name!r} was trained without; export a checkpoint "
            "(export_tokens), for another server."
        )
    return form


def _special_of(file: GGUFFile) -> tuple[list[int], list[int]]:
    """Return the ids that llama.cpp writes in front of any text and behind it."""
    kind, name = file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.pre")
    bos, eos = file.value("tokenizer.ggml.add_bos_token"), file.value("tokenizer.ggml.add_eos_token")
    bos = (kind == "llama" or name in WITH_BOS) if bos is None else bos
    usual = USUAL_IDS.get(kind, USUAL_IDS["gpt2"])
    named = [file.value(f"tokenizer.ggml.{token}_token_id") for token in ("bos", "eos")]
    ids = [own if own is not None else other for own, other in zip(named, usual, strict=True)]
    return ids[:1] if bos else [], ids[1:] if eos else []


def _as_stored(file: GGUFFile) -> Callable[[Tensor], Tensor]:
    """Return what rounds an output row [H] fp32 as the type of the file's output matrix does."""
    kind = (file.matrix(OUTPUT) or file.matrix(EMBEDDING)).kind
    return lambda row: torch.from_numpy(as_matrix(row.numpy()[None], kind).numbers()[0])


def _matrices(file: GGUFFile, served: PreTrainedModel, vectors: np.ndarray, embedding_type: str) -> dict[str, Matrix]:
    """Return the two matrices of the new file. A tied output matrix becomes one of its own."""
    embedding = file.matrix(EMBEDDING)
    added = served.get_output_embeddings().weight[len(file.tokens) :].float().cpu().numpy()
    return {
        EMBEDDING: _in_type(embedding, embedding_type).with_rows(vectors),
        OUTPUT: (file.matrix(OUTPUT) or embedding).with_rows(added),
    }


def _in_type(matrix: Matrix, name: str) -> Matrix:
    """Return a matrix in a type of GGUF by its name; the same bytes if it has it already."""
    return matrix if matrix.kind.name == name else as_matrix(matrix.numbers(), type(matrix.kind)[name])


def _error(matrix: Matrix, vectors: np.ndarray) -> float:
    """Return the relative error with which vectors at the end of a matrix are stored."""
    stored = matrix.numbers(slice(len(matrix.data) - len(vectors), None))
    return float(np.linalg.norm(stored - vectors) / np.linalg.norm(vectors))
