"""What the tests of IDLE-Adapter share; their fixtures are in model/conftest.py."""

import numpy as np
from small_data import TITLES

SIZE = 8  # of a user vector
# Byte-level BPE would make one token of a bracket and the comma after it; prompts are laid together from pieces.
CLEAN = {**TITLES, "a": "Toy Story 1995"}
ID_SETTINGS = {
    "ComiRec": {"embedding_size": SIZE},
    "GRU4Rec": {"embedding_size": SIZE, "hidden_size": SIZE},
    "SASRec": {"hidden_size": SIZE, "inner_size": SIZE},
}


def trainer_of(parts, prepared=True):
    trainer = parts.trainer()
    if prepared:
        trainer.precompute()
    return trainer


def steps_of(parts, rows=None):
    """The passes of a step with the given rows of the training part, or all."""
    model = parts.model
    samples = model.training_samples(np.random.default_rng(0))
    return model.prepared_step(samples if rows is None else samples.select(np.asarray(rows)))


def loss_of(parts, rows=None):
    """The loss of a step, of which the trainer takes the gradient."""
    queries, passes = steps_of(parts, rows)
    return sum(parts.model.pass_loss_sum(part) for part in passes) / queries
