"""`pipeline("prompt-classification")` and `pipeline("prompt-generation")`: raw rows in, labels or texts out.

`registration` registers both with transformers. The template of its prompt turns each row into text. One batch may
hold rows of several prompts on one backbone.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Pipeline, PreTrainedTokenizerBase

from ..data.chat_template import ChatTemplate
from ..data.chat_tokenization import RowTemplate
from ..data.encoded_rows import TYPES
from ..data.message_content import joined
from ..data.messages import ASSISTANT, FUNCTION_CALL, is_chat, read_messages
from ..data.processors import is_processor
from ..data.rows import series_row, table_rows
from ..data.tokenization import PromptTokenizer
from ..data.unwritten import UnwrittenWarning
from ..errors import PromptTuningError
from ..hub.backbones import load_tokenizer
from ..layouts.label_search import LabelSearch
from ..models.model_classes import check_writes_text
from ..models.soft_prompts import SoftPrompts
from .pipeline_loading import NamedPrompt
from .writing_options import OF_THE_TEXT, generate_options, is_greedy, merge_options, new_tokens, split_options


@dataclasses.dataclass(frozen=True)
class _Row:
    """An input of a call. (Not a tuple, because transformers would look for messages in it.)

    Attributes:
        content: what the caller gave.
        adapter_name: its prompt.
        number: counted from 1; None for the only input.
        unwritten: in words, what the chat template left out of it.
        pictures: its pictures.
    """

    content: Any
    adapter_name: str
    number: int | None = None
    unwritten: str | None = None
    pictures: Sequence[Any] = ()


class PromptPipeline(Pipeline):
    """Base class of both pipelines: turns a row into token ids with the template of its prompt.

    Args:
        model: a prompt's Hub id or folder (in `pipeline(…)`), or a prompt-tuning model (then pass `tokenizer`).
        tokenizer: the backbone's tokenizer.
        processor: the backbone's processor, for rows with pictures; default that of a prompt given by its name.
        **kwargs: as in transformers' `Pipeline`.

    Raises:
        PromptTuningError: the model has no prompt, or the prompt has no template.
    """

    _load_tokenizer = False  # `load_prompt` loads it, at the same commit as the backbone
    _load_processor = _load_image_processor = _load_feature_extractor = _load_video_processor = False
    _pipeline_calls_generate = False
    classifies: bool

    def __init__(self, model: SoftPrompts | NamedPrompt, tokenizer: Any = None, processor: Any = None, **kwargs: Any):
        if isinstance(model, NamedPrompt):
            model, tokenizer, processor = model.taken(tokenizer, processor)
        if not isinstance(model, SoftPrompts):
            raise PromptTuningError(
                f"model is a {type(model).__name__}; give a prompt's Hub id or folder, or a model from load_prompt."
            )
        if is_processor(tokenizer):
            tokenizer, processor = None, tokenizer
        if tokenizer is None and processor is not None:
            tokenizer = processor.tokenizer
        if "adapter_names" in kwargs:
            raise PromptTuningError("adapter_names is given to the pipeline; give it to each call of it.")
        self._coders: dict[str, PromptTokenizer] = {}
        super().__init__(model=model, tokenizer=_padding(tokenizer), processor=processor, **kwargs)
        self._coder(model.active_adapter)

    def __call__(self, inputs: Any, adapter_names: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Return labels or texts for one row or several.

        Args:
            inputs: a row, a list or table (pandas, pyarrow, polars) of rows, or a dataset or generator of rows, which
                returns its results one by one. A row is a dict of columns, or the text itself if the template has one
                column. A prompt for conversations takes chats, too: a list of messages, or a list of such lists.
            adapter_names: the prompt for all rows, or (for a list) a prompt for each row; default: the active prompt.
            **kwargs: `batch_size` and `num_workers` as in transformers, and the options of the pipeline.

        Raises:
            PromptTuningError: a name is unknown, the number of names differs from the number of rows, or a row lacks a
                column.
        """
        names = self.model.active_adapter if adapter_names is None else adapter_names
        inputs = table_rows(inputs)
        if isinstance(names, str) and is_chat(inputs) and isinstance(self._coder(names).template, ChatTemplate):
            return super().__call__([_Row(inputs, names)], **kwargs)[0]
        if isinstance(inputs, list):
            if isinstance(names, str):
                names = [names] * len(inputs)
            if len(names) != len(inputs):
                raise PromptTuningError(f"adapter_names has {len(names)} names for {len(inputs)} rows; give as many.")
            pairs = enumerate(zip(inputs, names, strict=True), 1)
            rows = [_Row(content, name, number) for number, (content, name) in pairs]
            return super().__call__(rows, **kwargs) if rows else []
        if not isinstance(names, str):
            raise PromptTuningError("adapter_names is a list, and inputs are none; give one name, or a list of rows.")
        inputs = series_row(inputs, self._coder(names).template.source_columns)
        if isinstance(inputs, Mapping | str):
            return super().__call__([_Row(inputs, names)], **kwargs)[0]
        if not isinstance(inputs, Iterable | Dataset):
            raise PromptTuningError(f"inputs is a {type(inputs).__name__}; give a row, a list of rows, or a dataset.")
        return super().__call__((_Row(content, names, number) for number, content in enumerate(inputs, 1)), **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """Return the results of one call. It warns once of what the chat template leaves out of the inputs."""
        forward_params = {**forward_params, "warning": UnwrittenWarning("the inputs hold")}
        return super().get_iterator(
            inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
        )

    def forward(self, model_inputs: dict[str, Any], warning: UnwrittenWarning | None = None, **params: Any) -> Any:
        """Run the model on a batch. The warning is here, and not in `preprocess`, which may run in other processes."""
        rows = model_inputs["row"]
        if warning is not None:
            for row in rows if isinstance(rows, list) else [rows]:
                warning.see(row.number, row.unwritten)
        return super().forward(model_inputs, **params)

    def _coder(self, name: str) -> PromptTokenizer:
        """Return the tokenizer for a prompt's template.

        Raise PromptTuningError if the prompt is unknown, has no template, or is for the other pipeline.
        """
        if name not in self._coders:
            check_writes_text(self.model)
            if name not in self.model.prompt_info:
                known = ", ".join(map(repr, self.model.prompt_info))
                raise PromptTuningError(f"adapter_names has {name!r}; this model's prompts are {known}.")
            template = self.model.prompt_info[name].template
            if template is None or template.is_classification != self.classifies:
                raise self._unfit(name, template)
            self._coders[name] = self.model.row_encoder(self.processor or self.tokenizer, template, name)
        return self._coders[name]

    def _unfit(self, name: str, template: RowTemplate | None) -> PromptTuningError:
        if template is None:
            return PromptTuningError(
                f"the prompt {name!r} has no template, and {type(self).__name__} makes text of rows by it. "
                f"Set model.prompt_info[{name!r}].template."
            )
        does, other = (
            ("writes text", "prompt-generation") if self.classifies else ("classifies", "prompt-classification")
        )
        return PromptTuningError(
            f"the prompt {name!r} {does}, which is not for {type(self).__name__}. Use pipeline({other!r}) for it."
        )

    def preprocess(self, row: _Row) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` [1, T], `row`, `which` [1], its prompt's index in `prompt_info`.

        With a processor also the types of tokens, [1, T], if the backbone has any.
        """
        try:
            content = self._coder(row.adapter_name).read_content(row.content)
        except PromptTuningError as error:
            if row.number is None:
                raise
            raise PromptTuningError(f"row {row.number}: {error}") from error
        row = dataclasses.replace(row, unwritten=content.unwritten, pictures=content.pictures)
        ids, types = torch.tensor([content.ids]), {name: torch.tensor([v]) for name, v in content.types.items()}
        which = torch.tensor([list(self.model.prompt_info).index(row.adapter_name)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, "which": which, "row": row}

    def _texts(self, batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        """Return what the model takes of some rows of a batch: texts, and what the processor makes of pictures."""
        texts = {name: batch[name][rows] for name in ("input_ids", "attention_mask", *TYPES) if name in batch}
        reader = self._coder(self._names(batch)[0]).pictures
        if reader is None:
            return texts
        given = batch["row"] if isinstance(batch["row"], list) else [batch["row"]]
        pixels = reader.pixels([given[row].pictures for row in rows])
        return texts | {name: values.to(self.device) for name, values in pixels.items()}

    def _names(self, batch: Mapping[str, Tensor]) -> list[str]:
        """Return the prompt's name for each row."""
        names = list(self.model.prompt_info)
        return [names[i] for i in batch["which"].tolist()]


def _padding(tokenizer: PreTrainedTokenizerBase | str | None) -> PreTrainedTokenizerBase:
    """Return the pipeline's tokenizer, with a pad token; load it if a name was given.

    Raise PromptTuningError if there is none, and PromptLoadError if it could not be loaded.
    """
    if tokenizer is None:
        raise PromptTuningError("tokenizer is not given; give it as tokenizer=…, the one that load_prompt returns.")
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer, None, {}, "Give another as tokenizer=….")
    if tokenizer.pad_token_id is None:
        # A batch needs a pad token. Padded positions are masked, so any token works.
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class PromptClassificationPipeline(PromptPipeline):
    """Return labels with their scores: `{"label", "score"}`, or with `top_k` a list of them, best first.

    As in transformers' `text-classification`, `top_k` is a number of labels, or None for all of them. Without it, a
    row gets its best label alone.

    Scores sum to 1. They are the softmax of the labels' log-likelihoods divided by a temperature. The temperature was
    fitted in the prompt's last evaluation (`PromptInfo.calibration`); for a prompt that was never evaluated it is 1.

    Of many labels, those that cannot be among the best are not computed, unless `top_k` is None. All together they
    have a thousandth of a row's scores at most, so that a score is right to 0.001.
    """

    classifies = True

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        """Check the options. A `top_k` that is too large returns all labels."""
        if others := [name for name in options if name != "top_k"]:
            raise PromptTuningError(
                f"{others[0]} is given, which the prompt-classification pipeline does not take; leave it out."
            )
        top_k = options.get("top_k")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise PromptTuningError(
                f"top_k is {top_k!r:.80}; give 1 or more labels, None for all, or leave it out for the best alone."
            )
        return {}, options, options

    def _forward(self, batch: dict[str, Tensor], top_k: int | None = 1) -> dict[str, Tensor]:
        # Rank all rows with the same labels in one call, even if their prompts differ.
        names, by_labels = self._names(batch), {}
        for row, name in enumerate(names):
            by_labels.setdefault(tuple(map(tuple, self._coder(name).label_token_ids)), []).append(row)
        ids = batch["input_ids"]
        scores = torch.full((len(ids), max(map(len, by_labels))), -torch.inf, device=ids.device)
        temperatures = torch.tensor([self._temperature(name) for name in names], device=ids.device)
        for candidates, rows in by_labels.items():
            search = None if top_k is None else LabelSearch(top_k, temperatures=temperatures[rows])
            scores[rows, : len(candidates)] = self.model(
                **self._texts(batch, rows),
                candidates=candidates,
                adapter_names=[names[row] for row in rows],
                search=search,
            ).scores
        return {"scores": scores, "which": batch["which"]}

    def _temperature(self, name: str) -> float:
        return self.model.prompt_info[name].calibration.get("temperature", 1.0)

    def postprocess(self, outputs: dict[str, Tensor], **options: Any) -> dict | list[dict]:
        """Return one row's labels: those that `top_k` asks for, or the best alone."""
        (name,) = self._names(outputs)
        template = self._coder(name).template
        scores = outputs["scores"][0, : len(template.labels)] / self._temperature(name)
        shares = scores.softmax(-1).tolist()
        ranked = sorted(zip(template.label_words.values(), shares, strict=True), key=lambda pair: -pair[1])
        labels = [{"label": words, "score": share} for words, share in ranked]
        return labels[: options["top_k"]] if options else labels[0]


class PromptGenerationPipeline(PromptPipeline):
    """Return texts: `{"generated_text"}`, or with `num_return_sequences` a list of them, without the input text.

    For a chat (a list of messages), return a list of `{"generated_text"}` as transformers' `text-generation` does:
    each is the chat with the assistant's message, or with `return_full_text=False` its text alone.
    """

    classifies = False

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        """Split the options: those of transformers' `generate` with `stop_sequence`, and those of decoding."""
        settings, decoding = split_options(options)
        return {}, {"settings": settings} if settings else {}, decoding

    def _forward(self, batch: dict[str, Tensor], settings: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        made = self._forward_params.get("settings", {})
        settings = made if settings is None or settings is made else merge_options(made, settings)
        names, model_config = self._names(batch), self.model.generation_config
        is_decoder_only = not self.model.config.is_encoder_decoder
        lengths = batch["attention_mask"].sum(1).tolist() if is_decoder_only else [1] * len(names)
        limits = [
            new_tokens(settings, self._coder(name).template.max_target_length, model_config, length)
            for name, length in zip(names, lengths, strict=True)
        ]
        # A greedy text that is cut to a limit equals the text generated with that limit, so one pass is enough. The
        # result of a search depends on its limit, so each limit needs its own pass.
        is_cut = is_greedy(settings, model_config)
        texts: list[Tensor] = [torch.empty(0)] * len(names)
        # Rows with other end tokens, those of a chat's turn, need a pass of their own, too.
        passes: dict[tuple, list[int]] = {}
        for row, name in enumerate(names):
            limit = max(limits) if is_cut else limits[row]
            passes.setdefault((limit, *self._coder(name).end_ids), []).append(row)
        for (limit, *end_ids), rows in passes.items():
            sequences = self.model.generate(
                **self._texts(batch, rows),
                adapter_names=[names[row] for row in rows],
                **generate_options(settings, limit, self.tokenizer, model_config, end_ids),
            )
            # The first token of an encoder-decoder's output is the start token and not text.
            new = sequences[:, batch["input_ids"].shape[1] if is_decoder_only else 1 :]
            for row, ids in zip(rows, new.unflatten(0, (len(rows), -1)), strict=True):
                texts[row] = ids[:, : limits[row]]
        width, pad = max(ids.shape[1] for ids in texts), self.tokenizer.pad_token_id
        padded = [torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=pad) for ids in texts]
        return {"sequences": torch.stack(padded), "which": batch["which"], "row": batch["row"]}

    def postprocess(self, outputs: dict[str, Any], **decoding: Any) -> dict | list[dict]:
        """Return one row's texts; of a chat a list of chats, as transformers' `text-generation` does."""
        full = decoding.pop("return_full_text", None) is not False
        texts = self.tokenizer.batch_decode(outputs["sequences"][0], **OF_THE_TEXT | decoding)
        chat = outputs["row"].content
        if isinstance(chat, list | tuple):
            return [{"generated_text": answered(chat, text) if full else text} for text in texts]
        records = [{"generated_text": text.strip()} for text in texts]
        return records[0] if len(records) == 1 else records


def answered(chat: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Return a chat with the assistant's text: as a message more, or at the end of its last message.

    The message has the keys of the chat's last one, and the name that the chat has for the assistant.
    """
    role, content = ("role", "content") if "role" in chat[-1] else ("from", "value")
    messages = read_messages(chat, "the chat")
    if messages[-1]["role"] == ASSISTANT:
        return [*chat[:-1], {**chat[-1], content: joined(messages[-1]["content"]) + text}]
    pairs = zip(messages, chat, strict=True)
    names = {message["role"]: given.get(role) for message, given in pairs if given.get(role) != FUNCTION_CALL}
    default = ASSISTANT if role == "role" or names.get("user") == "user" else "gpt"
    return [*chat, {role: names.get(ASSISTANT) or default, content: text}]
