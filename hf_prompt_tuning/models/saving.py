"""Save prompts, and push them to the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..hub.background import PUSH_SECONDS, temporary_folder, within
from ..hub.push_errors import explained
from ..layouts.sharing import ByContext
from ..layouts.traits import needs_embeddings_only
from ..prompts.card import name_in_card, write_card
from ..prompts.config import PromptTuningConfig
from ..prompts.ensemble_info import EnsembleInfo
from ..prompts.files import write_rows, write_start
from ..prompts.plots import check_pictures, save_pictures
from ..prompts.pushing import Destination, checked_subfolder, make_repository, push
from ..prompts.repository_files import CARD_FILE
from .classifiers import peft_reads_alike
from .initialization import is_saved
from .prompt import PromptConfigs, SoftPrompt

_SAVES: ByContext[bool] = ByContext("saving a prompt", False)


class SavingMixin:
    """The part of `HeldPrompts` that saves and pushes prompts: methods of a `PeftModel`."""

    peft_config: PromptConfigs
    prompt_encoder: nn.ModuleDict

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        repo_id: str | None = None,
        card: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save prompts as PEFT does, each with its `prompt_tuning.json`, results, pictures and card.

        The prompt named "default" is saved in `save_directory` itself, the others in a folder with their name.

        Args:
            save_directory: created if it does not exist.
            safe_serialization: must be True; accepted for compatibility with PEFT.
            selected_adapters: the prompts to save; default all, and none for an empty list.
            is_main_process: whether this process writes.
            repo_id: the Hub repository that the card's code names.
            card: also save pictures, the card and the start vectors. Use False for checkpoints, which are saved often
                and are not read by people.
            state_dict: must hold the prompts as they are now, if it holds any; accepted because trainers give it.
            **kwargs: as in PEFT.

        Raises:
            PromptTuningError: there is no such prompt; `safe_serialization=False`, because none is ever pickled; or
                `push_to_hub`, `save_embedding_layers` or `state_dict` asks for what is not saved here.
            FloatingPointError: a prompt holds NaN or infinity; nothing is written.
        """
        if not safe_serialization:
            raise PromptTuningError("safe_serialization is False; prompts are saved as safetensors. Leave it out.")
        names = list(self.peft_config) if selected_adapters is None else selected_adapters
        for name in names:
            self.peft_config.check(name)
        check_asked({name: self.prompt_encoder[name] for name in names}, state_dict, kwargs)
        check_savable({name: self.prompt_encoder[name] for name in names}, card)
        # The embedding layers belong to the backbone, and PEFT's check for them asks the Hub. The same for the
        # backbone's weights: PEFT would gather a sharded backbone's and then drop them.
        kwargs |= {"save_embedding_layers": False, "state_dict": {}}
        with _SAVES.set_to(True, self):
            super().save_pretrained(
                str(save_directory), selected_adapters=names, is_main_process=is_main_process, **kwargs
            )
        for name in names if is_main_process else ():
            folder = folder_of(name, save_directory)
            self._complete(folder, name)
            if card:
                self._write_card(folder, name, repo_id, None if name == "default" else name)

    def _complete(self, folder: Path, name: str) -> None:
        """Write what PEFT does not write of a prompt into the folder that it has made."""
        classifier = self.prompt_encoder[name].classifier_to_save()
        if self.peft_config[name].head or classifier:
            # PEFT writes the trained rows alone, if the prompt is not trainable, and no head of our own.
            write_rows(folder, self.get_prompt_embedding_to_save(name), classifier)
        self.prompt_encoder[name].info.write(folder)

    def _write_card(self, folder: Path, name: str, repo_id: str | None, subfolder: str | None) -> None:
        prompt, config = self.prompt_encoder[name], self.peft_config[name]
        write_start_and_card(folder, prompt, config, self.base_model, repo_id, subfolder)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """Return a prompt's head and vectors, [h+P, H], on the CPU."""
        # PEFT calls the module here. We do not: only one process saves, and ZeRO-3 counts calls.
        return self.prompt_encoder[adapter_name].rows_to_save()

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Name PEFT, the backbone and our tags in the card that a Trainer of transformers has written.

        PEFT calls this in every save, too, where it does nothing: `save_pretrained` writes a card of ours, once all
        its data is known.
        """
        if not _SAVES.of(self):
            name = "default" if "default" in self.peft_config else self.active_adapter
            name_in_card(Path(output_dir) / CARD_FILE, self.peft_config[name])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload prompt",
        commit_description: str | None = None,
        create_pr: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        adapter_name: str | None = None,
        subfolder: str | None = None,
    ) -> CommitInfo:
        """Push one prompt to the Hub, with its description, card and pictures, and nothing else.

        Files of an earlier push in the same place are deleted in the same commit. No other file is deleted.

        Args:
            repo_id: created if it does not exist.
            private: whether a new repository is private. An existing repository keeps its visibility.
            token: default the token of `hf auth login`.
            revision: the branch; created from the main branch if it does not exist.
            commit_message, commit_description: of the commit.
            create_pr: open a pull request with it.
            tokenizer: push the tokenizer, too.
            adapter_name: the prompt; default the active one.
            subfolder: of the repository, if it holds several prompts; default its root.

        Raises:
            PromptPushError: the Hub refuses the push or cannot be reached. The message contains the Hub's answer.
            PromptTuningError: there is no such prompt; the name of the repository, branch or folder is invalid; or the
                prompt should be private and the repository is public.
        """
        name = adapter_name if adapter_name is not None else self.active_adapter
        if name not in self.peft_config:
            raise PromptTuningError(
                f"adapter_name is {name!r}; the model has {', '.join(map(repr, self.peft_config))}: give one of them."
            )
        to, subfolder = Destination(repo_id, revision, private, token), checked_subfolder(subfolder)
        with explained(repo_id), temporary_folder() as made:
            to = within(PUSH_SECONDS, lambda: make_repository(to))
            folder = self.save_for_hub(made, to.repo_id, tokenizer, name, subfolder)
            change = commit_message, subfolder or "", commit_description, create_pr
            return within(PUSH_SECONDS, lambda: push(folder, to, *change))

    def save_for_hub(
        self,
        folder: str | Path,
        repo_id: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        adapter_name: str | None = None,
        subfolder: str | None = None,
    ) -> Path:
        """Save one prompt as it is pushed, with a card for `repo_id`, and return the folder of its files."""
        name = adapter_name if adapter_name is not None else self.active_adapter
        self.save_pretrained(folder, selected_adapters=[name], repo_id=repo_id)
        path = folder_of(name, folder)  # goes to the root of the repository, or to `subfolder`
        if name != "default" or subfolder is not None:
            self._write_card(path, name, repo_id, subfolder)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        return path


def folder_of(name: str, save_directory: str | Path) -> Path:
    """Return the folder in which PEFT saves a prompt: `save_directory` for "default", else one with its name."""
    return Path(save_directory) if name == "default" else Path(save_directory) / name


def check_asked(
    prompts: Mapping[str, SoftPrompt], state_dict: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> None:
    """Raise PromptTuningError for what `save_pretrained` of other models does, and ours does not.

    A `state_dict` in fp32 must hold the vectors that the `prompts` have. Those of other dtypes are rounded.
    """
    if options.get("push_to_hub"):
        raise PromptTuningError("push_to_hub is given to save_pretrained, which only saves; call model.push_to_hub.")
    if options.get("save_embedding_layers") is True:
        raise PromptTuningError(
            "save_embedding_layers is True, and the embeddings are the frozen backbone's, which is not saved with a "
            "prompt. Leave it out; if you changed them, save the backbone (model.get_base_model().save_pretrained)."
        )
    for name, prompt in prompts.items():
        given, here = (state_dict or {}).get(f"prompt_encoder.{name}.embedding.weight"), prompt.embedding.weight
        same_kind = type(given) in (Tensor, nn.Parameter) and given.shape == here.shape and given.dtype == here.dtype
        if same_kind and not torch.equal(given.detach().to(here.device), here.detach()):
            raise PromptTuningError(
                f"state_dict holds other vectors of the prompt {name!r} than the model, whose own are saved. Load "
                "them first (model.load_state_dict), or leave it out."
            )


def check_savable(prompts: Mapping[str, SoftPrompt], card: bool) -> None:
    """Raise FloatingPointError if a prompt holds NaN or infinity, and an error if its pictures cannot be drawn."""
    for name, prompt in prompts.items():
        weights = prompt.embedding.weight, *prompt.classifier_to_save().values()
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):
            raise FloatingPointError(
                f"the prompt {name!r} is not finite, and is not saved. Go back to a checkpoint from before, with "
                "a lower learning_rate."
            )
        if card:
            check_pictures(prompt.info)


def write_start_and_card(
    folder: Path,
    prompt: SoftPrompt,
    config: PromptTuningConfig,
    backbone: PreTrainedModel,
    repo_id: str | None,
    subfolder: str | None = None,
    ensemble: EnsembleInfo | None = None,
) -> None:
    """Write a prompt's start (see `is_saved`), pictures and card into its folder.

    The card counts the backbone's parameters, and its code names the repository and the prompt's `subfolder` in it.
    The best prompt of an ensemble has the ensemble's card.
    """
    write_start(folder, prompt.start if is_saved(prompt.info.initialization) else None)
    save_pictures(folder, prompt.info)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    peft_agrees = needs_embeddings_only(backbone) and peft_reads_alike(backbone, bool(config.head))
    write_card(folder, config, prompt.info, size, peft_agrees, repo_id, ensemble, subfolder)
