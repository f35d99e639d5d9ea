"""The contrastive loss within a batch (InfoNCE)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def in_batch_loss(queries: Tensor, keys: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return the mean of -log softmax_j cos(query_i, key_j) / temperature at j = i.

    The keys of all other rows are negatives, but for those with the row's own id: they are no negatives, and their
    logit is -inf. A row without any negative has loss 0.

    Args:
        queries: [rows, size].
        keys: [rows, size].
        ids: int64 [rows], which item each key stands for.
        temperature: of the softmax.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    same = ids[:, None] == ids
    same.fill_diagonal_(False)
    labels = torch.arange(len(ids), device=ids.device)
    return F.cross_entropy(logits.masked_fill(same, float("-inf")), labels)
