"""Load an ensemble of prompts and predict by majority vote."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import RowTemplate
from ..data.contents import Content, model_inputs
from ..data.processors import tokenizer_in
from ..data.rows import column_names, series_row, table_rows
from ..data.unwritten import UnwrittenWarning
from ..errors import PromptLoadError, PromptTuningError
from ..hub.files import OPTIONS, Place, read_whole
from ..layouts.base import IGNORED
from ..models.load import describe_parts, load_prompt
from ..models.scoring import decode, generate_within, rank_labels
from ..models.soft_prompts import SoftPrompts
from ..prompts.ensemble_info import ENSEMBLE_FILE, EnsembleInfo
from ..prompts.files import open_place, read_json
from .voting import by_member, encoder_for_members, for_members, label_record, text_record


class PromptEnsemble:
    """Several prompts of one task on one backbone, which predict by majority vote (Lester et al. 2021, section 6).

    Args:
        model: a model that has all member prompts.
        members: names of the member prompts.
        tokenizer: the backbone's tokenizer; for rows with pictures, its processor.
        template: the template that all members were trained with.

    Raises:
        PromptTuningError: the chat template writes another head than a member's.
    """

    def __init__(
        self, model: SoftPrompts, members: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: RowTemplate
    ):
        self.model = model
        self.members = list(members)
        self.tokenizer = tokenizer_in(tokenizer)
        self.template = template
        self._encoder = encoder_for_members(model, self.members, tokenizer, template)

    def __repr__(self) -> str:
        described = describe_parts(self.model, self.tokenizer, self.template)
        return f"PromptEnsemble({', '.join(self.members)} on {described})"

    def predict(self, rows: Any, batch_size: int = 16) -> list[dict[str, Any]]:
        """Return the ensemble's prediction for each row.

        Args:
            rows: a list, a dataset, a generator or a table (pandas, pyarrow, polars) of rows. A row is a dict of the
                template's columns, or the text itself if the template has one column.
            batch_size: rows in one call of the backbone; each row is repeated for every prompt in the same call.

        Returns:
            For each row a dict: `prediction` (a label's words, or a text), `votes` (each prompt's prediction), and,
            for classification, `scores` (each label's log-likelihood, summed over the prompts).

        Raises:
            PromptTuningError: `rows` is a single row, or a row lacks a column of the template or has no text.
        """
        contents = self._contents(rows)
        records: list[dict[str, Any]] = []
        for start in range(0, len(contents), batch_size):
            batch = self._batch(contents[start : start + batch_size])
            if self.template.is_classification:
                records += [label_record(self.template, self.members, scores) for scores in self._ranked(batch)]
            else:
                records += [text_record(self.members, texts) for texts in self._written(batch)]
        return records

    def scores(self, rows: Any) -> np.ndarray:
        """Return every prompt's log-likelihood of every label for every row, [B, G, L], from one backbone call.

        Rows and errors are as in `predict`.
        """
        return self._ranked(self._batch(self._contents(rows)))

    def _contents(self, rows: Any) -> list[Content]:
        """Return the token ids of each row's source. Targets in the rows are ignored."""
        columns = self.template.source_columns
        table = series_row(table_rows(rows), columns)
        if isinstance(table, Mapping | str) or not isinstance(table, Iterable | Dataset):
            raise PromptTuningError(
                f"rows is a {type(rows).__name__}; give a list of rows, each a dict of {column_names(columns)}."
            )
        warning = UnwrittenWarning("the rows hold")
        return [self._content(row, number, warning) for number, row in enumerate(table, start=1)]

    def _content(self, row: Any, number: int, warning: UnwrittenWarning) -> Content:
        try:
            content = self._encoder.read_content(row)
        except PromptTuningError as error:
            raise PromptTuningError(f"row {number}: {error}") from error
        warning.see(number, content.unwritten)
        return content

    def _batch(self, contents: list[Content]) -> dict[str, Any]:
        inputs = model_inputs(contents, self.tokenizer, self._encoder.pictures)
        batch = dict(inputs.to(self.model.device))
        return batch | {"labels": torch.full_like(batch["input_ids"], IGNORED)}  # no row is more than a source

    def _ranked(self, batch: dict[str, Any]) -> np.ndarray:
        ids, seq2seq = self._encoder.label_token_ids, self._encoder.is_encoder_decoder
        scores = rank_labels(self.model, for_members(batch, self.members), ids, seq2seq)
        return by_member(scores, self.members).cpu().numpy()

    def _written(self, batch: dict[str, Any]) -> list[list[str]]:
        rows, limit = for_members(batch, self.members), self.template.max_target_length or 128
        ids = by_member(generate_within(self.model, rows, self.tokenizer, limit, self._encoder.end_ids), self.members)
        return [decode(texts, self.tokenizer) for texts in ids.cpu().numpy()]


def load_ensemble(prompt: str | Path, **kwargs: Any) -> PromptEnsemble:
    """Load a saved ensemble and its backbone.

    The model has every member under its name, and the best prompt as "default", which is active.

    Args:
        prompt: the folder or Hub id of an ensemble.
        **kwargs: as in `load_prompt` (`backbone`, `tokenizer`, `revision`, `token`, …).

    Raises:
        PromptLoadError: it is not an ensemble, could not be loaded, or is damaged or unsafe.
        PromptMismatchError: a prompt was trained on another backbone.
    """
    hub = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}  # token may be False
    info, place = read_whole(open_place(prompt, **hub), lambda place: _described(place, prompt))
    if place.commit is not None:  # load every prompt at the commit of the description
        kwargs["revision"] = hub["revision"] = place.commit
    loaded = load_prompt(prompt, **kwargs)
    if loaded.template is None or loaded.tokenizer is None:
        raise PromptLoadError(f"{prompt} has no template, or its backbone no tokenizer here; give tokenizer=….")
    ignore = kwargs.get("ignore_mismatch", False)
    for name in info.members:
        folder = "/".join(filter(None, (hub.get("subfolder"), name)))
        loaded.model.load_adapter(prompt, name, ignore_mismatch=ignore, **hub | {"subfolder": folder})
        if loaded.model.prompt_info[name].template != loaded.template:
            raise PromptLoadError(f"{prompt}: the prompts {info.best!r} and {name!r} have different templates.")
    place.remember()
    return PromptEnsemble(loaded.model, info.members, loaded.processor or loaded.tokenizer, loaded.template)


def _described(place: Place, prompt: str | Path) -> EnsembleInfo:
    if (file := place.find(ENSEMBLE_FILE)) is None:
        raise PromptLoadError(f"{prompt} has no {ENSEMBLE_FILE}; one prompt is loaded by load_prompt.")
    return read_json(file, EnsembleInfo.from_json)
