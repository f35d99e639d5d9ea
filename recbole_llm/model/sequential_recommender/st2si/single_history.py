"""One user's ranking by ST2SI, computed by a CUDA graph."""

import copy
import logging
from typing import Any

import numpy as np

from recbole_llm.backbone.single_sequence import SingleSequence


class SingleHistory:
    """Ranks all items after one history, see `SingleSequence`.

    A model with float32 weights that computes in bf16 gets a bf16 copy of its backbone for this: scores differ by
    bf16's rounding, and further training is not seen.

    Args:
        model: an `ST2SI` on a CUDA device, without an ID model.
        options: of `SingleSequence`.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self._model = model
        backbone: Any = model.backbone
        if next(backbone.parameters()).dtype != model.precision:
            backbone = copy.deepcopy(backbone)
            for parameter in backbone.parameters():  # not the buffers: rotary frequencies stay float32
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(model.precision)
        options.setdefault("max_positions", getattr(backbone.config, "max_position_embeddings", None))
        self._sequence: SingleSequence | None = SingleSequence(backbone, model.projection, **options)

    def top(self, history: np.ndarray, k: int, seen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return scores and ids of the best `k` items, best first; None if there is no graph for the history.

        Args:
            history: int64 [items], item ids, the oldest first; the most recent that the model reads.
            k: how many items.
            seen: item ids that are left out, each once; None for none.
        """
        if self._sequence is None:
            return None
        inputs = self._model.inputs
        rows = inputs.prefix_sequences(history[None], np.array([len(history)])).rows
        token_ids = inputs.table.gather(rows)[0]
        if not self._sequence.fits(len(token_ids), 0 if seen is None else len(seen)):
            return None
        try:
            return self._sequence.top(token_ids, k, seen)
        except RuntimeError as error:  # a layer that waits for the device, or no memory left
            logging.getLogger().warning("no CUDA graph can be made, the plain path is taken: %s", error)
            self._sequence = None
            return None
