"""Put a soft prompt in front of a backbone that classifies texts."""

from peft import PeftModelForSequenceClassification
from torch import Tensor

from .class_labels import checked_labels
from .classification import ClassificationPrompts
from .classifiers import SEQ_CLS
from .own_heads import HeadOutsideBackbone
from .text_columns import TextColumns


class PromptTuningModelForSequenceClassification(
    ClassificationPrompts, HeadOutsideBackbone, PeftModelForSequenceClassification
):
    """Model that classifies or scores texts, with a soft prompt in front of the text.

    The head reads what it reads without a prompt: the text's first token ([CLS]) in encoders, its last in decoders.
    Logits, loss and gradients of a row do not depend on the batch that it is in, nor on where that is padded.

    - The problem type is the backbone's `config.problem_type`. Without one, a single label means regression, whole
      numbers one of several labels, and floats [B, L] several labels at once.
    - The prompt holds its own copy of the head in fp32, which trains with it. `train_head=False` leaves it as it is.
    """

    task_type = SEQ_CLS

    def _read_by_head(self, tokens: TextColumns) -> TextColumns:
        return tokens.at_the_left()

    def _checked_labels(self, labels: Tensor, mask: Tensor) -> Tensor:
        return checked_labels(labels, self.base_model.config, len(mask))
