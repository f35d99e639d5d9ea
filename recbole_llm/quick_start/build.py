"""The parts of a run: settings, data and model, with whatever the model needs first."""

import functools
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_llm.config.config import Config
from recbole_llm.config.hooks import hooks_of_class
from recbole_llm.data.build import data_preparation
from recbole_llm.data.shared import SharedData
from recbole_llm.errors import DataError, SettingError
from recbole_llm.inference.recommender import Recommender
from recbole_llm.inference.users import UserRecommender
from recbole_llm.model.layers.position_scale import scale_positions
from recbole_llm.runs import checkpoint
from recbole_llm.runs.context import RunContext
from recbole_llm.stages.fulfil import fulfil
from recbole_llm.stages.runner import Runner
from recbole_llm.trainer.choose import trainer_class


@dataclass
class Parts:
    """A run's settings, data and model.

    Attributes:
        config: the settings.
        dataset: RecBole's dataset, all interactions.
        train, valid, test: RecBole's loaders; `valid` and `test` are None if the split is empty, and `test` if it may
            not be read.
        model: the model, on its device.
        pretrain_seconds: how long it took to make what the model needs first; None if nothing was made.
        context: where the run is stored, and what its weights belong to.
        settings: what the run stores: all settings, and what was found or made first.
        fingerprint: of all that the result depends on, see `data.fingerprint`; None for parts that are not trained.
    """

    config: Config
    dataset: Any
    train: Any
    valid: Any
    test: Any
    model: Any
    pretrain_seconds: float | None = None
    context: RunContext = field(default_factory=RunContext)
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None

    @functools.cached_property
    def recommender(self) -> Recommender:
        """Recommends from histories; see `recbole_llm.inference.recommender.Recommender`. Raises SettingError."""
        return Recommender(self.model, self.train._dataset)

    @functools.cached_property
    def user_recommender(self) -> UserRecommender:
        """Recommends to users of the dataset; see `recbole_llm.inference.users.UserRecommender`."""
        return UserRecommender(self)

    def recommend(self, histories: Any, k: int = 10, exclude_seen: bool | None = None, users: Any = None) -> Any:
        """Return the best `k` items after a history, or after each of a list; see `Recommender.recommend`."""
        return self.recommender.recommend(histories, k, exclude_seen, users)

    def recommend_to(self, users: Any, k: int = 10, exclude_seen: bool | None = None) -> Any:
        """Return the best `k` items for a user of the dataset, or for each; see `UserRecommender.recommend`."""
        return self.user_recommender.recommend(users, k, exclude_seen)

    def trainer(self, folder: Path | None = None) -> Any:
        """Return a new trainer of the model, see `trainer.choose`.

        Args:
            folder: where it stores what it trains; None for the folder of the run.
        """
        context = self.context if folder is None else replace(self.context, folder=folder)
        return trainer_class(self.config)(self.config, self.model, context)


def build_parts(config: Config, context: RunContext, data: SharedData, runner: Runner) -> Parts:
    """Make dataset, loaders and model of a run, with RecBole's own order of seeds.

    Args:
        config: the settings.
        context: of the run; its description is made here.
        data: what the run and those nested in it read.
        runner: trains and loads what the model needs first.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    dataset = data.dataset(config)
    logging.getLogger().info(dataset)
    if max(config["topk"]) >= dataset.item_num:
        raise SettingError(
            f"topk={config['topk']} is more than the {dataset.item_num - 1} items of {config['dataset']}"
        )
    parts = data.build(config, dataset, context.reads_test)
    train, valid, tested = data_preparation(config, dataset, context.reads_test, parts)
    if context.reads_test and tested is None:
        split = config["eval_args"]["split"]
        why = "leave-one-out needs histories of 3 interactions or more"
        if split != {"LS": "valid_and_test"} and config["benchmark_filename"] is None:
            why = f"split={split} of eval_args leaves none, and a run ends with its test"
        raise DataError(f"no user of {config['dataset']} has a test target: {why}")
    hooks = hooks_of_class(config.model_class)
    hooks.check_before_stages(config, dataset)
    before = time.monotonic()
    found = fulfil(hooks.stages, config, dataset, context, runner)
    pretrain_seconds = time.monotonic() - before if found.made else None
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = config.model_class(config, train._dataset, **found.arguments).to(config["device"])
    scale_positions(model, config["position_scale"])
    logging.getLogger().info(model)
    described = replace(context, description=checkpoint.describe(config, dataset, model))
    settings = {**config.merged, **found.settings}
    return Parts(config, dataset, train, valid, tested, model, pretrain_seconds, described, settings)
