"""From the command's arguments to the prompts of an ensemble, or of a sweep."""

from dataclasses import replace

from ..errors import PromptTuningError
from ..several.task import PromptTask
from .arguments import PromptArguments


def ensemble_members(args: PromptArguments, seed: int, token: str | None = None) -> list[PromptTask]:
    """The prompts that the arguments ask for, `prompt_1` to `prompt_N`; none where they ask for one prompt.

    Prompt i has the i-th of each list, and what no list tells is the same for all.

    Args:
        args: with `num_prompts`, or with lists.
        seed: of the first prompt, where there are no `prompt_seeds`; the others count on from it.
        token: for `init_prompt`.

    Raises:
        PromptTuningError: fewer than two prompts, or lists of different lengths.
    """
    names = ("prompt_seeds", "learning_rates", "prompt_lengths", "prompt_tuning_inits")
    lists = {name: getattr(args, name) for name in names if getattr(args, name)}
    if args.num_prompts in (None, 1) and not lists:
        return []
    many = args.num_prompts if args.num_prompts is not None else max(map(len, lists.values()))
    if many < 2:
        raise PromptTuningError(f"there are to be {many} prompts; give 2 or more, or none of {', '.join(names)}.")
    for name, values in lists.items():
        if len(values) != many:
            raise PromptTuningError(f"{name} has {len(values)} values for {many} prompts; give one for each.")
    members = []
    for i in range(many):
        own = {name: values[i] for name, values in lists.items()}
        fields = {"num_virtual_tokens": "prompt_lengths", "prompt_tuning_init": "prompt_tuning_inits"}
        changes = {field: own[name] for field, name in fields.items() if name in own}
        config = replace(args, **changes).config(None, token)
        members.append(
            PromptTask(
                f"prompt_{i + 1}",
                config,
                learning_rate=own.get("learning_rates"),
                seed=own.get("prompt_seeds", seed + i),
            )
        )
    return members
