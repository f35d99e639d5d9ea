"""What a pre-training keeps: a language model alone, or all weights of a model that serve another catalogue."""

from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.backbone.pretrained import save_backbone
from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.errors import SettingError
from recbole_llm.model.layers.position_scale import scale_positions
from recbole_llm.model.needs import PretrainedBackbone, PretrainedState
from recbole_llm.model.pretrained_state import save_state
from recbole_llm.stages.pretraining_trainer import PretrainingTrainer, with_own_loss
from recbole_llm.trainer.choose import trainer_class

_PRETRAINED = ("ST2SI", "UniSRec", "ZESRec", "LLMRec", "Recformer")


class Kept:
    """How one kind of weights is trained and kept.

    Attributes:
        prefix: what the folder of the pre-training has before the names of its sources.
    """

    prefix = ""

    def folder(self, root: Path, epoch: int) -> Path:
        """Return where the weights after `epoch` epochs (from 1) are kept."""
        raise NotImplementedError

    def more_shape(self, config: Any) -> dict[str, Any]:
        """Return what else is hashed among the settings."""
        raise NotImplementedError

    def settings(self, config: Any, learning_rate: float | None) -> dict[str, Any]:
        """Return the settings of the pre-training that differ from those of the target."""
        raise NotImplementedError

    def build(self, config: Any, dataset: Any) -> Any:
        """Return the model on its device, ready to be trained on the training part of the sources."""
        raise NotImplementedError

    def trainer_class(self, config: Any) -> Any:
        """Return a trainer class with `KeepingMixin` in it."""
        raise NotImplementedError

    def save(self, folder: Path, model: Any, record: dict[str, Any], items: dict[str, np.ndarray]) -> None:
        """Write the weights, what is known of their training, and the keys of the sources' items."""
        raise NotImplementedError


class KeptBackbone(Kept):
    """The language model of ST2SI, fully tuned."""

    def folder(self, root: Path, epoch: int) -> Path:
        """Return ``backbone-epoch-<n>``, an ordinary backbone."""
        return root / f"backbone-epoch-{epoch}"

    def more_shape(self, config: Any) -> dict[str, Any]:
        """Return a setting that version 0.1.0 had, so that a pre-training of that version is found again."""
        return {"backbone_dropout": None}

    def settings(self, config: Any, learning_rate: float | None) -> dict[str, Any]:
        """Return full tuning, and its rate."""
        return {"tuning": "full", "learning_rate": learning_rate}

    def build(self, config: Any, dataset: Any) -> Any:
        """Return the model with the backbone of the settings."""
        return config.model_class(config, dataset, backbone=config["backbone"]).to(config["device"])

    def trainer_class(self, config: Any) -> Any:
        """Return the trainer of packed batches."""
        return PretrainingTrainer

    def save(self, folder: Path, model: Any, record: dict[str, Any], items: dict[str, np.ndarray]) -> None:
        """Write the backbone and its tokenizer."""
        save_backbone(folder, model.backbone, model.tokenizer, record, items)


class KeptState(Kept):
    """All weights of a model that serve another catalogue, trained by the model's own loss.

    Args:
        model: the name of the model.
    """

    def __init__(self, model: str) -> None:
        self.prefix = f"{model}-"

    def folder(self, root: Path, epoch: int) -> Path:
        """Return ``state-epoch-<n>``."""
        return root / f"state-epoch-{epoch}"

    def more_shape(self, config: Any) -> dict[str, Any]:
        """Return the rate that the model has where `pretrain_learning_rate` gives none, and a `position_scale`."""
        rate = {"learning_rate": config["learning_rate"]} if config["pretrain_learning_rate"] is None else {}
        scale = {"position_scale": config["position_scale"]} if config["position_scale"] != 1 else {}
        return rate | scale

    def settings(self, config: Any, learning_rate: float | None) -> dict[str, Any]:
        """Return the rate, the size of a step, and how loud positions are."""
        size = config["pretrain_batch_size"] or config["train_batch_size"]
        rate = config["learning_rate"] if learning_rate is None else learning_rate
        return {"learning_rate": rate, "train_batch_size": size, "position_scale": config["position_scale"]}

    def build(self, config: Any, dataset: Any) -> Any:
        """Return the model with fresh weights, prepared for its pre-training."""
        model = config.model_class(config, dataset).to(config["device"])
        scale_positions(model, config["position_scale"])
        model.before_pretraining(dataset)
        return model

    def trainer_class(self, config: Any) -> Any:
        """Return the model's own trainer with the pre-training's loss."""
        return with_own_loss(trainer_class(config))

    def save(self, folder: Path, model: Any, record: dict[str, Any], items: dict[str, np.ndarray]) -> None:
        """Write the model's `transferred_state`."""
        record = {"model": type(model).__name__, "origin": model.item_texts.origin(), **record}
        save_state(folder, model.transferred_state(), record, items)


def kept_by(config: Any) -> Kept:
    """Return what the pre-training of a model keeps.

    Raises:
        SettingError: if the model is not pre-trained on other datasets.
    """
    model = str(config["model"])
    needs = hooks_of_class(config.model_class).stages
    if any(isinstance(need, PretrainedState) for need in needs):
        return KeptState(model)
    if any(isinstance(need, PretrainedBackbone) for need in needs):
        return KeptBackbone()
    raise SettingError(f"{model} is not pre-trained on other datasets: take {', '.join(_PRETRAINED)}")
