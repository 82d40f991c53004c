"""Evaluate prompts: rank labels, generate texts, and average losses over tokens.

The results do not depend on the batch size.
"""

import copy
import logging
import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, has_length

from ..data.encoded_rows import count_rows
from ..data.encoding import check_kind
from ..layouts.sharing import ByContext
from ..models.calibration import CALIBRATION_ROWS
from ..models.metric_direction import value_of
from ..models.recording import to_record
from ..models.scoring import longest_target
from ..models.soft_prompts import SoftPrompts
from .answer_loss import AnswerLoss
from .answer_scorer import AnswerScorer
from .head_loss import HeadLoss
from .head_scorer import HeadScorer
from .scorer import RowResults, Scorer
from .token_rows import RowEncoder

logger = logging.getLogger(__name__)

_IN_USE: ByContext[Scorer | None] = ByContext("scorer", None)


class EvaluationMixin:
    """Let a `Trainer` evaluate and predict with a `Scorer`, row by row in order, and record metrics in the prompt.

    `rows` turns the prompt's data into token ids. The other arguments are those of `Trainer`.

    Attributes:
        head_loss: the loss of a head, of classes or of answers; None for a language model.
    """

    head_loss: HeadLoss | AnswerLoss | None = None

    def __init__(
        self,
        *,
        rows: RowEncoder,
        compute_metrics: Any = None,
        preprocess_logits_for_metrics: Any = None,
        **kwargs: Any,
    ):
        self.rows = rows
        self._extra_metrics, self._preprocess_logits = compute_metrics, preprocess_logits_for_metrics
        super().__init__(compute_metrics=self._compute_metrics, **kwargs)
        self._known_baselines: dict[str, dict[str, float]] = {}
        self._eval_dataloaders: dict[str, DataLoader] = {}  # made here, so that copies of the trainer share it

    @property
    def unwrapped(self) -> SoftPrompts:
        """The trainer's model without what Accelerate wraps it in."""
        return self.accelerator.unwrap_model(self.model)

    def make_scorer(self, **options: Any) -> Scorer:
        """Return the scorer for an evaluation of the trainer's data; `options` are fields of `Scorer`."""
        return self.scorer_of_prompt(**options)

    def scorer_of_prompt(self, **options: Any) -> Scorer:
        """Return the scorer of the active prompt; `options` are fields of `Scorer`."""
        if self.head_loss is not None:
            own = {"compute_metrics": self._extra_metrics, "preprocess_logits": self._preprocess_logits}
            if isinstance(self.head_loss, AnswerLoss):
                return AnswerScorer(self.rows, self.args, loss=self.head_loss, **{**own, **options})
            return HeadScorer(self.rows, self.args, head=self.head_loss, **{**own, **options})
        rows, data = self.rows_and_data()
        template = None if rows.tokenizer is None else rows.tokenizer.template
        writes = template is not None and not template.is_classification
        if writes and getattr(self.args, "predict_with_generate", True):
            options.setdefault("max_new_tokens", template.max_target_length or longest_target(data))
        own = {"compute_metrics": self._extra_metrics, "preprocess_logits": self._preprocess_logits}
        return Scorer(rows, self.args, **{**own, "teaching": rows.teaching, **options})

    def rows_and_data(self) -> tuple[RowEncoder, Any]:
        """Return what encodes the active prompt's rows, and data whose targets bound the length of generated texts."""
        return self.rows, self.train_dataset if self.train_dataset is not None else self.eval_dataset

    @property
    def _scorer(self) -> Scorer:
        """The scorer in use: the one of the evaluation that is running."""
        return _IN_USE.of(self) or self.make_scorer()

    def using_scorer(self, scorer: Scorer) -> AbstractContextManager[None]:
        """Score with this scorer within the context."""
        return _IN_USE.set_to(scorer, self)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the evaluation data loader as `Trainer` does. A dataset of raw columns is tokenized.

        With persistent workers, `Trainer` would reuse the loader of its own data for a dataset that is passed in.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        return super().get_test_dataloader(self._scorer.rows(eval_dataset, "evaluation", require_target=False))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the test data loader as `Trainer` does.

        A dataset of raw columns is tokenized. Rows of token ids may have no labels. They are not compared with a
        teacher, whose context they may lack.
        """
        check_kind(test_dataset, "test")
        rows = replace(self._scorer.rows, teaching=None)
        test_dataset = test_dataset if rows.tokenizer is not None else rows.with_missing_labels(test_dataset)
        return super().get_test_dataloader(rows(test_dataset, "test", require_target=False))

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        # Trainer's sampler groups evaluation rows by length if training does. With several processes, Accelerate
        # distributes the rows.
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) and self.args.world_size <= 1 else None

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """Return a data loader as `Trainer` does. One for evaluation reads all rows in their order."""
        if is_training:
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        # `Trainer` reads its arguments here: let a copy of this trainer, with others, make the loader.
        reader = copy.copy(self)
        reader.args = copy.copy(self.args)
        reader.args.dataloader_drop_last, reader.args.dataloader_in_order = False, True
        if isinstance(dataset, IterableDataset):
            # Several workers would each read a part of the stream and return batches in turn, which mixes up the rows.
            reader.args.dataloader_num_workers = min(1, self.args.dataloader_num_workers)
        return super(EvaluationMixin, reader)._get_dataloader(dataset, *args, **kwargs)

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as `Trainer` does. The scorer sees the data first."""
        self._scorer.reads(dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, RowResults, Tensor]:
        """Return the results of a batch's rows (see `Scorer.score`), as (None, results, references)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, *self._scorer.score(model, inputs, prediction_loss_only)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        return self._scorer.metrics(prediction)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and record the metrics in the prompt.

        Only metrics of the trainer's own evaluation data, the default, under the prefix "eval" are recorded.
        """
        scorer, own = self.make_scorer(), self.is_own(eval_dataset, metric_key_prefix)
        info = self.unwrapped.info
        if own and isinstance(self.eval_dataset, dict):
            info.confusion_matrix, info.calibration = {}, {}  # they would describe only one of the data sets
        elif own:
            rows = len(self.eval_dataset) if has_length(self.eval_dataset) else 0
            scorer = replace(scorer, info=info, calibrated_every=max(-(-rows // CALIBRATION_ROWS), 1))
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        if self.rows.teaching is not None and not several:
            scorer = replace(scorer, constants=self._baselines(eval_dataset, metric_key_prefix))
        metrics = self.evaluate_with(scorer, eval_dataset, ignore_keys, metric_key_prefix)
        if own:
            info.metrics = to_record(metrics)
        return metrics

    def _baselines(self, data: Any, prefix: str) -> dict[str, float]:
        """Return what no prompt, and the first tokens of the teacher's text as one, have in an evaluation.

        They do not change in a run, so they are computed once for each of the trainer's own data sets.
        """
        own = data is None or data is self.eval_dataset or isinstance(data, str)
        if not own or prefix in self._known_baselines:
            return self._known_baselines.get(prefix, {}) if own else {}
        data = self.eval_dataset[data] if isinstance(data, str) else self.eval_dataset
        model, found = self.unwrapped, {}
        contexts = {"no_context": model.disable_adapter()}
        if (vectors := self.rows.teaching.first_vectors(model)) is not None:
            contexts["first_tokens"] = model.replaced_prompt(vectors)
        for name, context in contexts.items():
            metrics = self._predicted_within(context, data, name, max_new_tokens=None, compute_metrics=None)
            found |= {key: metrics[key] for key in (f"{name}_kl", f"{name}_agreement") if key in metrics}
        self._known_baselines[prefix] = found
        return found

    def _predicted_within(
        self, context: AbstractContextManager, data: Any, prefix: str, **options: Any
    ) -> dict[str, float]:
        # A data loader draws a seed. Fork the random state, so that this evaluation does not change the run.
        with context, torch.random.fork_rng(devices=[]):
            return self.predict_with(self.scorer_of_prompt(**options), data, prefix).metrics

    def predict_with(self, scorer: Scorer, data: Any, prefix: str) -> PredictionOutput:
        """Return the output of `Trainer.predict` with a scorer: its `RowResults`, references and metrics."""
        # Do not call `evaluate`: its callbacks would take these metrics for the prompt's.
        with self.using_scorer(scorer):
            return super().predict(data, metric_key_prefix=prefix)

    def is_own(self, data: Any, prefix: str) -> bool:
        """Tell whether an evaluation uses the trainer's own evaluation data and the prefix "eval"."""
        return (data is None or data is self.eval_dataset) and prefix == "eval"

    def evaluate_with(self, scorer: Scorer, *args: Any) -> dict[str, float]:
        """Evaluate as `Trainer.evaluate` does, with a scorer.

        The scorer writes confusion matrix and calibration before the callbacks run, so that callbacks can read them.
        """
        with self.using_scorer(scorer):
            return super().evaluate(*args)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Determine the best metric as `Trainer` does. Warn if it is NaN, raise PromptTuningError if it is missing."""
        name = self.args.metric_for_best_model
        if name is not None and math.isnan(value := value_of(metrics, name)):
            logger.warning("At step %d %s is %s: it is not the best.", self.state.global_step, name, value)
        return super()._determine_best_metric(metrics, trial)

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the metrics of the backbone without the prompt, named `untuned_accuracy` and so on.

        Metrics of the trainer's own data, the default, are recorded in the prompt. For a dict of datasets, each one is
        evaluated, and the metrics are named `untuned_NAME_accuracy` and so on.
        """
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        by_name = {f"untuned_{name}": rows for name, rows in data.items()} if isinstance(data, dict) else {}
        metrics: dict[str, float] = {}
        for prefix, rows in (by_name or {"untuned": data}).items():
            metrics |= self.metrics_without_prompt(rows, prefix)
        if self.is_own(eval_dataset, "eval"):
            self.unwrapped.info.untuned_metrics = to_record(metrics)
        return metrics

    def metrics_without_prompt(self, data: Any, prefix: str) -> dict[str, float]:
        return self._predicted_within(self.unwrapped.disable_adapter(), data, prefix)

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate the prompt on other domains, which it was not trained on, and record the metrics in the prompt.

        This measures zero-shot transfer (Lester et al. 2021, section 5): a prompt that has not overfitted to its own
        domain does well on another domain. The rows of `datasets`, by name, have the columns of the prompt's template.
        Return all metrics, named `transfer_<name>_<metric>`.
        """
        info, transfer = self.unwrapped.info, {}
        for name, data in datasets.items():
            metrics, rows = self.transfer_metrics(self.make_scorer(), name, data)
            info.transfer[name] = to_record(metrics) | {"rows": rows}
            transfer |= {f"transfer_{name}_{metric}": value for metric, value in metrics.items()}
        return transfer

    def transfer_metrics(self, scorer: Scorer, name: str, data: Any) -> tuple[dict[str, float], int]:
        """Return the metrics on a data set, without prefix, and its number of rows."""
        prefix = f"transfer_{name}"
        data = replace(scorer.rows, teaching=None)(data, f"transfer ({name})", require_target=False)
        metrics = self.predict_with(scorer, data, prefix).metrics
        return {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items()}, count_rows(data)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as `Trainer` does; return a `PredictionOutput` in the order of the rows.

        - Classification: `predictions` are label scores [N, L], log-likelihoods in the order of `template.labels`.
          `label_ids` is -1 for rows without a label.
        - Free text: `predictions` are the generated texts, and `label_ids` the reference texts, None for rows without
          one.
        - Rows of token ids: `predictions` are the logits.
        - Classification heads: `predictions` are the logits, [N, L], of numbers to predict [N], of tags [N, T, L] with
          each row's tokens first and -100 behind them. `label_ids` are in the form that the head learns: -100, or NaN
          for floats, where a label is missing.
        - Heads for answers: `predictions` are a list with an `Answer` (text, start, score) for each row, and
          `label_ids` the texts of its answers, None where they are not known.
        """
        scorer = self.make_scorer(with_logits=True)
        with self.using_scorer(scorer):
            output = super().predict(test_dataset, *args, **kwargs)
        outputs, references = scorer.readable(output.predictions, output.label_ids)
        return output._replace(predictions=outputs, label_ids=references)
