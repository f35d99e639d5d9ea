"""The loss of a language model on the tokens of answers alone."""

import torch
from torch import Tensor

from recbole_llm.model.layers.item_linear_projection import cross_entropy_sum


def answer_loss_sum(states: Tensor, weight: Tensor, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the sum over answer tokens of -log p(token), with p = softmax(W h), float32.

    The logits are made and dropped in pieces, see `cross_entropy_sum`.

    Args:
        states: h, [tokens, width], the hidden state before each answer token.
        weight: W, [vocabulary, width], of the language head.
        tokens: int64 [tokens], token ids from 0.
        dtype: of the matrix products; the softmax is float32 in any case.
    """
    # That loss knows a padding class 0 that is never a label: with a row in front of W every token is one from 1.
    padded = torch.cat([weight.new_zeros(1, weight.shape[1]), weight])
    return cross_entropy_sum(states, padded, tokens + 1, dtype)
