"""What the tests of IDLE-Adapter share; their fixtures are in model/conftest.py."""

from small_data import TITLES

from recbole_llm import registry

SIZE = 8  # of a user vector
# Byte-level BPE would make one token of a bracket and the comma after it; prompts are laid together from pieces.
CLEAN = {**TITLES, "a": "Toy Story 1995"}
ID_SETTINGS = {
    "ComiRec": {"embedding_size": SIZE},
    "GRU4Rec": {"embedding_size": SIZE, "hidden_size": SIZE},
    "SASRec": {"hidden_size": SIZE, "inner_size": SIZE},
}


def trainer_of(parts, prepared=True):
    trainer = registry.trainer_class(parts.config)(parts.config, parts.model)
    if prepared:
        trainer.precompute()
    return trainer
