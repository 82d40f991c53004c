"""A search over prompts on one backbone."""

import gc
import hashlib
import weakref

import optuna

from hf_prompt_tuning import PromptTuningConfig, PromptTuningTrainer, get_prompt_tuning_model
from tests.shared.tiny_models import tiny_model
from tests.shared.trainers import TEMPLATE, arguments

optuna.logging.set_verbosity(optuna.logging.WARNING)


GRID = {"num_virtual_tokens": [2, 6], "prompt_tuning_init": ["RANDOM", "CLASS_LABELS"], "learning_rate": [0.01, 0.1]}


class Search:
    """A trainer with a backbone of its own, and what became of every prompt made on it."""

    def __init__(self, folder, tokenizer, rows, callbacks=(), **values):
        self.backbone, self.tokenizer = tiny_model("llama"), tokenizer
        self.prompts, self.alive = [], []
        self.trainer = PromptTuningTrainer(
            model_init=self.model_init,
            args=arguments(folder, num_train_epochs=1, **values),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            template=TEMPLATE,
            callbacks=list(callbacks),
        )

    def model_init(self, trial):
        gc.collect()
        self.alive.append(sum(prompt() is not None for prompt in self.prompts))
        length, init = 4, "RANDOM"
        if trial is not None:
            length = trial.suggest_int("num_virtual_tokens", 2, 6, step=4)
            init = trial.suggest_categorical("prompt_tuning_init", GRID["prompt_tuning_init"])
        config = PromptTuningConfig(num_virtual_tokens=length, prompt_tuning_init=init)
        model = get_prompt_tuning_model(self.backbone, config, self.tokenizer, TEMPLATE)
        self.prompts.append(weakref.ref(model.prompt))
        return model

    def run(self, n_trials=4, **options):
        return self.trainer.hyperparameter_search(
            hp_space=lambda trial: {
                "learning_rate": trial.suggest_categorical("learning_rate", GRID["learning_rate"])
            },
            n_trials=n_trials,
            sampler=optuna.samplers.GridSampler(GRID, seed=0),
            **options,
        )

    def backbone_hash(self):
        parts = [f"{name}{tensor.numpy().tobytes()}" for name, tensor in self.backbone.state_dict().items()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def hooks(self):
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.backbone.modules())
