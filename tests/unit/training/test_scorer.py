"""A Scorer scores batches and computes metrics without a trainer; its results pass through Trainer's loop."""

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTuningArguments
from hf_prompt_tuning.training.scorer import RowResults, Scorer
from hf_prompt_tuning.training.token_rows import ColumnCheck, RowEncoder
from tests.shared.reference import tiny_prompt_model
from tests.shared.trainers import TEMPLATE


def test_results_are_joined_as_they_are():
    parts = [RowResults(torch.ones(n), torch.full((n,), 2), generated_ids=torch.full((n, n), 5)) for n in (1, 2)]
    joined = nested_numpify(nested_concat(*parts))
    assert isinstance(joined, RowResults) and joined.label_scores is None
    assert joined.nll.tolist() == [1.0, 1.0, 1.0] and joined.tokens.tolist() == [2, 2, 2]
    assert joined.generated_ids.tolist() == [[5, -100], [5, 5], [5, 5]]


def test_a_scorer_needs_no_trainer(tmp_path, tokenizer, messages):
    model = tiny_prompt_model("llama").eval()
    args = PromptTuningArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    columns = ColumnCheck.of_run(model.get_base_model(), args, None, alone=True)
    rows = RowEncoder(model.row_encoder(tokenizer, TEMPLATE), model.room(), None, columns)
    data = rows(messages[:4], "given", require_target=False)
    batch = DataCollatorForPromptTuning(tokenizer)([data[i] for i in range(4)])
    scorer = Scorer(rows, args)
    results, labels = scorer.score(model, batch)
    assert results.label_scores.shape == (4, 2) and results.generated_ids is results.logits is None
    assert torch.equal(results.nll, -results.label_scores[range(4), labels])
    assert "label" in batch  # the caller's batch is not changed
    losses, _ = scorer.score(model, batch, loss_only=True)
    assert losses.label_scores is None
    torch.testing.assert_close(losses.nll, results.nll)
    assert torch.equal(losses.tokens, results.tokens)
    metrics = scorer.metrics(EvalPrediction(nested_numpify(results), labels.numpy()))
    assert metrics["accuracy"] == np.mean(results.label_scores.argmax(1).numpy() == labels.numpy())
    assert metrics["loss"] == float(results.nll.double().sum() / results.tokens.sum())
