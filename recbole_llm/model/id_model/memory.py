"""What a frozen ID model says of rows that are evaluated again after every epoch, computed once."""

from collections.abc import Callable

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.data.dataset import HISTORY_END

_BYTES = 2 * 1024**3  # on the host; what does not fit is computed again


class RowMemory:
    """Results of a function of rows that never changes, by where the rows' histories end in the dataset.

    Rows that are no rows of a dataset, such as histories given by hand, are computed every time.

    Args:
        limit: the maximum number of bytes that are kept, on the host.
    """

    def __init__(self, limit: int = _BYTES) -> None:
        self._left = limit
        self._device = torch.device("cpu")
        self._known: dict[bytes, Tensor] = {}

    def get(self, rows: Interaction, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` returns for a batch of rows, [batch, ...], on the device where it computes.

        Args:
            rows: the batch.
            compute: the function, applied to the batch.
        """
        if HISTORY_END not in rows:
            return compute()
        key = rows[HISTORY_END].cpu().numpy().tobytes()
        if key in self._known:
            return self._known[key].to(self._device, copy=True)
        found = compute()
        size = found.numel() * found.element_size()
        if size <= self._left:
            self._left -= size
            self._device = found.device
            self._known[key] = found.detach().to("cpu", copy=True)  # a reader may write to what it is given
        return found
