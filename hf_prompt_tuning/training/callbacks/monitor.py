"""Log how a prompt changes during training."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from ...errors import PromptTuningError
from ...models.soft_prompts import SoftPrompts
from ...models.vocabulary import nearest_words
from ...prompts.privacy import tells_private_words
from .watched import mean_word_norm, prompt_vectors, watched


class PromptMonitorCallback(TrainerCallback):
    """Log properties of the prompt at regular intervals to all trackers of the Trainer.

    - `prompt/norm`: mean norm over positions.
    - `prompt/norm_vs_vocabulary`: that norm, divided by the mean norm of the vocabulary's vectors.
    - `prompt/moved`: mean distance from the start of this run.
    - `prompt/gradient_norm`: norm of the gradient after clipping, as the optimizer gets it.
    - `prompt/nearest_words`: a line of text; only with a tokenizer, and not of a start that is private (`EXAMPLES`,
      `TEACHER`).

    If several prompts train together, each has its own values: `prompt/NAME/norm`, and so on.

    Args:
        trainer: the trainer that gets this callback: `trainer.add_callback(PromptMonitorCallback(trainer))`. Its `log`
            writes to TensorBoard, trackio, W&B and the log history.
        every: number of update steps between logs; default: the Trainer's `logging_steps`.
        tokenizer: decodes the nearest words; default: the Trainer's `processing_class`.

    Raises:
        PromptTuningError: `every` is below 1, or the Trainer's model holds no soft prompt.
    """

    def __init__(self, trainer: Trainer, every: int | None = None, tokenizer: PreTrainedTokenizerBase | None = None):
        if every is not None and every < 1:
            raise PromptTuningError(f"every is {every}; it counts update steps: give 1 or more.")
        self.trainer = trainer
        self.every = every
        self.tokenizer = tokenizer if tokenizer is not None else trainer.processing_class
        self._gradient_norms: dict[str, Tensor] = {}

    def _names(self, model: SoftPrompts) -> list[str]:
        """Return the names of the prompts that train; of a trainer that does not tell, the active one."""
        return list(getattr(self.trainer, "trained_prompts", None) or [model.active_adapter])

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Store the prompts' starting vectors and the mean norm of the vocabulary."""
        model = watched(model, self)
        self._starts = {name: prompt_vectors(model, name) for name in self._names(model)}
        self._word_norm = mean_word_norm(model.word_embeddings)

    def _is_due(self, state: Any, step: int) -> bool:
        return step % (self.every or max(int(state.logging_steps), 1)) == 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Store the norms of the gradients before the optimizer clears them."""
        if self._is_due(state, state.global_step + 1):
            prompts = watched(model, self).prompt_encoder
            gradients = {name: prompts[name].embedding.weight.grad for name in self._starts}
            self._gradient_norms = {name: grad.norm() for name, grad in gradients.items() if grad is not None}

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Log the values if this step is due."""
        if not self._is_due(state, state.global_step):
            return
        model = watched(model, self)
        values: dict[str, Any] = {}
        for name in self._starts:
            prefix = "prompt/" if len(self._starts) == 1 else f"prompt/{name}/"
            values |= {prefix + key: value for key, value in self._values(model, name).items()}
        # Restore `should_log`, because this log does not replace the one that the Trainer is about to write. Call
        # `Trainer.log` itself, because a subclass's `log` may add its own collected values to every log (TRL's does).
        should_log = control.should_log
        Trainer.log(self.trainer, values)
        control.should_log = self.trainer.control.should_log = should_log

    def _values(self, model: SoftPrompts, name: str) -> dict[str, Any]:
        vectors = prompt_vectors(model, name)
        norm, moved = vectors.norm(dim=1).mean(), (vectors - self._starts[name]).norm(dim=1).mean()
        values: dict[str, Any] = {
            "norm": norm.item(),
            "norm_vs_vocabulary": norm.item() / self._word_norm,
            "moved": moved.item(),
        }
        if name in self._gradient_norms:
            values["gradient_norm"] = self._gradient_norms[name].item()
        if self.tokenizer is not None and not tells_private_words(model.prompt_info[name]):
            words_by_position = nearest_words(vectors, model.word_embeddings, self.tokenizer, how_many=1)
            values["nearest_words"] = " | ".join(words[0][0].strip() for words in words_by_position)
        return values
