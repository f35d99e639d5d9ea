"""LLM-Rec (Tang et al. 2023, "One Model for All: Large Language Models are Domain-Agnostic Recommendation Systems").

One language model encodes the texts of the last items of a history, laid end to end, and every item's text by itself;
the score of an item is the product of both vectors. With ``item_loss: sampled`` the target stands among a few random
items that are encoded with gradients in the same step, as in the authors' code. With ``item_loss: table`` and
``two_stage: True`` it is trained as the ST2SI paper trained it: by cross-entropy over all items, in Recformer's two
stages. (Not the LLM-Rec of Lyu et al., which prompts.)
"""

from recbole_llm.model.needs import PretrainedState
from recbole_llm.model.tower_recommender import TowerRecommender


class LLMRec(TowerRecommender):
    """LLM-Rec as a RecBole sequential model; all of it is `TowerRecommender`'s.

    A pre-training on other datasets has the same loss; its random negatives are of all sources.
    """

    stages = (PretrainedState(),)
