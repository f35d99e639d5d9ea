"""One sequence at a time: from token ids to the best items in one piece, as a CUDA graph for each of a few lengths.

Launching some hundred small kernels from Python takes longer than running them. A CUDA graph launches them at once, but
its shapes are fixed: so a sequence is laid into the smallest bucket that holds it. What stands to the right of the last
query is never seen by it, in a causal model, and changes nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.packing.batch import SequenceBounds

BUCKETS = (64, 128, 256, 512, 1024)
SEEN = 256  # maximum number of items of a history that can be left out of the ranking


@dataclass
class _Bucket:
    """What one captured length reads and writes, always at the same addresses.

    Attributes:
        host: int64 [length + 1 + SEEN], page-locked for a graph: token ids, row of the query, items that are left out.
        inputs: the same on the device.
        positions: int64 [1, length].
        bounds: one sequence of the whole length.
        result: float64 [2, k], scores and ids, once captured.
        graph: the captured computation; None computes step by step.
    """

    host: Tensor
    inputs: Tensor
    positions: Tensor
    bounds: SequenceBounds
    result: Tensor | None = None
    graph: "torch.cuda.CUDAGraph | None" = None


class SingleSequence:
    """Backbone, projection and top-k of one sequence.

    Args:
        backbone: a causal transformers base model after `use_packed_attention`, in eval mode, its weights in the
            precision that is computed in.
        projection: from states [queries, width] to scores [queries, items], -inf for id 0.
        max_positions: how many tokens the backbone has positions for, None if there is no bound.
        buckets: token counts, ascending.
        capture: whether to capture CUDA graphs; without, the same computation step by step.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        *,
        max_positions: int | None = None,
        buckets: tuple[int, ...] = BUCKETS,
        capture: bool = True,
    ) -> None:
        self.backbone = backbone
        self.projection = projection
        self.max_positions = max_positions
        self.buckets = buckets
        self.device = next(backbone.parameters()).device
        self.capture = capture
        self._places: dict[tuple[int, int], _Bucket] = {}
        self._pool = torch.cuda.graph_pool_handle() if capture else None  # replays never overlap: one pool for all
        # Four dimensions: transformers takes the mask for finished and makes none, which could wait for the device.
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)

    def fits(self, tokens: int, seen: int = 0) -> bool:
        """Return whether some bucket holds a sequence of `tokens` tokens with `seen` items to leave out."""
        return 0 < tokens <= self.buckets[-1] and seen <= SEEN

    @torch.no_grad()
    def top(self, token_ids: np.ndarray, k: int, seen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and ids of the best `k` items after the last token.

        Args:
            token_ids: int64 [tokens], ends with the query token; see `fits`.
            k: how many.
            seen: int64, ids of items that are left out: their score is -inf.

        Returns:
            float64 [k], descending, and int64 [k].
        """
        tokens = len(token_ids)
        length = next(bucket for bucket in self.buckets if bucket >= tokens)
        place = self._places.get((length, k))
        if place is None:
            place = self._places[length, k] = self._place(length, k)
        host = place.host.numpy()
        host[:tokens] = token_ids  # what stands behind is another sequence's, and never seen
        host[length] = tokens - 1
        host[length + 1 :] = 0
        if seen is not None:
            host[length + 1 : length + 1 + len(seen)] = seen
        place.inputs.copy_(place.host, non_blocking=True)
        if place.graph is None:
            best = self._compute(place, k)
        else:
            assert place.result is not None
            place.graph.replay()
            best = place.result
        scores, ids = best.cpu().numpy()  # one copy; it waits for the device
        return scores, ids.astype(np.int64)

    def prepare(self, k: int) -> None:
        """Capture all buckets ahead of the first request for `k` items."""
        for bucket in self.buckets:
            self.top(np.zeros(bucket, dtype=np.int64), k)

    def _place(self, length: int, k: int) -> _Bucket:
        host = torch.zeros(length + 1 + SEEN, dtype=torch.int64)
        positions = torch.arange(length, device=self.device)
        if self.max_positions is not None:
            positions.clamp_(max=self.max_positions - 1)  # of padding alone
        offsets = torch.tensor([0, length], dtype=torch.int32, device=self.device)
        place = _Bucket(
            host=host.pin_memory() if self.capture else host,
            inputs=host.to(self.device, copy=True),
            positions=positions[None],
            bounds=SequenceBounds((length,), offsets, causal=True, longest=length, alone=True),
        )
        if self.capture:
            self._capture(place, k)
        return place

    def _capture(self, place: _Bucket, k: int) -> None:
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries make their workspaces at the first call, outside the graph
                for _ in range(3):
                    self._compute(place, k)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                place.result = self._compute(place, k)
            place.graph = graph

    def _compute(self, place: _Bucket, k: int) -> Tensor:
        token_ids, query, seen = place.inputs.split([place.bounds.longest, 1, SEEN])
        output = self.backbone(
            input_ids=token_ids[None],
            position_ids=place.positions,
            attention_mask=self._mask,
            use_cache=False,
            sequence_bounds=place.bounds,
        )
        state = output.last_hidden_state[0].index_select(0, query).float()
        scores = self.projection(state).index_fill(1, seen, float("-inf"))
        values, ids = scores.topk(k, dim=1)
        return torch.cat([values.double(), ids.double()])  # an id is exact in float64
