"""How loud positions are beside items (`position_scale`).

RecBole's transformers normalise the sum of an item's vector and its position's, which start equally large: half of what
a layer reads of a new item is where it stands. The authors of SASRec multiply item vectors by the square root of their
size first. In a normalised sum that is the same as to divide the positions by it: LN(s e + p) = LN(e + p / s).
"""

from recbole.model.abstract_recommender import AbstractRecommender
from torch import nn

from recbole_llm.errors import SettingError

_NAME = "position_embedding"  # of RecBole's transformers and of this package's


def scale_positions(model: nn.Module, scale: float) -> None:
    """Let a model add its position vectors times `scale`; the weights themselves stay as they are.

    An ID model inside the model has settings of its own, and keeps its positions.

    Args:
        model: a new model.
        scale: 1 changes nothing, 0 leaves positions out.

    Raises:
        SettingError: if the model has no table of positions.
    """
    if scale == 1:
        return
    others = [each for each in model.modules() if each is not model and isinstance(each, AbstractRecommender)]
    inner = {id(part) for each in others for part in each.modules()}
    named = ((name.split(".")[-1], module) for name, module in model.named_modules())
    tables = [module for name, module in named if name == _NAME and id(module) not in inner]
    if not tables:
        raise SettingError(
            f"position_scale={scale} is for models with a table of positions, such as SASRec, and not for "
            f"{type(model).__name__}: leave it out"
        )
    for table in tables:
        table.register_forward_hook(lambda _module, _positions, vectors: vectors * scale)
