"""Save, load and push prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import PromptLoadError, PromptMismatchError, PromptTuningError
from ..hub.background import PUSH_SECONDS, temporary_folder, within
from ..hub.push_errors import explained
from ..prompts.card import write_card
from ..prompts.config import PromptTuningConfig
from ..prompts.files import SavedPrompt, read_prompt, write_start
from ..prompts.fingerprint import backbone_fingerprint, check_match, embedding_hash
from ..prompts.plots import check_pictures, save_pictures
from ..prompts.pushing import Destination, checked_subfolder, make_repository, push
from .initialization import can_be_made_again
from .wrapping import check_backbone


class SavedPrompts:
    """Save, load and push prompts, for both model classes."""

    task_type: str

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        ignore_mismatch: bool = False,
        **hub: Any,
    ) -> "SavedPrompts":
        """Load a saved prompt on a backbone.

        Args:
            model: the backbone, already loaded.
            model_id: the prompt's folder or Hub id; PEFT's prompt-tuning adapters too.
            adapter_name: the prompt's name.
            is_trainable: make the prompt trainable.
            ignore_mismatch: warn about another backbone than the prompt was trained on, instead of raising an error.
            **hub: `revision`, `token`, `cache_dir`, `subfolder`.

        Args:
            model: the backbone, already loaded.
            model_id: the prompt's folder or Hub id; PEFT's prompt-tuning adapters too.
            adapter_name: what to call it.
            is_trainable: go on training it.
            ignore_mismatch: warn of another backbone than the prompt was trained on, rather than refuse it.
            **hub: `revision`, `token`, `cache_dir`, `subfolder`.

        Raises:
            PromptLoadError: a file is missing, damaged or unsafe.
            PromptMismatchError: the prompt was trained on another backbone.
        """
        return cls.from_saved(model, read_prompt(model_id, **hub), adapter_name, is_trainable, ignore_mismatch)

    @classmethod
    def from_saved(
        cls,
        model: PreTrainedModel,
        saved: SavedPrompt,
        adapter_name: str,
        is_trainable: bool,
        ignore_mismatch: bool,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> "SavedPrompts":
        """Load a prompt that was already read, as `from_pretrained`. The tokenizer is for prompts added later."""
        check_backbone(model)
        if saved.config.task_type not in (None, cls.task_type):
            raise PromptMismatchError(
                f"{saved.source} is a prompt of task type {saved.config.task_type}, and {cls.__name__} is for "
                f"{cls.task_type}; load it with the other class."
            )
        known = backbone_fingerprint(model)
        check_match(saved, model.get_input_embeddings().embedding_dim, known, ignore_mismatch)
        prompt_model = cls(model, _to_fill(saved, tokenizer), adapter_name, known_fingerprint=known)
        prompt_model._fill(saved, adapter_name, is_trainable)
        prompt_model._let_train(adapter_name, is_trainable)
        return prompt_model

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        ignore_mismatch: bool = False,
        **kwargs: Any,
    ) -> _IncompatibleKeys:
        """Load a saved prompt under `adapter_name`. A prompt with that name is replaced.

        Arguments and errors are those of `from_pretrained`.
        """
        hub, _ = self._split_kwargs(kwargs)
        saved = read_prompt(model_id, **hub)
        check_match(saved, self.word_embeddings.embedding_dim, self._fingerprint, ignore_mismatch)
        is_new = adapter_name not in self.peft_config
        if is_new:
            self.add_adapter(adapter_name, _to_fill(saved))
        self._fill(saved, adapter_name, is_trainable)
        if is_new:
            self._let_train(adapter_name, is_trainable)
        return _IncompatibleKeys([], [])

    def _fill(self, saved: SavedPrompt, adapter_name: str, is_trainable: bool) -> None:
        """Replace an adapter's prompt by a saved prompt."""
        vectors = saved.vectors
        weight = self.prompt_encoder[adapter_name].embedding.weight
        if weight.shape != vectors.shape:
            raise PromptLoadError(
                f"{saved.source} holds {len(vectors)} virtual tokens, and the prompt {adapter_name!r} has "
                f"{len(weight)}. Load it under another adapter_name."
            )
        with torch.no_grad():
            weight.copy_(vectors)
        self.prompt_starts[adapter_name] = self._start_of(saved, adapter_name)
        if saved.info is not None:
            self.prompt_info[adapter_name] = saved.info
        else:
            # A PEFT adapter does not record how it started. The config that we load it with does not say it either.
            self.prompt_info[adapter_name].initialization = {}
            self.prompt_info[adapter_name].backbone["revision"] = saved.backbone["revision"]
        # The revision of the backbone that the prompt was trained on, not of the current one.
        self.peft_config[adapter_name].revision = saved.backbone["revision"]
        if not is_trainable:
            self.eval()

    def _let_train(self, adapter_name: str, is_trainable: bool) -> None:
        self.peft_config[adapter_name].inference_mode = not is_trainable
        self.set_requires_grad(adapter_name, is_trainable)

    def _start_of(self, saved: SavedPrompt, adapter_name: str) -> Tensor | None:
        """Return the vectors that a saved prompt started from: its own file's, or (for a checkpoint) this model's.

        They must match the hash that the prompt records, because a run that is resumed with another seed starts from
        other vectors.
        """
        known = None if saved.info is None else saved.info.initialization.get("hash")
        for start in (saved.start, self.prompt_starts[adapter_name]):
            if start is not None and embedding_hash(start) == known:
                return start
        return None

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        repo_id: str | None = None,
        card: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save prompts as PEFT does, each with its `prompt_tuning.json`, results, pictures and card.

        The prompt named "default" is saved in `save_directory` itself, the others in a folder with their name.

        Args:
            save_directory: created if it does not exist.
            safe_serialization: must be True; accepted for compatibility with PEFT.
            selected_adapters: the prompts to save; default all.
            is_main_process: whether this process writes.
            repo_id: the Hub repository that the card's code names.
            card: also save pictures, the card and the start vectors. Use False for checkpoints, which are saved often
                and are not read by people.
            **kwargs: as in PEFT.

        Raises:
            PromptTuningError: `safe_serialization=False`; a prompt is never pickled.
            FloatingPointError: a prompt holds NaN or infinity; nothing is written.
        """
        if not safe_serialization:
            raise PromptTuningError(
                "safe_serialization is False; prompts are saved as safetensors only. Leave it out."
            )
        for name in selected_adapters or self.peft_config:
            if not torch.isfinite(self.prompt_encoder[name].embedding.weight).all():
                raise FloatingPointError(
                    f"the prompt {name!r} is not finite, and is not saved. Go back to a checkpoint from before, with "
                    "a lower learning_rate."
                )
            if card:
                check_pictures(self.prompt_info[name])
        # The embedding layers belong to the backbone, and PEFT's check for them asks the Hub.
        kwargs["save_embedding_layers"] = False
        # The same for the backbone's weights: PEFT would gather a sharded backbone's and then drop them.
        kwargs["state_dict"] = {}
        super().save_pretrained(
            str(save_directory), selected_adapters=selected_adapters, is_main_process=is_main_process, **kwargs
        )
        if is_main_process:
            for name in selected_adapters or list(self.peft_config):
                folder = Path(save_directory) if name == "default" else Path(save_directory) / name
                info = self.prompt_info[name]
                info.write(folder)
                if card:
                    known = can_be_made_again(info.initialization)
                    write_start(folder, None if known else self.prompt_starts[name])
                    self._write_card(folder, name, repo_id, None if name == "default" else name)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> torch.Tensor:
        """Return a prompt's vectors, [P, H], on the CPU."""
        # PEFT calls the module here. We do not: only one process saves, and ZeRO-3 counts calls.
        return self.prompt_encoder[adapter_name].embedding.weight.detach().cpu()

    def _write_card(self, folder: Path, adapter_name: str, repo_id: str | None, subfolder: str | None = None) -> None:
        info, config = self.prompt_info[adapter_name], self.peft_config[adapter_name]
        save_pictures(folder, info)
        size = sum(p.numel() for p in self.base_model.parameters())
        write_card(folder, config, info, size, repo_id, subfolder=subfolder)

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
            commit_message: of the commit.
            commit_description: of the commit.
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
        to = Destination(repo_id, revision, private, token)
        subfolder = checked_subfolder(subfolder)
        with explained(repo_id), temporary_folder() as made:
            to = within(PUSH_SECONDS, lambda: make_repository(to))
            folder = self.save_for_hub(made, to.repo_id, tokenizer, name, subfolder)
            return within(
                PUSH_SECONDS,
                lambda: push(folder, to, commit_message, subfolder or "", commit_description, create_pr),
            )

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
        path = Path(folder)
        if name != "default":  # its folder goes to the root of the repository
            path /= name
        if name != "default" or subfolder is not None:
            self._write_card(path, name, repo_id, subfolder)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        return path

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Do nothing. PEFT calls this in every save; `save_pretrained` writes the card, once all its data is known."""


def _to_fill(saved: SavedPrompt, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptTuningConfig:
    """Return the config of a prompt that is not initialised, because its vectors are loaded from a file."""
    return replace(saved.config, inference_mode=True, token_dim=None, tokenizer=tokenizer)
