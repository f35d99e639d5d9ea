"""A projection to items that starts from the hidden states of the items' own texts, and not from random numbers."""

import torch
from torch import Tensor

from recbole_llm.model.layers.text_table import principal_directions

_OWN_LOGIT = 10.0  # with MiniLM frozen, on validation of Scientific 10 was better than 5, 15 and 20
_TINY = torch.finfo(torch.float32).tiny  # in place of nothing to divide by
_LEAST_OWN = 1e-9
_LEAST_SHARE = 1e-4  # of the largest variance: directions below it hold no text, and would be blown up


def projection_of_texts(states: Tensor) -> Tensor:
    """Return W [items, width] for which ``W h`` is the likeness of a history's state h and the items' states s_i.

    ``W_i = c P S^(-1/2) (s_i - m)``, m and S being mean and covariance of the states, P what takes the direction of m
    out, and c such that an item's logit for its own state is 10 in the mean. S^(-1/2) keeps the few directions in which
    all texts of a catalogue differ most from deciding alone; P keeps what all states share from favouring an item.

    Args:
        states: s [items, width]; all zeros, as those of the padding id, stand for an item without a text, which gets
            a row of zeros, as all do where texts differ in the direction of m alone.
    """
    known = states.any(dim=1)
    weight = torch.zeros_like(states)
    texts = states[known].double().cpu()
    if not len(texts):
        return weight
    mean, directions, variances = principal_directions(texts)
    variances = variances.clamp_min(_LEAST_SHARE * variances[0].clamp_min(_TINY))
    rows = ((texts - mean) @ directions) * variances.rsqrt() @ directions.T
    least = _LEAST_OWN * (rows.norm(dim=1) * texts.norm(dim=1)).mean()
    rows -= (rows @ mean)[:, None] * mean / (mean @ mean).clamp_min(_TINY)
    own = (rows * texts).sum(dim=1).mean()
    if own <= least:  # no more than rounding is left: nothing tells the texts apart
        return weight
    weight[known] = (rows * (_OWN_LOGIT / own)).to(states)
    return weight
