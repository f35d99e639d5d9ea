"""Where histories may be padded to the longest of their batch, and not to ``MAX_ITEM_LIST_LENGTH``.

RecBole pads at the right. A model reads the same of a shorter padding if it looks at no place behind the history:
because it is causal and reads its answer at the last item (GRU4Rec, SASRec), or masks what is empty (ComiRec, CORE,
NARM). Others do not: STAMP adds up what stands at the empty places, Caser has a width, and NextItNet reads its answer
at the last place, whatever stands there. A model that is not named here is left alone.

The scores are then equal up to rounding. Training is cut only where it draws nothing for each place: dropout would draw
other masks than RecBole's for the same seed. So would a transform (BERT4Rec's masks), in evaluation, too.
"""

from typing import Any

READ_NO_PADDING = frozenset(("GRU4Rec", "SASRec", "CORE", "NARM", "ComiRec"))


def may_be_cut(config: Any, training: bool) -> bool:
    """Tell whether the model of a run gives the same for histories that are padded to the longest of their batch.

    Args:
        config: the settings of the run.
        training: for batches to train on; False: to evaluate.
    """
    if config["model"] not in READ_NO_PADDING or config["transform"] is not None:
        return False
    return not training or not _draws_for_each_place(config)


def _draws_for_each_place(config: Any) -> bool:
    return any("dropout" in name and value for name, value in config.merged.items())
