"""The most probable next token, again and again."""

from collections.abc import Collection

import numpy as np
import torch

from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts


@torch.no_grad()
def greedy(decoder: Decoder, prompts: PaddedPrompts, max_tokens: int, stop: Collection[int]) -> list[np.ndarray]:
    """Return the greedy answer to each prompt: int64 token ids, without the token that ends it.

    Args:
        decoder: writes.
        prompts: of one batch.
        max_tokens: the most that an answer holds.
        stop: tokens that end an answer, at least one.
    """
    states, prefix = decoder.read(prompts)
    ends = torch.tensor(sorted(stop), device=states.device)
    finished = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    written = []
    for place in range(max_tokens):
        tokens = decoder.logits(states).argmax(dim=1)
        tokens = torch.where(finished, ends[0], tokens)  # a finished answer is followed by anything
        finished = finished | torch.isin(tokens, ends)
        written.append(tokens)
        if place + 1 == max_tokens or bool(finished.all()):
            break
        states = decoder.follow(prefix, tokens)
    columns = torch.stack(written, dim=1).cpu().numpy()
    stops = np.isin(columns, list(stop))
    lengths = np.where(stops.any(axis=1), stops.argmax(axis=1), columns.shape[1])
    return [row[:length] for row, length in zip(columns, lengths, strict=True)]
