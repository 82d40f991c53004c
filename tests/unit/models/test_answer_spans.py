"""The best answer of each row over all spans of its windows, by hand; and what a model is asked."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_prompt_tuning import Answer, AnswerTemplate, PromptTuningConfig, PromptTuningError, get_prompt_tuning_model
from hf_prompt_tuning.models.answer_spans import answers_of_rows, best_spans
from tests.shared.answer_rows import ROWS, TEMPLATE, answer_backbone, answer_tokenizer

IN_CONTEXT = torch.tensor([[0, 0, 1, 1, 1, 0]]).bool()


def spans(starts, ends, longest=3, mask=(1, 1, 1, 1, 1, 1), in_context=IN_CONTEXT):
    logits = torch.tensor([starts]).float(), torch.tensor([ends]).float()
    logits = [values.masked_fill(torch.tensor([mask]) == 0, torch.finfo(torch.float32).min) for values in logits]
    columns, scores = best_spans(*logits, in_context, torch.tensor([mask]), longest)
    # Log-probabilities are logits without a constant.
    constant = sum(values.logsumexp(1) for values in logits)
    return columns[0].tolist(), pytest.approx((scores[0] + constant).tolist(), abs=1e-5)


def test_the_best_span_stands_in_the_context():
    assert spans([9, 8, 1, 3, 0, 9], [9, 0, 0, 1, 2, 9]) == ([3, 4], [5, 18])


def test_a_span_does_not_end_before_it_begins():
    assert spans([0, 0, 0, 0, 5, 0], [0, 0, 7, 3, 1, 0]) == ([2, 2], [7, 0])


def test_a_span_has_so_many_tokens_at_most():
    starts, ends = [0, 0, 5, 1, 0, 0], [0, 0, 0, 2, 6, 0]
    assert spans(starts, ends, longest=3) == ([2, 4], [11, 0])
    assert spans([0, 0, 5, 2, 0, 0], ends, longest=2) == ([3, 4], [8, 0])
    assert spans(starts, ends, longest=1) == ([4, 4], [6, 0])
    assert spans(starts, ends, longest=99) == ([2, 4], [11, 0])  # of which a window has fewer


def test_columns_are_those_of_the_text_without_pads():
    assert spans([-9, 2, 1, 3, 0, 0], [-9, 1, 0, 1, 2, 0], mask=[0, 1, 1, 1, 1, 1]) == ([2, 3], [5, 3])
    nothing = torch.zeros(1, 6).bool()
    assert spans([0] * 6, [0] * 6, in_context=nothing)[1] == [-np.inf, 0]


def test_scores_are_probabilities_in_a_window():
    """So another constant in the logits of a window changes nothing."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [9.0, 10.0, 11.0]])
    _, scores = best_spans(logits, logits, torch.ones(2, 3).bool(), torch.ones(2, 3), 1)
    best, none = (torch.tensor([2.0, 0.0]).exp() / logits[0].exp().sum()).square().tolist()
    assert scores.exp().tolist() == [pytest.approx([best, none])] * 2


CONTEXTS = ["the old town", "a cat"]
WINDOWS = [
    {"window_row": 0, "token_starts": [0, 0, 3], "token_ends": [0, 3, 7], "row_context": CONTEXTS[0]},
    {"window_row": 0, "token_starts": [0, 3, 7], "token_ends": [0, 7, 12], "row_context": None},
    {"window_row": 1, "token_starts": [0, 0, 1], "token_ends": [0, 1, 5], "row_context": CONTEXTS[1]},
]
COLUMNS = np.array([[1, 2], [2, 2], [2, 2]])


@pytest.mark.parametrize(
    ("scores", "no_answers", "expected"),
    [
        # The best span of all windows, without the space that its first token has.
        ([[1, 0], [2, 0], [1, 0]], True, [Answer("town", 8, 2.0), Answer("cat", 2, 1.0)]),
        ([[3, 0], [2, 0], [1, 0]], True, [Answer("the old", 0, 3.0), Answer("cat", 2, 1.0)]),
        # No answer is found where all windows say so.
        ([[3, 9], [2, 4], [1, 5]], True, [Answer("", None, 4.0), Answer("", None, 5.0)]),
        ([[3, 9], [2, 4], [1, 5]], False, [Answer("the old", 0, 3.0), Answer("cat", 2, 1.0)]),
        ([[3, 9], [2, 1], [1, 1]], True, [Answer("the old", 0, 3.0), Answer("cat", 2, 1.0)]),
        # Of equal ones the first; a window may have no span.
        ([[2, 0], [2, 0], [-np.inf, 0]], False, [Answer("the old", 0, 2.0), Answer("", None, 0.0)]),
    ],
)
def test_the_answer_of_a_row(scores, no_answers, expected):
    found = answers_of_rows(WINDOWS, COLUMNS, np.array(scores, dtype=np.float32), no_answers)
    assert [answer[:2] for answer in found] == [answer[:2] for answer in expected]
    assert [math.log(answer.score) for answer in found] == pytest.approx([answer.score for answer in expected])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    return get_prompt_tuning_model(answer_backbone(), config).eval()


def test_a_model_is_asked_one_question_or_several(model):
    tokenizer = answer_tokenizer()
    questions, contexts = [row[0] for row in ROWS], [row[1] for row in ROWS]
    found = model.answer(tokenizer, questions, contexts, TEMPLATE, batch_size=3)
    for question, context, answer in zip(questions, contexts, found, strict=True):
        alone = model.answer(tokenizer, question, context, TEMPLATE)
        assert alone[:2] == answer[:2] and alone.score == pytest.approx(answer.score, rel=1e-5)
        assert answer.text and context[answer.start : answer.start + len(answer.text)] == answer.text
    other = AnswerTemplate("q", "c", "a", max_length=40, stride=8, longest_answer=6)
    assert model.answer(tokenizer, questions[0], contexts[0], other) == model.answer(
        tokenizer, questions[0], contexts[0], TEMPLATE
    )
    model.answer(tokenizer, questions[0], contexts[0])  # a prompt without a template has the default one
    assert model.answer(tokenizer, [], []) == []
    data = Dataset.from_dict({"question": questions, "context": contexts})
    for columns in ((data["question"], data["context"]), (tuple(questions), tuple(contexts))):
        assert model.answer(tokenizer, *columns, TEMPLATE, batch_size=3) == found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_white_space_is_no_answer(model, kind):
    """Though some of it are tokens of their own."""
    tokenizer, contexts = answer_tokenizer(kind), ["   \n day  ", "\n\n a \n\n dog \n\n", " \u00a0 night"]
    for questions in (["what"] * 3, ["who is big"] * 3):
        for context, answer in zip(contexts, model.answer(tokenizer, questions, contexts), strict=True):
            assert answer.text.strip() == answer.text != ""
            assert context[answer.start : answer.start + len(answer.text)] == answer.text


def test_what_a_model_is_not_asked(model):
    tokenizer = answer_tokenizer()
    for question, context, message in (
        ("who", ["a"], "question is a str, and context a list; give two texts, or two lists of texts"),
        (["who"], "a", "question is a list, and context a str; give two texts"),
        (np.array(["who"]), np.array(["a"]), "question is a ndarray, and context a ndarray; give two texts"),
        (["who"], ["a", "b"], "there are 1 questions and 2 contexts"),
        (["who", "what"], ["a", ""], "question 2: 'context' holds ''; give a text"),
        (["who", None], ["a", "b"], "question 2: 'question' holds None; give a text"),
    ):
        with pytest.raises(PromptTuningError, match=message):
            model.answer(tokenizer, question, context)
    for size in (0, -1, 2.0):
        with pytest.raises(PromptTuningError, match=f"batch_size is {size}; give 1 or more windows"):
            model.answer(tokenizer, "who", "a", batch_size=size)
    with pytest.raises(PromptTuningError, match="max_length is 500, and behind the prompt the backbone has positions"):
        model.answer(tokenizer, "who", "a", AnswerTemplate(max_length=500))
    with pytest.raises(PromptTuningError, match="template is a str, and the backbone's head finds answers"):
        model.answer(tokenizer, "who", "a", "{question}")
