"""The item linear projection (ILP) of ST2SI, eq. 5, and its cross-entropy, eq. 7."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ItemLinearProjection(nn.Module):
    """p = softmax(W h), W of shape [items, width], without a bias.

    Row 0 belongs to RecBole's padding id: its logit is always -inf, so it takes no probability and never wins.

    Args:
        width: size of the hidden states.
        items: number of item ids, the padding id included.
    """

    def __init__(self, width: int, items: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(items, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # torch.nn.Linear's own initialisation, as in the authors' code

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [queries, items] of hidden states [queries, width]."""
        logits = F.linear(states.to(self.weight.dtype), self.weight)
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), float("-inf"))

    def loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over queries of -log p(label).

        Args:
            states: [queries, width].
            labels: int64 [queries], item ids from 1.
        """
        return F.cross_entropy(self(states).float(), labels, reduction="sum")
