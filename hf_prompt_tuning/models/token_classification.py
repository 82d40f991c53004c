"""Put a soft prompt in front of a backbone that classifies tokens."""

from peft import PeftModelForTokenClassification
from torch import Tensor

from .class_labels import checked_tags
from .classification import ClassificationPrompts
from .classifiers import TOKEN_CLS
from .own_heads import HeadOutsideBackbone
from .text_columns import TextColumns


class PromptTuningModelForTokenClassification(
    ClassificationPrompts, HeadOutsideBackbone, PeftModelForTokenClassification
):
    """Model that classifies each token of a text (tagging), with a soft prompt in front of the text.

    Logits are those of the text's tokens, [B, T, L] in the caller's columns, without columns of the prompt. The prompt
    holds its own copy of the head in fp32, which trains with it; `train_head=False` leaves it as it is.
    """

    task_type = TOKEN_CLS

    def _read_by_head(self, tokens: TextColumns) -> TextColumns:
        return tokens

    def _checked_labels(self, labels: Tensor, mask: Tensor) -> Tensor:
        return checked_tags(labels, self.base_model.config, mask)
