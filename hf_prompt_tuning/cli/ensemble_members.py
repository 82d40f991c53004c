"""Turn the command-line arguments into the prompts of an ensemble or a sweep."""

from dataclasses import replace

from ..errors import PromptTuningError
from ..several.task import PromptTask
from .arguments import PromptArguments


def ensemble_members(args: PromptArguments, seed: int, token: str | None = None) -> list[PromptTask]:
    """Return the prompts `prompt_1` to `prompt_N` of the arguments, or an empty list for a single prompt.

    Prompt i has the i-th value of each list. Arguments without a list are the same for all prompts.

    Args:
        args: the arguments, with `num_prompts` or with lists.
        seed: the seed of the first prompt if there are no `prompt_seeds`. The others get seed + 1, seed + 2, ….
        token: a Hub token for `init_prompt`.

    Raises:
        PromptTuningError: there are fewer than two prompts, or the lists have different lengths.
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
