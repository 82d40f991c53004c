"""How a prompt changes as it trains, in the numbers that the Trainer reports."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..errors import PromptTuningError
from ..inspection import nearest_words
from .watched import mean_word_norm, prompt_vectors, watched


class PromptMonitorCallback(TrainerCallback):
    """Logs what the prompt is like, every so many steps, to whatever the Trainer reports to.

    `prompt/norm` (the mean over positions), `prompt/norm_vs_vocabulary` (that, in mean norms of the vocabulary's
    vectors), `prompt/moved` (the mean distance from where this run started), `prompt/gradient_norm` (as the optimizer
    gets it, so after clipping), and, with a tokenizer, `prompt/nearest_words`, a line of text.

    Args:
        trainer: the one that it is added to, whose `log` reaches TensorBoard, trackio, W&B and the log history:
            `trainer.add_callback(PromptMonitorCallback(trainer))`.
        every: so many update steps; default the Trainer's `logging_steps`.
        tokenizer: gives the words; default the Trainer's `processing_class`.

    Raises:
        PromptTuningError: `every` is below 1, or the Trainer's model holds no soft prompt.
    """

    def __init__(self, trainer: Trainer, every: int | None = None, tokenizer: PreTrainedTokenizerBase | None = None):
        if every is not None and every < 1:
            raise PromptTuningError(f"every is {every}; it counts update steps: give 1 or more.")
        self.trainer = trainer
        self.every = every
        self.tokenizer = tokenizer if tokenizer is not None else trainer.processing_class
        self._gradient_norm: Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Remembers where the prompt starts, and how long the vocabulary's vectors are."""
        model = watched(model, self)
        self._start = prompt_vectors(model)
        self._word_norm = mean_word_norm(model.word_embeddings)

    def _is_due(self, state: Any, step: int) -> bool:
        return step % (self.every or max(int(state.logging_steps), 1)) == 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Takes the gradient's norm while there is one."""
        gradient = watched(model, self).prompt.grad
        if gradient is not None and self._is_due(state, state.global_step + 1):
            self._gradient_norm = gradient.norm()

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Logs, where it is time."""
        if not self._is_due(state, state.global_step):
            return
        model = watched(model, self)
        vectors = prompt_vectors(model)
        norm, moved = vectors.norm(dim=1).mean(), (vectors - self._start).norm(dim=1).mean()
        values: dict[str, Any] = {
            "prompt/norm": norm.item(),
            "prompt/norm_vs_vocabulary": norm.item() / self._word_norm,
            "prompt/moved": moved.item(),
        }
        if self._gradient_norm is not None:
            values["prompt/gradient_norm"] = self._gradient_norm.item()
        if self.tokenizer is not None:
            found = nearest_words(vectors, model.word_embeddings, self.tokenizer, how_many=1)
            values["prompt/nearest_words"] = " | ".join(words[0][0].strip() for words in found)
        # A log of ours is not the one that the Trainer was about to write. And `Trainer.log` itself, because a
        # subclass's may add to every log what it has gathered for its own (TRL's does).
        should_log = control.should_log
        Trainer.log(self.trainer, values)
        control.should_log = self.trainer.control.should_log = should_log
