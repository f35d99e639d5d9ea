"""What torch.compile asks of a packed batch: a layer is compiled once for all numbers of sequences."""

import numpy as np
import torch
from torch._dynamo.testing import CompileCounter

from recbole_llm.packing.batch import SequenceBounds, sequence_bounds


def test_the_number_of_sequences_compiles_nothing_again():
    counter = CompileCounter()

    @torch.compile(backend=counter, dynamic=True)
    def layer(states, bounds):
        return states * bounds.longest + bounds.offsets.sum() if bounds.causal else states

    for sequences in range(3, 9):
        lengths = np.full(sequences, 4)
        layer(torch.randn(4 * sequences, 8), sequence_bounds(lengths, causal=True))
    assert counter.frame_count == 1
    # torch 2.11 compiles again even if a layer reads none of these, as it takes all fields of a frozen dataclass.
    assert not SequenceBounds.__dataclass_params__.frozen
