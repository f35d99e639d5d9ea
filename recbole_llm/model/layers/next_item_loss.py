"""The loss of a user vector and the next item, as RecBole's sequential models have it."""

from recbole.model.loss import BPRLoss
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.errors import SettingError


class NextItemLoss(nn.Module):
    """Cross-entropy over all items (CE), or Bayesian personalised ranking against one sampled item (BPR).

    As in RecBole's SASRec and GRU4Rec, the softmax has a class for every row of the item table, row 0 (the padding id)
    among them: it is never a target, so training only ever lowers it, and RecBole's evaluation leaves it out.

    Args:
        loss_type: CE or BPR.

    Raises:
        SettingError: for another `loss_type`.
    """

    def __init__(self, loss_type: str) -> None:
        super().__init__()
        if loss_type not in ("CE", "BPR"):
            raise SettingError(f"loss_type={loss_type} is not one of CE, BPR")
        self.loss_type = loss_type
        self.bpr = BPRLoss()

    def forward(self, users: Tensor, items: Tensor, positives: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Return the mean loss.

        Args:
            users: user vectors [batch, size].
            items: the item table [items, size].
            positives: ids of the next items, int64 [batch].
            negatives: ids of sampled items, int64 [batch]; BPR alone reads them.
        """
        if self.loss_type == "CE":
            return F.cross_entropy(users @ items.T, positives)
        assert negatives is not None, "RecBole samples negatives for BPR"
        return self.bpr((users * items[positives]).sum(dim=1), (users * items[negatives]).sum(dim=1))
