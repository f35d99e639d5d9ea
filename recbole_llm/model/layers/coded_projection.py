"""An item linear projection whose rows are put together from a few codes an item (RecJPQ).

Item i has M codes of B values each. Row i of W is the concatenation of M vectors, one of each codebook C_k [B, width /
M], so with h_(k) the k-th part of a state

    z_i = sum_k C_k[code_ik] . h_(k)

B width numbers are trained instead of N width, and M bytes an item are kept (Petrov & Macdonald, "RecJPQ: Training
Large-Catalogue Sequential Recommenders", WSDM 2024). Codes are fixed before training: as in the paper's SVD way, items
are sorted along each of the M leading directions of their vectors and cut into B parts of equal size.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.model.layers.block_softmax import BlockSoftmax
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection


def parse_codes(value: str) -> tuple[int, int]:
    """Return M and B of `item_codes` such as 8x256."""
    parts, values = value.split("x")
    return int(parts), int(values)


def quantile_codes(vectors: np.ndarray, parts: int, values: int) -> np.ndarray:
    """Return int64 [n, parts]: the place of each vector along the leading directions, in `values` equal bins.

    Directions are principal components of the vectors; where there are fewer than `parts`, further codes are 0.

    Args:
        vectors: float32 [n, width].
        parts: M.
        values: B.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)  # the leading ones come last
    places = centred @ directions[:, ::-1][:, :parts]
    order = np.argsort(places, axis=0, kind="stable")
    codes = np.zeros((len(vectors), parts), dtype=np.int64)
    bins = np.arange(len(vectors)) * values // len(vectors)
    for part in range(places.shape[1]):
        codes[order[:, part], part] = bins
    return codes


class CodedProjection(ItemLinearProjection):
    """p = softmax(W h) with a W that is put together from codes, some rows at a time.

    Until `choose` is called, codes are the digits of the item ids.

    Args:
        width: size of the hidden states, a multiple of `parts`.
        items: number of item ids, the padding id included.
        parts: M.
        values: B.

    Attributes:
        codebooks: C, [M, B, width / M].
        codes: int32 [items, M].
        chosen: whether `choose` was called, bool [].
    """

    codes: Tensor
    chosen: Tensor

    def __init__(self, width: int, items: int, parts: int, values: int) -> None:
        nn.Module.__init__(self)
        self.codebooks = nn.Parameter(torch.empty(parts, values, width // parts))
        nn.init.uniform_(self.codebooks, -(width**-0.5), width**-0.5)  # as rows of a whole W are
        digits = [torch.arange(items) // values**part % values for part in range(parts)]
        self.register_buffer("codes", torch.stack(digits, dim=1).int())
        self.register_buffer("chosen", torch.tensor(False))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W, [items, width], put together."""
        return _rows(self.codebooks, self.codes)

    @property
    def width(self) -> int:
        """The size of the hidden states."""
        return self.codebooks.shape[0] * self.codebooks.shape[2]

    @property
    def to_choose(self) -> bool:
        """Whether the codes are still to be chosen."""
        return not self.chosen

    def choose(self, states: Iterable[tuple[np.ndarray, Tensor]], seed: int) -> None:
        """Choose the codes by the states of items; nothing is drawn. See `ItemLinearProjection`."""
        vectors = np.zeros((len(self.codes), self.width), dtype=np.float32)
        for items, found in states:
            vectors[items] = found.float().cpu().numpy()
        parts, values = self.codebooks.shape[:2]
        self.codes[1:] = torch.from_numpy(quantile_codes(vectors[1:], parts, values))
        self.chosen.fill_(True)

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [queries, items] of hidden states [queries, width], -inf for the padding id."""
        logits = self.of_items(states, slice(None))
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), float("-inf"))

    def of_items(self, states: Tensor, items: slice | Tensor) -> Tensor:
        """Return the logits [queries, n] of some item ids, a slice or int64 [n], that of id 0 as any other."""
        parts, _, size = self.codebooks.shape
        split = states.to(self.codebooks.dtype).view(-1, parts, size).transpose(0, 1)
        products = split @ self.codebooks.mT  # [M, queries, B]: what every code gives
        codes = self.codes[items]
        logits = products[0].index_select(1, codes[:, 0])
        for part in range(1, parts):
            logits += products[part].index_select(1, codes[:, part])
        return logits

    def rows(self, items: slice | Tensor) -> Tensor:
        """Return the rows of W [n, width] of some item ids, put together."""
        return _rows(self.codebooks, self.codes[items])

    def loss(self, states: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sum over queries of -log p(label), float32. See `ItemLinearProjection.loss`."""
        loss: Tensor = _CodedCrossEntropy.apply(states, self.codebooks, self.codes, labels, dtype)
        return loss


class _CodedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over all items, see `BlockSoftmax`.

    A block's rows of W are put together, and their gradient goes to the codes at once: nothing is [items, width].
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, codebooks: Tensor, codes: Tensor, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        normaliser, label_logits = _softmax(states.to(dtype), codebooks, codes).normaliser(labels)
        ctx.save_for_backward(states, codebooks, codes, labels, normaliser)
        ctx.dtype = dtype
        return (normaliser - label_logits).masked_fill(labels == 0, 0).sum()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        states, codebooks, codes, labels, normaliser = ctx.saved_tensors
        gradient = torch.zeros_like(codebooks) if ctx.needs_input_grad[1] else None

        def take(block: slice, of_rows: Tensor) -> None:
            assert gradient is not None
            for part, own in enumerate(of_rows.to(gradient.dtype).split(codebooks.shape[2], dim=1)):
                gradient[part].index_add_(0, codes[block, part], own)

        softmax, scale = _softmax(states.to(ctx.dtype), codebooks, codes), output_gradient * (labels > 0)
        of_states = softmax.gradients(
            labels, normaliser, scale, ctx.needs_input_grad[0], None if gradient is None else take
        )
        return None if of_states is None else of_states.to(states.dtype), gradient, None, None, None


def _softmax(low_states: Tensor, codebooks: Tensor, codes: Tensor) -> BlockSoftmax:
    return BlockSoftmax(low_states, lambda block: _rows(codebooks, codes[block]), len(codes))


def _rows(codebooks: Tensor, codes: Tensor) -> Tensor:
    """Return the rows [n, width] that codes int [n, M] stand for."""
    return torch.cat([book[codes[:, part].long()] for part, book in enumerate(codebooks)], dim=1)
