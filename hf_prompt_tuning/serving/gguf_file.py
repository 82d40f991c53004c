"""Write a GGUF file again with more tokens. All that is not about tokens or chats stays as it is, byte for byte.

magic, version, number of tensors, number of values
values by key                     tokenizer.ggml.tokens, .token_type and .scores become longer; tokenizer.chat_template
                                  is that of training
names, shapes, types and offsets  those of token_embd.weight and output.weight change; all offsets are new
data, each tensor aligned         token_embd.weight and output.weight are written anew
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import PromptTuningError, first_line
from ..extras import check_installed

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
TOKENS = "tokenizer.ggml.tokens"
CONTROL, SCORE = 3, -1000.0
"""What llama.cpp's converter gives a special token that was added: its type, and its score where there are scores."""
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
"""Newer versions of llama.cpp never sample these ids; older ones do not know them."""
EXTENDED = {TOKENS, "tokenizer.ggml.token_type", "tokenizer.ggml.scores", SUPPRESSED}
CHAT_TEMPLATE = "tokenizer.chat_template"
INT32, STRING, ARRAY = 5, 8, 9
NUMBERS = dict(enumerate("BbHhIif")) | {10: "Q", 11: "q", 12: "d"}
"""The types of numbers by their ids in GGUF, as `struct` names them."""


@dataclass(frozen=True)
class Matrix:
    """A tensor's data: [V, H] in a type of GGUF.

    Attributes:
        kind: the type, a `GGMLQuantizationType`.
        data: its bytes as they stand in the file, [V, bytes of a row].
    """

    kind: Any
    data: np.ndarray

    def numbers(self, rows: slice = slice(None)) -> np.ndarray:
        """Return the numbers of some rows, [V, H] fp32."""
        from gguf.quants import dequantize

        return dequantize(np.ascontiguousarray(self.data[rows]), self.kind).astype(np.float32)

    def with_rows(self, rows: np.ndarray) -> "Matrix":
        """Return the matrix with rows [n, H] fp32 behind its own, whose bytes stay."""
        return Matrix(self.kind, np.concatenate([self.data, as_matrix(rows, self.kind).data]))


def as_matrix(numbers: np.ndarray, kind: Any) -> Matrix:
    """Return numbers [V, H] in a type of GGUF.

    Raise PromptTuningError if the gguf package cannot write the type, or rows are not whole blocks of it.
    """
    from gguf.quants import QuantError, quantize

    try:
        data = quantize(np.ascontiguousarray(numbers, dtype=np.float32), kind)
    except NotImplementedError as error:  # it reads more types than it writes
        raise PromptTuningError(
            f"the matrix is of type {kind.name}, which the gguf package cannot write; give a file whose output matrix "
            "is F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1."
        ) from error
    except QuantError as error:  # a block is 32 numbers or more
        raise PromptTuningError(
            f"a matrix with rows of {numbers.shape[1]} cannot be of type {kind.name} ({first_line(error)}); give "
            "embedding_type F32 or F16."
        ) from error
    return Matrix(kind, np.ascontiguousarray(data).view(np.uint8).reshape(len(numbers), -1))


class GGUFFile:
    """A GGUF file of one part.

    Args:
        path: the file.

    Raises:
        PromptTuningError: the gguf package is missing, the file is no whole GGUF file, is one of several parts, or is
            big-endian.
    """

    def __init__(self, path: str | Path):
        check_installed("a GGUF file", ("gguf",), "gguf")
        from gguf import GGUFReader

        self.path = Path(path)
        try:
            self.reader = GGUFReader(self.path)
        except Exception as error:  # the reader raises many kinds, and numpy's, for damaged files
            raise PromptTuningError(
                f"{str(path)!r} could not be read as a GGUF file: {first_line(error)}. Download or copy it again."
            ) from error
        if self.reader.byte_order != "I" or (self.value("split.count") or 1) > 1:
            raise PromptTuningError(
                f"{str(path)!r} is big-endian, or one of several parts; give a little-endian file of one part "
                "(llama-gguf-split --merge)."
            )
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def value(self, key: str) -> Any:
        """Return a number or a text by its key; None if there is none."""
        field = self.reader.fields.get(key)
        if field is None:
            return None
        last = field.parts[-1]
        return bytes(last).decode() if field.types[0].name == "STRING" else last.tolist()[0]

    @property
    def tokens(self) -> list[str]:
        """The tokens, of which the ids are the places."""
        field = self.reader.fields[TOKENS]
        return [bytes(field.parts[i]).decode("utf-8", "replace") for i in field.data]

    def matrix(self, name: str) -> Matrix | None:
        """Return a tensor's data; None if there is no such tensor."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        data = np.ascontiguousarray(tensor.data).view(np.uint8)
        return Matrix(tensor.tensor_type, data.reshape(int(tensor.shape[1]), -1))

    def write(
        self, out: Path, tokens: Sequence[str], matrices: dict[str, Matrix], chat_template: str | None = None
    ) -> None:
        """Write the file again with more tokens, and other data of some tensors, new ones at the end.

        A `chat_template` takes the place of the file's. Raise PromptTuningError if a value that tells of tokens is of
        a type that cannot tell of more.
        """
        names = [*self.tensors, *(name for name in matrices if name not in self.tensors)]
        sizes = {n: matrices[n].data.nbytes if n in matrices else int(self.tensors[n].n_bytes) for n in names}
        values, alignment, offset = self._values(tokens, chat_template), self.reader.alignment, 0
        with out.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", int(self.value("GGUF.version")), len(names), len(values)))
            file.writelines(values)
            for name in names:
                file.write(self._info(name, matrices.get(name), offset))
                offset += -(-sizes[name] // alignment) * alignment
            for name in names:
                _pad(file, alignment)
                if name in matrices:
                    file.write(matrices[name].data.tobytes())
                else:
                    np.ascontiguousarray(self.tensors[name].data).tofile(file)
            _pad(file, alignment)

    def _values(self, tokens: Sequence[str], chat_template: str | None) -> list[bytes]:
        """Return the bytes of each value with its key, those that tell of tokens longer by `tokens`."""
        fields = {key: field for key, field in self.reader.fields.items() if not key.startswith("GGUF.")}
        raw = {key: b"".join(part.tobytes() for part in field.parts) for key, field in fields.items()}
        raw.setdefault(SUPPRESSED, _text(SUPPRESSED) + struct.pack("<IIQ", ARRAY, INT32, 0))
        if chat_template is not None:
            raw[CHAT_TEMPLATE] = _text(CHAT_TEMPLATE) + struct.pack("<I", STRING) + _text(chat_template)
        return [self._value(key, value, tokens) for key, value in raw.items()]

    def _value(self, key: str, raw: bytes, tokens: Sequence[str]) -> bytes:
        """Return the bytes of a value with its key, longer by `tokens` if it tells of tokens."""
        first, new, place = len(self.tokens), len(tokens), 8 + len(key.encode())  # the type stands behind the key
        if key == f"{self.value('general.architecture')}.vocab_size":
            (kind,) = struct.unpack_from("<I", raw, place)
            return raw[: place + 4] + _numbers([first + new], kind, key)
        if key not in EXTENDED:
            return raw
        _, kind, length = struct.unpack_from("<IIQ", raw, place)
        numbers = {
            "tokenizer.ggml.token_type": [CONTROL] * new,
            "tokenizer.ggml.scores": [SCORE] * new,
            SUPPRESSED: range(first, first + new),
        }
        added = b"".join(map(_text, tokens)) if key == TOKENS else _numbers(numbers[key], kind, key)
        return raw[: place + 8] + struct.pack("<Q", length + new) + raw[place + 16 :] + added

    def _info(self, name: str, matrix: Matrix | None, offset: int) -> bytes:
        """Return the name, shape, type and offset of a tensor. A new matrix has the embedding's width."""
        tensor = self.tensors.get(name, self.tensors[EMBEDDING])
        shape, kind = [int(size) for size in tensor.shape], tensor.tensor_type
        if matrix is not None:
            shape, kind = [shape[0], len(matrix.data)], matrix.kind
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        return _text(name) + dims + struct.pack("<IQ", int(kind), offset)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _numbers(values: Sequence[float], kind: int, key: str) -> bytes:
    """Return numbers in a type of GGUF. Raise PromptTuningError if it cannot hold them."""
    try:
        return struct.pack(f"<{len(values)}{NUMBERS[kind]}", *values)
    except (KeyError, struct.error) as error:
        raise PromptTuningError(
            f"{key} is of GGUF's type {kind}, which cannot hold {values[-1]}; convert the model again, so that it has "
            "the types that llama.cpp writes."
        ) from error


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
