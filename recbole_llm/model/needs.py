"""What a model can need before it is built, as declarations; `recbole_llm.stages` knows how each is made.

    class IDLEAdapter(TextRecommender):
        stages = (IdModel(),)

        def __init__(self, config, dataset, id_model): ...

A declaration says the name of the constructor's argument, and nothing of how or where the thing is made: a model knows
neither runs nor stages.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainedBackbone:
    """A language model pre-trained on other datasets, where `pretrain_datasets` names some.

    The constructor's argument is ``backbone``: a preset, a folder or a hub id, str.
    """

    argument: str = "backbone"


@dataclass(frozen=True)
class PretrainedState:
    """The weights of a pre-training of the same model on other datasets, where `pretrain_datasets` names some.

    The pre-training takes the model's own `pretraining_loss` and keeps its `transferred_state`. The constructor's
    argument is ``start``, a `recbole_llm.model.pretrained_state.PretrainedWeights`; None for fresh weights.
    """

    argument: str = "start"


@dataclass(frozen=True)
class IdModel:
    """A trained recommender, frozen, as `id_model`, `id_model_path` and `id_model_settings` say.

    The constructor's argument is ``id_model``, a `recbole_llm.model.id_model.frozen.FrozenIdModel`; None where the
    settings name no ID model and it is not `required`.
    """

    required: bool = True
    argument: str = "id_model"


@dataclass(frozen=True)
class OwnPretraining:
    """The first of a model's own two stages of training (S3Rec), with ``train_stage: both``.

    The constructor's argument is ``start``: the folder of the run whose weights training starts from, str; None for a
    model that is itself pre-trained.
    """

    argument: str = "start"
