"""Every layout against each example computed alone, and its rows token by token."""

import pytest
import torch
from transformers import PreTrainedConfig

from hf_prompt_tuning.layouts import Examples, PaddedLayout, Prompts
from hf_prompt_tuning.layouts.base import IGNORED
from hf_prompt_tuning.layouts.padded import in_caller_columns, padded_rows
from tests.shared.reference import ragged_rows, require_exact, tiny_prompt_model
from tests.shared.tiny_models import DECODERS


def one_prompt(vectors: torch.Tensor, batch: int) -> Prompts:
    return Prompts((vectors,), torch.zeros(batch, dtype=torch.long))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, -1, 1)


def test_rows_are_prompt_text_pads_whichever_side_was_padded():
    prompt = torch.tensor([[1.0], [2.0]])
    right = Examples.align(column(7.0, 8.0, 0.0), torch.tensor([[1, 1, 0]]), torch.tensor([[7, 8, IGNORED]]))
    left = Examples.align(column(0.0, 7.0, 8.0), torch.tensor([[0, 1, 1]]), torch.tensor([[IGNORED, 7, 8]]))
    for examples in (right, left):
        embeds, mask = padded_rows(one_prompt(prompt, 1), examples)
        assert embeds[0, :, 0].tolist() == [1, 2, 7, 8, 0]
        assert mask.tolist() == [[1, 1, 1, 1, 0]]
        assert examples.labels.tolist() == [[7, 8, IGNORED]]
    embeds, mask = padded_rows(one_prompt(prompt, 1), left, pads="left")
    assert embeds[0, :, 0].tolist() == [0, 1, 2, 7, 8]
    assert mask.tolist() == [[0, 1, 1, 1, 1]]


def test_outputs_return_to_the_columns_they_came_from():
    left = Examples.align(column(0.0, 7.0, 8.0), torch.tensor([[0, 1, 1]]))
    rows, _ = padded_rows(one_prompt(torch.tensor([[1.0], [2.0]]), 1), left)
    assert in_caller_columns(rows, one_prompt(torch.tensor([[1.0], [2.0]]), 1), left)[0, :, 0].tolist() == [
        1,
        2,
        0,
        7,
        8,
    ]


def test_pads_between_tokens_are_taken_out_and_their_labels_with_them():
    examples = Examples.align(column(0.0, 7.0, 0.0, 8.0), torch.tensor([[0, 1, 0, 1]]), torch.tensor([[5, 7, 5, 8]]))
    assert examples.embeds[0, :2, 0].tolist() == [7, 8]
    assert examples.labels.tolist() == [[7, 8, IGNORED, IGNORED]]


class Counter(torch.nn.Module):
    """A backbone whose logits at a position say which column it is."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Identity()
        self.config = PreTrainedConfig()

    def get_input_embeddings(self):
        return torch.nn.Embedding(1, 1)

    def get_output_embeddings(self):
        return self.head

    def forward(self, inputs_embeds, attention_mask, use_cache, return_dict):
        columns = torch.arange(inputs_embeds.shape[1], dtype=torch.float)
        return type("Output", (), {"logits": self.head(columns[None, :, None].expand(*inputs_embeds.shape[:2], 1))})


def test_each_label_is_predicted_by_the_column_before_it():
    labels = torch.tensor([[3, IGNORED, 4], [IGNORED, 5, IGNORED]])
    examples = Examples.align(torch.zeros(2, 3, 1), torch.tensor([[1, 1, 1], [1, 1, 0]]), labels)
    found = PaddedLayout().labelled_logits(Counter(), one_prompt(torch.zeros(2, 1), 2), examples)
    assert found.logits[:, 0].tolist() == [1, 3, 2]  # the first label by the prompt's last vector
    assert found.targets.tolist() == [3, 4, 5]
    assert found.rows.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", DECODERS)
def test_a_whole_forward_has_the_loss_and_gradient_of_each_example_alone(name):
    """`only_labelled=True` is compared in test_fast_layouts.py."""
    for lengths in ([7, 1, 12, 4], [6], [1]):
        require_exact(tiny_prompt_model(name), ragged_rows(lengths), only_labelled=False)
