"""What this package asks of a model class beyond RecBole's interface, with the answer of a model that says nothing.

Data, trainers, inference and quick_start call these hooks. RecBole's own models do not have them: `hooks_of` and
`hooks_of_class` answer for these with the defaults. A class that wants another answer inherits `ModelHooks` (a model
that reads text inherits `recbole_llm.model.text_recommender.TextRecommender`, which has more).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from recbole_llm.compat.user_vectors import has_item_scores, item_scores
from recbole_llm.config.settings.one_pass import TWO_LEVEL
from recbole_llm.errors import SettingError

ScoresOfItems = Callable[[slice | Tensor], Tensor]


class ModelHooks:
    """The hooks of a model, to be inherited before the model class of RecBole.

    Attributes:
        dataset_class: the dataset class that the model reads; None for RecBole's choice, see `data.choose`.
        trainer_class: the trainer that trains it; None for RecBole's choice, see `trainer.choose`.
        trains_on_rows: whether its training samples are RecBole's rows, of which `train_share` can take a part.
        stages: what must be made before the model is built: declarations of `recbole_llm.model.needs`, in the order in
            which they are made. What each yields is an argument of the constructor.
        one_pass: whether `train_positions` can be `all`: user vectors of all positions come from one pass, see
            `recbole_llm.model.one_pass.OnePass`, which has what such a model needs.
        has_position_losses: whether it takes the losses of `model.layers.position_loss` without `train_positions`.
        renamed_weights: what weights in checkpoints of older versions are called now.
        reads_text_only: whether an item that was never trained on is as good as any other in a history.
        several_processes: whether several processes can train it together, see `trainer.shared_steps`.
        histories_on_host: whether the model looks up histories on the CPU, so that its rows need not be moved to its
            device before `full_sort_predict` and `predict`.
    """

    dataset_class: ClassVar[type | None] = None
    trainer_class: ClassVar[type | None] = None
    trains_on_rows: ClassVar[bool] = True
    stages: ClassVar[tuple[Any, ...]] = ()
    one_pass: ClassVar[bool] = False
    has_position_losses: ClassVar[bool] = False
    several_processes: ClassVar[bool] = False
    renamed_weights: ClassVar[Mapping[str, str]] = {}
    reads_text_only: bool = False
    histories_on_host: bool = False

    @classmethod
    def chooses(cls, config: Any) -> bool:
        """Tell whether a run's model is shown lists of candidates and chooses one, and ranks nothing; by default not.

        It is then measured among `candidates` alone, see `evaluation.candidate_choices` and `trainer.choice_trainer`.

        Args:
            config: the settings of the run.
        """
        del config
        return False

    @classmethod
    def check_processes(cls, config: Any) -> None:
        """Refuse to be trained by several processes, if they cannot, or what some settings ask of them.

        Args:
            config: the settings of the run.

        Raises:
            SettingError: which says what to do.
        """
        if not cls.several_processes:
            raise SettingError(
                f"{config['model']} trains in one process: start it with recbole-llm run, without torchrun; ST2SI, "
                f"IDLEAdapter and models with train_positions=all can share a run"
            )
        if config["loss_type"] == TWO_LEVEL:
            raise SettingError(
                f"loss_type={TWO_LEVEL} is for one process: set loss_type=CE or SampledCE, or run without torchrun"
            )

    def share_over_processes(self) -> list[Any]:
        """Split what is large over the processes that train the model together; by default nothing.

        Returns:
            What is split: `trainer.split_rows.SplitRows`.
        """
        return []

    @classmethod
    def check_before_stages(cls, config: Any, dataset: Any) -> None:
        """Refuse settings that cannot work before minutes of training are spent on a stage. By default nothing.

        Args:
            config: the settings of the run.
            dataset: its dataset, all interactions.

        Raises:
            RecBoleLLMError: one of its kinds.
        """

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds, by name; by default all of them."""
        model: Any = self
        return model.state_dict()

    def before_validation(self, valid_data: Any) -> None:
        """Prepare for a validation that is about to begin, with the weights that it will evaluate. By default nothing.

        `PackedTrainer` calls it.

        Args:
            valid_data: RecBole's loader of the validation part.
        """

    def use_stored_states(self, evaluated: list[Any]) -> None:
        """Find on the disk what a frozen backbone computed for the run that is loaded. By default nothing.

        Args:
            evaluated: its validation and test parts.
        """

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does; by default nothing."""
        return {}

    def save_extras(self, folder: Path, dataset: Any) -> None:
        """Write what a finished run holds beside its weights; by default nothing.

        Args:
            folder: of the run.
            dataset: its dataset, all interactions.
        """

    def add_items(self, texts: Any) -> None:
        """Add items that have a text and were never trained on, for ranking; by default refused.

        From then on `full_sort_predict` has a column more for each of them, behind those of the catalogue and in the
        order of `texts`, and histories may hold them under these ids. `Recommender` calls it (``recommend
        --new_items``) on a model that is not trained any further. A model that reads item texts alone can do so.

        Args:
            texts: a DataFrame indexed by item token, with the columns `item_text_fields`, cleaned.

        Raises:
            SettingError: if the model scores items by ID.
            DataError: if the model cannot read a text.
        """
        raise SettingError(
            f"{type(self.model_of_hooks()).__name__} scores items by ID and cannot rank one that it was never trained "
            f"on: take a model that reads their texts alone, such as UniSRec or ZESRec"
        )

    def model_of_hooks(self) -> Any:
        """Return the model that these hooks are of."""
        return self

    def before_pretraining(self, dataset: Any) -> None:
        """Prepare for a pre-training on other datasets, while their files are there. By default nothing.

        Asked of a model with the stage `PretrainedState`, on its device.

        Args:
            dataset: the training part of all sources together.

        Raises:
            DataError: if the model cannot be pre-trained on it.
        """

    def pretraining_loss(self, interaction: Any) -> Any:
        """Return the loss of a batch of RecBole's rows in a pre-training on other datasets, a scalar.

        Asked of a model with the stage `PretrainedState`; by default its `calculate_loss`.
        """
        model: Any = self
        return model.calculate_loss(interaction)

    def transferred_state(self) -> dict[str, Tensor]:
        """Return the weights that a pre-training hands to another catalogue, by name: none has a row per item or user.

        Asked of a model with the stage `PretrainedState`; by default all of `stored_state`.
        """
        return self.stored_state()

    @classmethod
    def scores_in_blocks(cls, config: Any) -> bool:
        """Tell, before there is a model, whether `scores_of_items` will answer for a run with these settings."""
        del config
        return cls.scores_of_items is not ModelHooks.scores_of_items or has_item_scores(cls)

    def scores_of_items(self, interaction: Any) -> ScoresOfItems | None:
        """Return what scores some items at a time for a batch, where that is cheap; None where it is not.

        It takes item ids, a slice or int64 [n], and returns float32 [batch, n], the columns that `full_sort_predict`
        has there but for the padding id, whose score may be any; the caller may overwrite them. So 10^7 items are
        ranked without a table of [batch, items]. By default RecBole's models answer whose score is a product of the
        user's vector and the item's.

        Args:
            interaction: as for `full_sort_predict`.
        """
        return item_scores(self.model_of_hooks(), interaction)

    def scores_of_own_items(self, interaction: Any, batch: Any) -> tuple[ScoresOfItems, list[int]] | None:
        """Return what scores this process's items for the rows of all processes, where these share a model by items.

        All processes that share a batch call it together, one that has no row of it, too. By default None: the model
        is whole, or is to be made whole.

        Args:
            interaction: the rows of this process.
            batch: the rows of all, those of process 0 first.

        Returns:
            What `scores_of_items` does for all rows, of item ids that this process has; and the first item id of each
            process, and how many ids there are.
        """

    def before_storing(self) -> None:
        """Measure what `extra_results` says, while processes that share the model are all there. By default nothing."""

    def single_sequence(self) -> Any | None:
        """Return what ranks for one history faster than `full_sort_predict` does, or None (the default).

        It has a method ``top(history, k, seen)`` that takes item ids int64 [items], the oldest first, and the ids to
        leave out (or None), and returns scores and ids [k], best first, or None where it cannot.
        """
        return None


class _Defaults(ModelHooks):
    """The hooks of a model that has none."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def model_of_hooks(self) -> Any:
        return self._model

    def stored_state(self) -> dict[str, Tensor]:
        return self._model.state_dict()


def hooks_of(model: Any) -> ModelHooks:
    """Return the hooks of a model: its own, or the defaults."""
    return model if isinstance(model, ModelHooks) else _Defaults(model)


def hooks_of_class(model_class: type) -> type[ModelHooks]:
    """Return what a model class says before a model is built: its own hooks, or the defaults."""
    return model_class if issubclass(model_class, ModelHooks) else ModelHooks


def scores_in_blocks(model_class: type, config: Any) -> bool:
    """Tell whether the models of a class score some items at a time, see `ModelHooks.scores_in_blocks`."""
    if issubclass(model_class, ModelHooks):
        return model_class.scores_in_blocks(config)
    return has_item_scores(model_class)
