"""Losses of many user vectors and the items that follow, for models that predict at every position of a history.

They serve item tables of ID models and ST2SI's item linear projection alike. All are sums or means over the labelled
queries; label 0 is no label. With z_j the product of a user vector and the vector of
item j, y the next item and N the number of items:

* CE: -log softmax(z)_y over all rows of the item table, the padding id among them, as in RecBole's models: it is never
  a label, so training only lowers it.
* BPR: -log(1e-10 + sigma(z_y - z_j)), j drawn from the other items (`recbole.model.loss.BPRLoss`).
* BCE: -log sigma(z_y) - sum of log(1 - sigma(z_j)) over k items j drawn from the others (Kang & McAuley, ICDM 2018,
  with k = 1).
* gBCE: as BCE with beta log sigma(z_y), alpha = k / (N - 1) and beta = alpha (t (1 - 1 / alpha) + 1 / alpha) (Petrov &
  Macdonald, RecSys 2023, eq. 9 to 11); t = 0 is BCE, t = 1 the calibration of a full softmax.
* SampledCE: softmax over y and m items that a step draws from a distribution q, with the correction of their logits
  z_j - log(m q_j) (Bengio & Senecal 2008). The label is not drawn, and so not corrected; with P_y its probability among
  them, the loss is (1 - P_y)(-z_y + log of the sum of exp(z_j - log(m q_j)) over the drawn j other than y), where 1 -
  P_y has no gradient: the gradient of the full softmax, its expectation over items drawn (Khrylchenko et al.,
  "Correcting the LogQ Correction", RecSys 2025), which -z_y + log(exp(z_y) + the same sum) has, too. The plain
  correction treats the label as drawn: its logit is z_y - log(m q_y) (Yi et al., RecSys 2019).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.errors import SettingError
from recbole_llm.model.layers.item_linear_projection import cross_entropy_sum
from recbole_llm.model.layers.split_table import SplitTable

_DENSE = 16  # scores of k items come from a product with the whole table, if that has at most so many times k rows
_BPR_FLOOR = 1e-10  # of recbole.model.loss.BPRLoss
_HIDDEN = -1e30  # the logit of a drawn item that is the label; minus infinity would have no gradient where all are


def vectors_of(table: Tensor, items: Tensor, sparse: bool) -> Tensor:
    """Return the rows [..., size] of a table; with `sparse` its gradient is a sparse tensor of them alone."""
    return F.embedding(items, table, sparse=True) if sparse else table[items]


def scores_of(states: Tensor, table: Tensor | SplitTable, items: Tensor, sparse: bool = False) -> Tensor:
    """Return the scores [queries, k] of items [queries, k] for states [queries, size]."""
    if isinstance(table, SplitTable):
        return table.of_pairs(states, items)
    if len(table) <= _DENSE * items.shape[1] and not sparse:
        return (states @ table.T).gather(1, items)
    return (vectors_of(table, items, sparse) @ states[:, :, None]).squeeze(2)


def bpr(states: Tensor, table: Tensor | SplitTable, labels: Tensor, negatives: Tensor, sparse: bool = False) -> Tensor:
    """Return BPR [queries] against items [queries, 1]."""
    scores = scores_of(states, table, torch.cat([labels[:, None], negatives], dim=1), sparse)
    difference = scores[:, :1] - scores[:, 1:]
    return -torch.log(_BPR_FLOOR + torch.sigmoid(difference)).squeeze(1)


def binary(
    states: Tensor,
    table: Tensor | SplitTable,
    labels: Tensor,
    negatives: Tensor,
    beta: float = 1.0,
    sparse: bool = False,
) -> Tensor:
    """Return (generalised) binary cross-entropies [queries] against items [queries, k]."""
    scores = scores_of(states, table, torch.cat([labels[:, None], negatives], dim=1), sparse)
    # log(1 - sigma(z)) = log sigma(-z)
    return -beta * F.logsigmoid(scores[:, 0]) - F.logsigmoid(-scores[:, 1:]).sum(dim=1)


def calibrated_beta(calibration: float, negatives: int, items: int) -> float:
    """Return beta of gBCE.

    Args:
        calibration: t, from 0 to 1.
        negatives: k.
        items: N, the padding id left out.
    """
    share = negatives / (items - 1)
    return share * (calibration * (1 - 1 / share) + 1 / share)


def sampled_softmax(
    states: Tensor,
    table: Tensor | SplitTable,
    labels: Tensor,
    drawn: Tensor,
    log_expected: Tensor,
    of_labels: Tensor | None = None,
    sparse: bool = False,
) -> Tensor:
    """Return sampled cross-entropies [queries].

    Args:
        states: [queries, size].
        table: [items, size].
        labels: int64 [queries].
        drawn: int64 [m], items that all queries share, also those of other processes that split the table; one may be
            drawn more than once.
        log_expected: [m], log(m q_j) of each.
        of_labels: [queries], log(m q_y) of each label, for the plain correction; None for the corrected one.
        sparse: whether the gradient of the table is a sparse tensor.
    """
    if isinstance(table, SplitTable):
        label_logits, logits = table.of_pairs(states, labels[:, None])[:, 0], table.of_all(states, drawn)
    else:
        label_logits = (states * vectors_of(table, labels, sparse)).sum(dim=1)
        logits = states @ vectors_of(table, drawn, sparse).T
    logits = logits - log_expected
    others = logits.masked_fill(drawn == labels[:, None], _HIDDEN).logsumexp(dim=1)
    if of_labels is not None:
        return F.softplus(others - (label_logits - of_labels))
    missed = torch.sigmoid(others - label_logits).detach()  # 1 - P_y
    return missed * (others - label_logits)


class PositionLoss(nn.Module):
    """One of the losses above, chosen by `loss_type`. It has no weights, and a checkpoint holds nothing of it.

    Args:
        loss_type: CE, BPR, BCE, gBCE or SampledCE.
        popularity: float [items], how often each item is a training target; the padding id's is 0.
        negatives: k of BCE and gBCE, m of SampledCE.
        calibration: t of gBCE.
        sampling: q of SampledCE: uniform, popularity (items that are never a target are never drawn), or mixed, the
            mean of both.
        correction: of SampledCE, corrected or plain.
        sparse: whether gradients of the table are sparse tensors, of the rows that a step reads.

    Raises:
        SettingError: if gBCE or BCE shall draw more items than there are.
    """

    log_share: Tensor
    up_to: Tensor

    def __init__(
        self,
        loss_type: str,
        popularity: Tensor,
        negatives: int = 256,
        calibration: float = 0.75,
        sampling: str = "mixed",
        correction: str = "corrected",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.loss_type, self.negatives, self.sparse = loss_type, negatives, sparse
        self.plain = correction == "plain"
        self.items = len(popularity) - 1
        if loss_type in ("BCE", "gBCE") and negatives >= self.items:
            raise SettingError(
                f"num_negatives={negatives} of {loss_type} must be below {self.items}, the number of items"
            )
        self.beta = calibrated_beta(calibration, negatives, self.items) if loss_type == "gBCE" else 1.0
        popular = popularity.double() / popularity.sum()
        uniform = torch.full_like(popular, 1 / self.items)
        uniform[0] = 0
        share = {"uniform": uniform, "popularity": popular, "mixed": (uniform + popular) / 2}[sampling]
        self.register_buffer("log_share", share.log().float(), persistent=False)
        self.register_buffer("up_to", share.cumsum(0), persistent=False)

    @classmethod
    def from_config(cls, config: Any, popularity: Tensor) -> "PositionLoss":
        """Return the loss of a run; `popularity` is that of the class."""
        return cls(
            config["loss_type"], popularity, config["num_negatives"], config["gbce_calibration"],
            config["negative_sampling"], config["logq_correction"], config["item_optimizer"] is not None,
        )  # fmt: skip

    def forward(self, states: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the labelled queries, 0 without any. Nothing waits for a GPU.

        Args:
            states: user vectors [queries, size].
            table: item vectors [items, size], row 0 the padding id's.
            labels: int64 [queries], the next items; 0 for none.
        """
        return self.summed(states, table, labels) / (labels > 0).sum().clamp(min=1)

    def summed(self, states: Tensor, table: Tensor | SplitTable, labels: Tensor) -> Tensor:
        """Return the sum over the labelled queries; see `forward`.

        With a `SplitTable`, in a loss on drawn items, it is that of the queries of this process, and all processes call
        it together. They have the items of SampledCE in common; for the others each draws its own.
        """
        if self.loss_type == "CE":
            assert isinstance(table, Tensor)
            return cross_entropy_sum(states, table, labels, table.dtype, padding_class=True)
        return self._drawn(states.to(table.dtype), table, labels).masked_fill(labels == 0, 0).sum()

    def _drawn(self, states: Tensor, table: Tensor | SplitTable, labels: Tensor) -> Tensor:
        if self.loss_type == "SampledCE":
            place = torch.rand(self.negatives, dtype=torch.double, device=labels.device) * self.up_to[-1]
            drawn = torch.searchsorted(self.up_to, place, right=True).clamp(max=self.items)
            drawn = table.drawn(drawn) if isinstance(table, SplitTable) else drawn
            log_expected = self.log_share[drawn] + math.log(self.negatives)
            of_labels = self.log_share[labels.clamp(min=1)] + math.log(self.negatives) if self.plain else None
            return sampled_softmax(states, table, labels, drawn, log_expected, of_labels, self.sparse)
        if self.loss_type == "BPR":
            return bpr(states, table, labels, self._others(labels, 1), self.sparse)
        return binary(states, table, labels, self._others(labels, self.negatives), self.beta, self.sparse)

    def _others(self, labels: Tensor, number: int) -> Tensor:
        """Return int64 [queries, number]: for each query, items drawn evenly from all but its label."""
        drawn = torch.randint(1, self.items, (len(labels), number), device=labels.device)
        return drawn + (drawn >= labels[:, None].clamp(min=1))
