"""Prompts for a server that holds the backbone alone: embeddings of prompt and text, as vLLM takes them.

vLLM has no soft prompts, but it takes a request's input embeddings (`vllm serve --enable-prompt-embeds`). So the
prompt and the text are put together here, on the client's side, which needs the backbone's embedding and nothing else
of it.
"""

import base64
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.tokenization import PromptTokenizer
from ..errors import PromptLoadError, PromptTuningError
from ..models.causal_lm import PromptTuningModelForCausalLM
from ..models.load import load_prompt
from ..prompts.files import read_json
from ..prompts.info import INFO_FILE, PromptInfo
from ..sharding import whole

EMBEDDINGS_FILE = "embeddings.safetensors"


def export_vllm(prompt: str | Path | PromptTuningModelForCausalLM, out: str | Path, **load: Any) -> Path:
    """Writes all that a client needs into a folder: prompt, embedding matrix, template and tokenizer.

    Args:
        prompt: a Hub id or folder, or a model with its active prompt (then give `tokenizer`).
        out: made where it does not exist; what it held of an earlier export is replaced.
        **load: to `load_prompt`.

    Returns:
        The folder. `VllmPrompt.load` reads it.

    Raises:
        PromptTuningError: an encoder-decoder model, no template, no tokenizer, or a backbone that changes its
            embeddings after looking them up (Gemma), which a server may do once more.
        PromptLoadError: as `load_prompt`.
    """
    if isinstance(prompt, str | Path):
        model, tokenizer, template = load_prompt(prompt, **load)
    else:
        model, tokenizer, template = prompt, load.get("tokenizer"), prompt.info.template
    if not isinstance(model, PromptTuningModelForCausalLM):
        raise PromptTuningError(
            f"the prompt is of a {type(model).__name__}; vLLM takes embeddings for causal models alone."
        )
    if tokenizer is None or template is None:
        lacks = "tokenizer" if tokenizer is None else "template"
        raise PromptTuningError(f"the prompt has no {lacks}, without which rows cannot be told to it; give {lacks}=….")
    embed = model.word_embeddings
    with whole(embed):
        probe = torch.arange(min(8, embed.num_embeddings), device=embed.weight.device)
        if not torch.equal(embed.forward(probe), embed.weight[probe]):
            raise PromptTuningError(
                f"{type(model.base_model).__name__} changes its embeddings after looking them up, and a server may do "
                "so with those that it is given. Serve it with transformers."
            )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    weight = embed.weight.detach().cpu()
    save_file(
        {"prompt": model.prompt.detach().to(weight.dtype).cpu(), "embedding": weight.contiguous()},
        folder / EMBEDDINGS_FILE,
    )
    model.info.write(folder)
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


class VllmPrompt:
    """A client's side of a prompt that `export_vllm` wrote.

    Args:
        prompt: [P, H], in the backbone's dtype.
        embedding: [V, H], in the same.
        coder: the template's tokenization.
    """

    def __init__(self, prompt: Tensor, embedding: Tensor, coder: PromptTokenizer):
        self.prompt, self.embedding, self.coder = prompt, embedding, coder

    @classmethod
    def load(cls, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> "VllmPrompt":
        """The prompt of a folder.

        Args:
            folder: as `export_vllm` wrote it.
            tokenizer: in place of the folder's.

        Raises:
            PromptLoadError: a file is missing or damaged.
        """
        folder = Path(folder)
        info = read_json(folder / INFO_FILE, PromptInfo.from_json)
        try:
            tensors = load_file(folder / EMBEDDINGS_FILE)
            prompt, embedding = tensors["prompt"], tensors["embedding"]
        except Exception as error:  # safetensors has an error type of its own
            raise PromptLoadError(f"{folder / EMBEDDINGS_FILE} is not whole: {error}; export it again.") from error
        tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(folder / "tokenizer")
        return cls(prompt, embedding, PromptTokenizer(info.template, tokenizer, is_encoder_decoder=False))

    def embeds(self, row: Mapping[str, Any]) -> Tensor:
        """Prompt and source of a row as the backbone gets them, [P+T, H]."""
        ids, _ = self.coder.source_ids(row)
        return torch.cat([self.prompt, self.embedding[torch.tensor(ids)]])

    def payload(self, row: Mapping[str, Any]) -> str:
        """What the request's `prompt_embeds` holds: the saved tensor in base64."""
        buffer = io.BytesIO()
        torch.save(self.embeds(row), buffer)
        return base64.b64encode(buffer.getvalue()).decode()

    def request(self, row: Mapping[str, Any], model: str, **options: Any) -> dict[str, Any]:
        """The JSON of a request to `/v1/completions`; by the OpenAI client, `client.completions.create(**request)`.

        Args:
            row: the template's columns.
            model: the name that the server serves the backbone by.
            **options: of the API: `max_tokens`, `temperature`, …

        Returns:
            For the client: `prompt` is empty, and the embeddings are in `extra_body`.
        """
        limit = self.coder.template.max_target_length
        defaults: dict[str, Any] = {"temperature": 0.0} | ({} if limit is None else {"max_tokens": limit})
        return defaults | {"model": model, "prompt": "", "extra_body": {"prompt_embeds": self.payload(row)}} | options
