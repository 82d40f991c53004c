"""What differs between versions of accelerate."""

import accelerate
from packaging.version import Version
from transformers import PreTrainedModel

from ..errors import PromptTuningError

ACCELERATE = Version(accelerate.__version__)


def check_offloaded(backbone: PreTrainedModel) -> None:
    """Raise PromptTuningError for an embedding on the disk that is the output layer, too (accelerate below 1.15).

    It reads another tensor in the output layer's place, with a prompt or without.
    """
    if Version("1.15") <= ACCELERATE:
        return
    # transformers asks the whole config. That of the text says otherwise in some models, or nothing (5.6's Qwen2-VL).
    if not getattr(backbone.config, "tie_word_embeddings", False):
        return
    embed, places = backbone.get_input_embeddings(), getattr(backbone, "hf_device_map", None) or {}
    name = next(name for name, module in backbone.named_modules() if module is embed)
    if any(place == "disk" and f"{name}.".startswith(f"{key}." if key else "") for key, place in places.items()):
        raise PromptTuningError(
            f"the backbone's embedding is offloaded to the disk and is its output layer, too, which accelerate "
            f"{ACCELERATE} reads wrongly; install accelerate 1.15 or newer, or leave {name} on a device or the CPU."
        )
