"""BERT4Rec trained and asked as its paper does: any item of a history may be masked, and the next item is at its end.

Repairs in RecBole 1.2.1:

* `recbole/model/sequential_recommender/bert4rec.py:119` (`reconstruct_test_data`) always drops the oldest item before
  it puts the mask behind the last, also where there is room for both: a history of one item is read as a mask alone.
* `recbole/data/transform.py:147` (`MaskItemSequence`) masks items of a row's history, and never the row's own target.
  The last training item of a user is the target of the last row, so it is neither masked nor read in training; the
  mask at the end (`ft_ratio`) hides an item that is followed by another one.
* `bert4rec.py:194` and `:207` take the place 0 for padding: the oldest item is masked, and never predicted.
* `transform.py:73` (`_padding_sequence`) leaves room for ``mask_ratio * MAX_ITEM_LIST_LENGTH`` predictions a row: of
  more masked items the oldest are not predicted; with room for none (a ratio below 1 / length) training fails.

Rows stay RecBole's, one per prefix of a history; the paper reads every user's sequence as a whole.
"""

from typing import Any

import torch
from recbole.data import transform as recboles
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn import functional as F

from recbole_llm.errors import DataError

_NEGATIVE_FLOOR = 1e-14  # RecBole's, under the logarithm


def append(histories: Tensor, lengths: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Put an item behind each history; a full history loses its oldest item.

    Args:
        histories: int64 [rows, width], the oldest item first, zeros behind the last.
        lengths: int64 [rows], of the histories.
        items: int64 [rows].

    Returns:
        int64 [rows, width], and the place of the item, int64 [rows].
    """
    longer = F.pad(histories, (0, 1)).scatter(1, lengths[:, None], items[:, None])
    full = (lengths == histories.shape[1])[:, None]
    return torch.where(full, longer[:, 1:], longer[:, :-1]), lengths.clamp(max=histories.shape[1] - 1)


class MaskedItems:
    """Masks items of every row's history with its target behind it; stands in for `MaskItemSequence`.

    With the probability `ft_ratio` a batch has its last items masked, all other batches each item with the probability
    `mask_ratio`. Random numbers are torch's.

    Args:
        config: the settings; the names of the new columns are put into it, as RecBole does.
    """

    def __init__(self, config: Any) -> None:
        item, sequence = config["ITEM_ID_FIELD"], config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
        self._item, self._sequence, self._length = item, sequence, config["ITEM_LIST_LENGTH_FIELD"]
        self._mask_ratio, self._last_ratio = config["mask_ratio"], config["ft_ratio"] or 0
        self._draws_negatives = config["loss_type"] == "BPR"
        self._masked, self._targets, self._negatives = f"Mask_{sequence}", f"Pos_{item}", f"Neg_{item}"
        config["MASK_ITEM_SEQ"], config["POS_ITEMS"], config["NEG_ITEMS"] = self._masked, self._targets, self._negatives
        config["MASK_INDEX"] = "MASK_INDEX"  # RecBole's model asks for the name; there is no such column

    def __call__(self, dataset: Any, interaction: Interaction) -> Interaction:
        """Add the masked sequences, and per place the item behind a mask (0 where none is), int64 [rows, width]."""
        items = int(dataset.num(self._item))
        lengths = interaction[self._length]
        whole, last = append(interaction[self._sequence], lengths, interaction[self._item])
        if torch.rand(()) < self._last_ratio:
            masks = torch.zeros_like(whole, dtype=torch.bool).scatter(1, last[:, None], True)
        else:
            masks = (torch.rand(whole.shape).to(whole.device) < self._mask_ratio) & (whole > 0)
        columns = {self._masked: whole.masked_fill(masks, items), self._targets: whole.masked_fill(~masks, 0)}
        if self._draws_negatives:
            columns[self._negatives] = _negatives(whole, masks, items)
        interaction.update(Interaction(columns))
        return interaction


def _negatives(whole: Tensor, masks: Tensor, items: int) -> Tensor:
    """Return a random item outside its row at every masked place, 0 elsewhere: int64 [rows, width]."""
    if whole.shape[1] + 1 >= items and any(len({0, *row}) == items for row in whole.tolist()):
        raise DataError("a history holds every item of the catalogue: there is no negative one for loss_type=BPR")
    row, place = masks.nonzero(as_tuple=True)
    drawn = torch.zeros_like(row)
    left = torch.arange(len(row), device=row.device)
    while len(left):
        drawn[left] = torch.randint(1, items, (len(left),)).to(row.device)
        left = left[(whole[row[left]] == drawn[left, None]).any(dim=1)]
    return torch.zeros_like(whole).index_put((row, place), drawn)


def next_item_states(model: Any, interaction: Interaction) -> Tensor:
    """Return BERT4Rec's states of the masks behind the histories of rows: [rows, hidden]."""
    histories, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
    masked, last = append(histories, lengths, torch.full_like(lengths, model.mask_token))
    states: Tensor = model.gather_indexes(model.forward(masked), last)
    return states


def repair(model_class: Any) -> None:
    """Give RecBole's class of BERT4Rec the methods of this module, and its batches `MaskedItems`."""
    recboles.MaskItemSequence = MaskedItems
    model_class.calculate_loss = _calculate_loss
    model_class.predict = _predict
    model_class.full_sort_predict = _full_sort_predict


def _calculate_loss(self: Any, interaction: Interaction) -> Tensor:
    """Return the mean loss over all masked places: cross-entropy over all items, or against one negative each."""
    targets = interaction[self.POS_ITEMS]
    masks = targets > 0
    states, items = self.forward(interaction[self.MASK_ITEM_SEQ])[masks], targets[masks]
    count = max(len(items), 1)  # a batch may have no mask
    if self.loss_type == "CE":
        scores = states @ self.item_embedding.weight[: self.n_items].T + self.output_bias
        return F.cross_entropy(scores, items, reduction="sum") / count
    others = interaction[self.NEG_ITEMS][masks]
    gaps = (states * (self.item_embedding(items) - self.item_embedding(others))).sum(dim=1)
    gaps = gaps + self.output_bias[items] - self.output_bias[others]
    return -torch.log(_NEGATIVE_FLOOR + torch.sigmoid(gaps)).sum() / count


def _predict(self: Any, interaction: Interaction) -> Tensor:
    """Return the scores [rows] of the rows' items."""
    items = interaction[self.ITEM_ID]
    scores: Tensor = (next_item_states(self, interaction) * self.item_embedding(items)).sum(dim=1)
    return scores + self.output_bias[items]


def _full_sort_predict(self: Any, interaction: Interaction) -> Tensor:
    """Return the scores of all items: [rows, items]."""
    table = self.item_embedding.weight[: self.n_items]
    scores: Tensor = next_item_states(self, interaction) @ table.T + self.output_bias
    return scores
