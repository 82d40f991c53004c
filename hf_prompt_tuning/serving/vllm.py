"""Export prompts for vLLM, and build requests from the embeddings of prompt and text.

vLLM has no soft prompts, but it accepts input embeddings in a request (`vllm serve --enable-prompt-embeds`). So the
client concatenates prompt and text. From the backbone it needs only the embedding matrix.
"""

import base64
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import row_tokenizer
from ..data.heads import needs_system_turn, without_head
from ..data.tokenization import PromptTokenizer
from ..data.unwritten import UnwrittenWarning
from ..errors import PromptLoadError, PromptTuningError
from ..hub.backbones import load_tokenizer
from ..hub.files import open_tensors
from ..layouts.sharing import whole
from ..models.causal_lm import PromptTuningModelForCausalLM
from ..models.load import load_prompt
from ..prompts.files import read_json
from ..prompts.info import INFO_FILE, RESULTS_FILE, PromptInfo
from .tokens import check_writable, let_others_read

EMBEDDINGS_FILE = "embeddings.safetensors"
TOKENIZER = "tokenizer"


def export_vllm(prompt: str | Path | PromptTuningModelForCausalLM, out: str | Path, **load: Any) -> Path:
    """Write everything that a client needs into a folder: prompt, embedding matrix, template and tokenizer.

    Args:
        prompt: a Hub id or folder, or a model, of which the active prompt is exported (then pass `tokenizer`).
        out: the folder: new, empty, or an earlier export, whose files are replaced.
        **load: passed to `load_prompt`; of a model, `tokenizer` alone.

    Returns:
        The folder, for `VllmPrompt.load`.

    Raises:
        PromptTuningError: the model is an encoder-decoder, the template or the tokenizer is missing, or the backbone
            changes its embeddings after the lookup (Gemma), which a server may do a second time; `out` holds
            something else, or cannot be written; or an option is for loading a prompt that is loaded.
        PromptLoadError: as in `load_prompt`.
    """
    folder = checked_place(out)
    model, tokenizer = _loaded(prompt, load)
    embed = model.word_embeddings
    with whole(embed):
        weight = embed.weight.detach().cpu()  # before a lookup, after which accelerate may take it off its device
        probe = torch.arange(min(8, embed.num_embeddings))
        if not torch.equal(embed.forward(probe.to(embed.weight.device)).cpu(), weight[probe]):
            raise PromptTuningError(
                f"{type(model.base_model).__name__} changes its embeddings after looking them up, and a server may do "
                "so with those that it is given. Serve it with transformers."
            )
    head = weight[list(model.active_peft_config.head)]
    tensors = {"prompt": torch.cat([head, model.prompt.detach().to(head).cpu()]), "embedding": weight.contiguous()}
    with _replaced(folder) as made:
        save_file(tensors, made / EMBEDDINGS_FILE)
        model.info.write(made)
        tokenizer.save_pretrained(made / TOKENIZER)
    return folder


def _loaded(prompt: Any, load: dict[str, Any]) -> tuple[PromptTuningModelForCausalLM, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a prompt that is to be exported. Raise PromptTuningError as said there."""
    is_model = not isinstance(prompt, str | Path)
    model, tokenizer, _ = (prompt, load.get("tokenizer"), None) if is_model else load_prompt(prompt, **load)
    if not isinstance(model, PromptTuningModelForCausalLM):
        raise PromptTuningError(
            f"the prompt is of a {type(model).__name__}; vLLM takes embeddings for causal models alone."
        )
    if is_model and (others := [name for name in load if name != "tokenizer"]):
        raise PromptTuningError(f"{others[0]} is given, and the prompt is on a backbone already; leave it out.")
    if tokenizer is None or model.info.template is None:
        lacks, advice = "template", "set it as the model's info.template"
        if tokenizer is None:
            lacks, advice = "tokenizer", "give tokenizer=…"
        raise PromptTuningError(f"the prompt has no {lacks}, without which rows cannot be told to it; {advice}.")
    return model, tokenizer


def checked_place(out: str | Path) -> Path:
    """Return an export's folder. Raise PromptTuningError if it holds something else, or cannot be written."""
    folder = Path(out)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / EMBEDDINGS_FILE).is_file():
        raise PromptTuningError(f"{str(out)!r} holds other files than an export; give a new folder.")
    check_writable(folder.resolve())
    return folder


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a folder, of which all goes into `folder` at the end, in place of an earlier export's files.

    After an error the earlier export is there, whole. Other files stay.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    try:
        yield made
        let_others_read(made)
        # Without its embeddings an export does not load. So a crash in between leaves no mixture of two that would.
        for name in (EMBEDDINGS_FILE, INFO_FILE, RESULTS_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
        for part in sorted(made.iterdir(), key=lambda part: part.name == EMBEDDINGS_FILE):
            part.replace(folder / part.name)
    except BaseException:
        shutil.rmtree(folder if is_new else made, ignore_errors=True)
        raise
    made.rmdir()


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load an export's tokenizer. Raise PromptLoadError if it is missing or damaged."""
    if not folder.is_dir():  # transformers would ask the Hub for a repository of that name
        raise PromptLoadError(f"{str(folder)!r}, the export's tokenizer, is not there; export it again.")
    return load_tokenizer(str(folder), None, {}, "Export it again.")


class VllmPrompt:
    """Build requests for a prompt that `export_vllm` wrote.

    Args:
        prompt: [P, H], in the backbone's dtype; with the embeddings of its head in front, [h+P, H].
        embedding: [V, H], in the same dtype.
        coder: tokenizes rows with the prompt's template.
        head: the token ids of the prompt's head, which are taken off the rows.
    """

    def __init__(self, prompt: Tensor, embedding: Tensor, coder: PromptTokenizer, head: Sequence[int] = ()):
        self.prompt, self.embedding, self.coder, self.head = prompt, embedding, coder, tuple(head)
        self._warning = UnwrittenWarning("the rows hold")

    @classmethod
    def load(cls, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> "VllmPrompt":
        """Load a prompt from a folder.

        Args:
            folder: a folder that `export_vllm` wrote.
            tokenizer: replaces the folder's tokenizer.

        Raises:
            PromptLoadError: a file is missing or damaged.
        """
        folder = Path(folder)
        info = read_json(folder / INFO_FILE, PromptInfo.from_json)
        with open_tensors(folder / EMBEDDINGS_FILE, "is not whole", "; export it again.") as tensors:
            prompt, embedding = tensors.get_tensor("prompt"), tensors.get_tensor("embedding")
        tokenizer = tokenizer if tokenizer is not None else _tokenizer(folder / TOKENIZER)
        head, position = info.place.get("head_token_ids", ()), info.place.get("prompt_position")
        always_system = needs_system_turn(position, info.template.chat, tokenizer, head)
        return cls(prompt, embedding, row_tokenizer(info.template, tokenizer, False, always_system), head)

    def embeds(self, row: Any) -> Tensor:
        """Return the embeddings of the prompt and a row's source text, [P+T, H].

        A row has the template's columns. With a template for conversations it may be a list of messages. A warning
        tells once if the chat template leaves something out of a row.
        """
        content = self.coder.read_content(row)
        self._warning.see(None, content.unwritten)
        return torch.cat([self.prompt, self.embedding[without_head(content.ids, self.head)]])

    def payload(self, row: Any) -> str:
        """Return the value of a request's `prompt_embeds`: the saved tensor in base64."""
        buffer = io.BytesIO()
        torch.save(self.embeds(row), buffer)
        return base64.b64encode(buffer.getvalue()).decode()

    def request(self, row: Any, model: str, **options: Any) -> dict[str, Any]:
        """Return a request to `/v1/completions`; send it with `client.completions.create(**request)` (OpenAI client).

        Args:
            row: as for `embeds`.
            model: the backbone's name on the server.
            **options: options of the API: `max_tokens`, `temperature`, …; in `extra_body` those of vLLM's own.

        Returns:
            The client's arguments. `prompt` is empty, and the embeddings are in `extra_body`, with the token that ends
            a target.

        Raises:
            PromptTuningError: an option would take the place of the embeddings.
        """
        own = dict(options.pop("extra_body", None) or {})
        if given := [name for name in ("prompt", "prompt_embeds") if name in options or name in own]:
            raise PromptTuningError(
                f"{given[0]} is given, and the prompt and the row are the embeddings; leave it out."
            )
        limit = self.coder.template.max_target_length
        defaults: dict[str, Any] = {"temperature": 0.0} | ({} if limit is None else {"max_tokens": limit})
        body: dict[str, Any] = {"prompt_embeds": self.payload(row)}
        # Plain text ends with the tokenizer's EOS, which the server's generation config may not know.
        ends = self.coder.end_ids or [self.coder.tokenizer.eos_token_id]
        body["stop_token_ids"] = list(dict.fromkeys([*ends, *own.pop("stop_token_ids", ())]))
        return defaults | {"model": model, "prompt": "", "extra_body": own | body} | options
