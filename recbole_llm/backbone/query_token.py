"""The token that marks where a next item is predicted."""

from typing import Any

import torch
from torch import nn


def query_token_id(tokenizer: Any, model: nn.Module, token: str) -> int:
    """Return the id of `token`; one that the tokenizer lacks is added to it and to the embedding.

    An added token starts as the mean of all token embeddings: a frozen backbone cannot learn it, and the mean is the
    same in every process.

    Args:
        tokenizer: changed in place where the token is new.
        model: a transformers model, changed in place where its embedding has no row for the token.
        token: the token as the vocabulary spells it, such as ``.`` or ``[Q]``.
    """
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return vocabulary[token]
    tokenizer.add_tokens([token], special_tokens=True)
    new = tokenizer.get_vocab()[token]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        mean = embedding.weight[: len(vocabulary)].float().mean(dim=0)
        if new >= embedding.num_embeddings:
            model.resize_token_embeddings(new + 1, mean_resizing=False)  # type: ignore[operator]
        model.get_input_embeddings().weight[new] = mean  # type: ignore[operator]
    return new
