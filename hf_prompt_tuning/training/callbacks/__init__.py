"""Callbacks for any Trainer whose model is from `get_prompt_tuning_model`."""

from .averaging import PromptAveragingCallback
from .checkpoint import PromptCheckpointCallback, kept_prompts, restore_prompt
from .divergence import DivergenceCallback
from .frozen import FrozenBackboneCallback
from .hub import PromptHubCallback
from .monitor import PromptMonitorCallback
