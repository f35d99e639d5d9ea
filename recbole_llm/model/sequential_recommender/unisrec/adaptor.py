"""The adaptor of UniSRec: parametric whitening experts, mixed by a gate (section 2.1 of the paper)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_NOISE = 1e-2


class WhiteningAdaptor(nn.Module):
    """v = sum_k g_k W_k (x - b_k), with g = softmax(x W_g + eps * (softplus(x W_n) + 0.01)).

    The shift b_k stands in the space of the input and starts at 0; with W and b from a whitening of the texts (W W^T =
    the inverse of their covariance, b their mean) an expert gives vectors of covariance I. The noise eps ~ N(0, 1) is
    drawn in training alone. All experts are mixed; W_g and W_n start at 0, which weighs them equally.

    Args:
        width: of the text vectors.
        size: of the item vectors.
        experts: how many.
        dropout: of x before an expert; the gate reads x itself.
        deviation: standard deviation of the initial W_k.
    """

    def __init__(self, width: int, size: int, experts: int, dropout: float, deviation: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width, size))
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.noise = nn.Parameter(torch.zeros(width, experts))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.weight, std=deviation)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the item vectors [items, size] of text vectors [items, width]."""
        weights = self._gate_weights(vectors)  # [items, experts]
        mixed = vectors.new_zeros(len(vectors), self.weight.shape[2])
        for number in range(len(self.weight)):  # never [items, experts, size] at once
            expert = (self.dropout(vectors) - self.shift[number]) @ self.weight[number]
            mixed = mixed + weights[:, number, None] * expert
        return mixed

    def _gate_weights(self, vectors: Tensor) -> Tensor:
        logits = vectors @ self.gate
        if self.training:
            deviation = F.softplus(vectors @ self.noise) + _LEAST_NOISE
            logits = logits + torch.randn_like(logits) * deviation
        return logits.softmax(dim=1)
