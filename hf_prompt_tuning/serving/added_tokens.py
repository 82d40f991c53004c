"""Give a copy of a backbone more tokens: rows of its embedding matrix, and of an output matrix of its own."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import PromptTuningError
from ..layouts.sharing import of_all_parts
from ..layouts.traits import encoder_matrix, has_per_layer_inputs, token_scale
from ..models.backbone import is_from_gguf
from .output_rows import FAR, bias_of


def check_extensible(backbone: PreTrainedModel) -> None:
    """Raise PromptTuningError if a backbone cannot be given tokens whose embeddings are vectors of a prompt."""
    name = type(backbone).__name__
    if has_per_layer_inputs(backbone):
        raise PromptTuningError(
            f"{name} has an embedding for each layer, and a prompt has vectors of the first alone, so a token cannot "
            "stand for one; serve it with transformers."
        )
    if getattr(backbone, "hf_quantizer", None) is not None and not is_from_gguf(backbone):
        raise PromptTuningError(
            f"the backbone is quantized ({type(backbone.hf_quantizer).__name__}), and rows are added to weights that "
            "are not; load it without quantization, and quantize the export."
        )
    if any(type(p) is not nn.Parameter or p.is_meta for p in backbone.parameters()):
        raise PromptTuningError(
            "the backbone's weights are spread over processes, or lie on the disk; load it whole, without device_map."
        )
    output, embed = backbone.get_output_embeddings(), backbone.get_input_embeddings()
    if encoder_matrix(backbone) is not embed.weight:
        raise PromptTuningError(
            f"{name} has its embedding matrix twice, once for its encoder, so that a token has no single row; load it "
            "with tie_word_embeddings=True, or serve it with transformers."
        )
    if not isinstance(output, nn.Linear) or len(output.weight) != len(embed.weight):
        shape = list(output.weight.shape) if isinstance(output, nn.Linear) else type(output).__name__
        raise PromptTuningError(
            f"{name} has an output layer of {shape} for an embedding matrix of {list(embed.weight.shape)}, so that a "
            "token has not one id for both; serve it with transformers."
        )


def embedding_rows(vectors: Tensor, backbone: PreTrainedModel) -> Tensor:
    """Return the rows of the embedding matrix that the backbone turns into vectors.

    Some backbones scale what they look up (Gemma, Pegasus). Their rows are the quotients, rounded once, so that what
    is looked up is within one unit in the last place of the vectors, in the matrix's dtype.

    Args:
        vectors: [P, H], as the backbone is given them.
        backbone: the backbone.

    Returns:
        [P, H] in the embedding matrix's dtype, on its device.

    Raises:
        PromptTuningError: the backbone changes its embeddings otherwise than by a factor.
    """
    embed, factor = backbone.get_input_embeddings(), token_scale(backbone)
    wanted = vectors.detach().to(embed.weight)

    def looked_up(rows: Tensor) -> Tensor:
        return _with_rows_alone(embed, rows).forward(torch.arange(len(rows), device=rows.device)) * factor

    with torch.no_grad():
        scale = looked_up(torch.ones_like(wanted[:1]))
        if not torch.allclose(looked_up(wanted).float(), wanted.float() * scale.float(), rtol=1e-2, atol=1e-5):
            raise PromptTuningError(
                f"{type(backbone).__name__} changes its embeddings after looking them up, and not by a factor, so no "
                "row gives a prompt's vector; serve it with transformers."
            )
        return (wanted.double() / scale.double()).to(wanted.dtype)


def _with_rows_alone(embed: nn.Module, rows: Tensor) -> Any:
    """Return a copy of an embedding layer that holds these rows alone; the rest is shared."""
    twin = copy.copy(embed)
    vars(twin)["_parameters"] = embed._parameters | {"weight": nn.Parameter(rows, requires_grad=False)}
    twin.padding_idx = None  # the padding token's row is not among them
    return twin


def with_added_tokens(backbone: PreTrainedModel, ids: Sequence[int], rows: Tensor, output: Tensor) -> PreTrainedModel:
    """Return a copy of a backbone in which tokens have given rows. It shares all weights but the matrices.

    Where the output has a bias, the tokens' is far below zero. Elsewhere their output row is `output`, and the output
    matrix is no longer tied to the embedding matrix.

    Args:
        backbone: the backbone, which is not changed.
        ids: the ids of the tokens, [n], within its vocabulary (padding of the matrix) or behind it.
        rows: their rows in the embedding matrix, [n, H].
        output: their row in the output matrix, [H'].
    """
    served = of_all_parts(backbone)
    embed, head, bias = backbone.get_input_embeddings(), backbone.get_output_embeddings(), bias_of(backbone)
    size, is_tied = max(len(embed.weight), max(ids) + 1), head.weight is embed.weight
    at = torch.tensor(list(ids))
    if bias is not None:
        longer = _with_rows(bias.flatten(), size, at, torch.tensor(FAR))
        _replace(served, bias, longer.reshape(*bias.shape[:-1], size))
    # With a bias that excludes the tokens, tied matrices stay tied.
    if bias is None or not is_tied:
        outputs = output if bias is None else torch.zeros(())
        _replace(served, head.weight, _with_rows(head.weight, size, at, outputs), only=served.get_output_embeddings())
    _replace(served, embed.weight, _with_rows(embed.weight, size, at, rows))
    for config in {id(c): c for c in (served.config, served.config.get_text_config())}.values():
        for name in ("vocab_size", "decoder_vocab_size"):  # Marian has both
            if getattr(config, name, None) == len(embed.weight):
                setattr(config, name, size)
        # Encoder-decoders tie their two embeddings, too; loading does not tie matrices that differ.
        if bias is None and not served.config.is_encoder_decoder:
            config.tie_word_embeddings = False
    served.generation_config = copy.deepcopy(backbone.generation_config)
    served.generation_config.suppress_tokens = sorted({*(served.generation_config.suppress_tokens or ()), *ids})
    return served


def _with_rows(weight: Tensor, size: int, at: Tensor, rows: Tensor) -> Tensor:
    """Return a matrix of `size` rows, with `rows` at the places `at`. New rows between are zero."""
    longer = weight.new_zeros(size, *weight.shape[1:])
    longer[: len(weight)] = weight.detach()
    longer[at.to(longer.device)] = rows.to(longer)
    return longer


def _replace(model: nn.Module, old: Tensor, new: Tensor, only: nn.Module | None = None) -> None:
    """Replace a parameter or buffer in every module of a copy that holds it, or in one of them."""
    new = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    for module in model.modules() if only is None else [only]:
        for kind in ("_parameters", "_buffers"):
            held = {name: new for name, value in getattr(module, kind).items() if value is old}
            if held:
                vars(module)[kind] = getattr(module, kind) | held
                for size in ("num_embeddings", "out_features"):
                    if hasattr(module, size) and "weight" in held:
                        setattr(module, size, len(new))
