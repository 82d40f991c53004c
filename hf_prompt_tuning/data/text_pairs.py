"""Join two texts as a tokenizer does, by its special tokens and token types."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError, first_line, sentence

TYPES = "token_type_ids"


class TextPairs:
    """What a tokenizer makes of two texts, exactly as `tokenizer(text, text_pair)` does.

    For BERT, with a text of two tokens and a pair of one:

        input_ids       [CLS] a0 a1 [SEP] b0 [SEP]
        token_type_ids    0   0  0    0   1    1

    Args:
        tokenizer: the backbone's tokenizer.
        token_types: how many token types the backbone tells apart; 0 if it reads none.
        limit: the tokens of both texts together, special tokens included; None for no limit.

    Attributes:
        columns_beside: `token_type_ids` if the tokenizer gives them and the backbone tells types apart, else nothing.

    Raises:
        PromptTuningError: the tokenizer takes no pair, nothing would tell where the second text begins, the backbone
            lacks a token type, or the limit leaves no token to a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_types: int, limit: int | None):
        self.tokenizer, self.limit = tokenizer, limit
        name = type(tokenizer).__name__
        try:
            probe = tokenizer("a", "b", return_special_tokens_mask=True)
        except (TypeError, ValueError) as error:
            raise PromptTuningError(
                f"the {name} joins no pair of texts: {sentence(first_line(error))} Leave the pair out, and write "
                "both texts into the source."
            ) from error
        types: Sequence[int] = probe.get(TYPES) or [0]
        if 0 < token_types <= max(types):
            raise PromptTuningError(
                f"the {name} gives the second text of a pair the token type {max(types)}, and the backbone knows "
                f"types below {token_types}; give the backbone's own tokenizer."
            )
        self.columns_beside = (TYPES,) if token_types > 1 and TYPES in probe else ()
        special = probe["special_tokens_mask"]
        inside = special[special.index(0) : len(special) - special[::-1].index(0)]
        if not any(inside) and not (self.columns_beside and len(set(types)) > 1):
            raise PromptTuningError(
                f"the {name} writes nothing between the two texts of a pair, so that a head could not tell where the "
                "second begins. Leave the pair out, and write both into the source with words between them, e.g. "
                '"{sentence1} Second: {sentence2}".'
            )
        if limit is not None and limit < sum(special) + 2:
            raise PromptTuningError(
                f"max_source_length is {limit}, and a pair has {sum(special)} special tokens and a token of each "
                f"text; give {sum(special) + 2} or more."
            )

    def joined(self, text: str, pair: str) -> tuple[dict[str, list[int]], bool]:
        """Return the `input_ids` of two texts, with `token_type_ids` if they tell something, and whether one was cut.

        The longer text is cut first, where the tokenizer cuts (`truncation_side`).
        """
        found = self.tokenizer(text, pair)
        was_cut = self.limit is not None and len(found["input_ids"]) > self.limit
        if was_cut:
            found = self.tokenizer(text, pair, truncation="longest_first", max_length=self.limit)
        return {name: list(found[name]) for name in ("input_ids", *self.columns_beside)}, was_cut
