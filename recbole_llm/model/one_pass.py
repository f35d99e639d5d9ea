"""Which models predict at every position of one pass over a history (`train_positions: all`), and how.

A model can if its user vector after item t reads the items up to t alone, by layers that give the vectors of all
positions at once. RecBole's SASRec, GRU4Rec, SASRecF, GRU4RecF and FDSA are such models: their `forward` computes the
states of all positions and then takes the last (`gather_indexes`). Here the same `forward`, with all its layers and
dropout, leaves that last step out; weights, `predict` and `full_sort_predict` stay RecBole's, so that a checkpoint of
the one way is one of the other.

A model of ours inherits `OnePass` before its class of RecBole and has one method:

    class MyModel(OnePass, SequentialRecommender):
        def states_at_all_positions(self, item_seq):
            return self.encoder(self.item_table()[item_seq])  # [batch, length, size]

and a second, `item_table`, if the vectors that items are scored with are not ``self.item_embedding.weight``. The rest
of the interface (`calculate_loss` on rows, `full_sort_predict`) is RecBole's, and serves ``train_positions: last``.
"""

import copy
import functools
from typing import Any, ClassVar

from torch import Tensor, nn

from recbole_llm.config.hooks import ModelHooks, ScoresOfItems, hooks_of_class
from recbole_llm.config.settings.one_pass import TWO_LEVEL
from recbole_llm.data.popularity import target_counts
from recbole_llm.errors import SettingError
from recbole_llm.model.layers.balanced_clusters import interaction_vectors
from recbole_llm.model.layers.position_loss import PositionLoss
from recbole_llm.model.layers.two_level_softmax import TwoLevelSoftmax

# RecBole's models whose `forward` is causal and ends, but for layers that see one position, in `gather_indexes`.
RECBOLES = ("FDSA", "GRU4Rec", "GRU4RecF", "SASRec", "SASRecF")
_CAPTURABLE = ("GRU4Rec", "SASRec")  # see `OnePass.capturable`
_WEIGHS_ANEW = "it weighs all earlier items anew for every position, so that positions share no work"
_READS_FEW = "it reads the last items alone, so that a pass over a history has nothing to share"
_READS_WHOLE = "its layers mix all positions of a history, later ones too"
_KNOWLEDGE = "its rows come with a knowledge graph from a dataset of their own"
_TWO_VECTORS = "it scores an item from more than one vector of the user"
_WHY_NOT = {
    "BERT4Rec": "it reads a history in both directions, so that a position would see the item it predicts",
    "CORE": "its user vector is a mean of item vectors whose weights are those of the whole history",
    "Caser": "its filters read a whole history of one width at once",
    "ComiRec": _WEIGHS_ANEW,
    "DIEN": "it scores one item at a time, with an attention that reads that item",
    "DIN": "it scores one item at a time, with an attention that reads that item",
    "FEARec": "its Fourier transform mixes all positions of a history, later ones too",
    "FOSSIL": _READS_FEW,
    "FPMC": _READS_FEW,
    "GCSAN": "it makes a graph of the whole history, later items too",
    "GRU4RecCPR": _TWO_VECTORS,
    "GRU4RecKG": _KNOWLEDGE,
    "HGN": _WEIGHS_ANEW,
    "HRM": _READS_FEW,
    "IDLEAdapter": "the user vector in its prompt is another one at every position",
    "KSR": _KNOWLEDGE,
    "LightSANs": _READS_WHOLE,
    "MLP4Rec": _READS_WHOLE,
    "NARM": _WEIGHS_ANEW,
    "NPE": _READS_FEW,
    "NextItNet": "it reads the last column of a padded history, where a pass has one position alone",
    "RepeatNet": _WEIGHS_ANEW,
    "S3Rec": "its two stages are trained row by row by RecBole's trainer for them",
    "SASRecCPR": _TWO_VECTORS,
    "SHAN": _WEIGHS_ANEW,
    "SINE": _READS_WHOLE,
    "SRGNN": "it makes a graph of the whole history, later items too",
    "ST2SI": "it is trained at every position of a history anyway",
    "STAMP": _WEIGHS_ANEW,
    "TextSLIT": "its equations hold all positions of all histories already",
    "TransRec": _READS_FEW,
}


class OnePass(ModelHooks):
    """A model that can be trained at all positions of one pass; to be inherited before its class of RecBole.

    Attributes:
        capturable: whether loss and gradients of a batch can be replayed from a CUDA graph: they neither wait for the
            device, nor draw but from its own generator, nor keep anything between batches.

    Args:
        config: the settings of the run.
        dataset: the training part of its data.
        arguments: what the model needs first, see `model.needs`.
    """

    one_pass: ClassVar[bool] = True
    several_processes: ClassVar[bool] = True
    capturable: ClassVar[bool] = False

    def __init__(self, config: Any, dataset: Any, **arguments: Any) -> None:
        super().__init__(_with_a_loss_of_rows(config), dataset, **arguments)  # type: ignore[call-arg]
        if config["train_positions"] != "last":
            self.position_loss_of = self._made_loss(config, dataset)

    def _made_loss(self, config: Any, dataset: Any) -> PositionLoss | TwoLevelSoftmax:
        return PositionLoss.from_config(config, target_counts(dataset))

    def before_training(self, dataset: Any) -> None:
        """Prepare for a training that begins or goes on; by default nothing.

        Args:
            dataset: the training part.
        """

    @classmethod
    def check_processes(cls, config: Any) -> None:
        """Refuse several processes for rows of RecBole, see `ModelHooks`."""
        if config["train_positions"] == "last":
            raise SettingError(
                f"{config['model']} trains on rows in one process: set train_positions=all, or start it with "
                f"recbole-llm run, without torchrun"
            )
        if config["item_optimizer"] is not None:
            raise SettingError(
                f"item_optimizer={config['item_optimizer']} of {config['model']} is for one process: leave it out, or "
                f"run without torchrun"
            )
        super().check_processes(config)

    def states_at_all_positions(self, item_seq: Tensor) -> Tensor:
        """Return the user vectors [batch, length, size] after every item of histories.

        What stands at t depends on the items up to t alone, and is what the model's rows give for them.

        Args:
            item_seq: int64 [batch, length], the oldest item first, zeros after the last; `length` is at most
                MAX_ITEM_LIST_LENGTH and differs from call to call.
        """
        raise NotImplementedError

    def item_table(self) -> Tensor:
        """Return the vectors [items, size] that user vectors are multiplied with, row 0 the padding id's."""
        model: Any = self
        table: Tensor = model.item_embedding.weight
        return table

    def row_sparse_table(self) -> Tensor:
        """Return the item table, whose gradient is from now on a sparse tensor of the rows that a step reads.

        Raises:
            SettingError: if the vectors of items are no table of their own.
        """
        embedding = getattr(self, "item_embedding", None)
        if not isinstance(embedding, nn.Embedding) or self.item_table() is not embedding.weight:
            raise SettingError(
                f"item_optimizer needs a trained vector for each item, and those of {type(self).__name__} are computed "
                f"for all items at once: leave it out"
            )
        embedding.sparse = True
        return embedding.weight

    def positions_loss(self, item_seq: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the labelled positions, a scalar; nothing in it waits for a GPU.

        Args:
            item_seq: see `states_at_all_positions`.
            labels: int64 [batch, length], the item after each; 0 where none is trained.
        """
        states, following = self.states_at_all_positions(item_seq).flatten(0, 1), labels.flatten()
        if following.device.type == "cpu":  # a GPU would wait to know how many there are
            labelled = following.nonzero().squeeze(1)
            states, following = states[labelled], following[labelled]
        loss: Tensor = self.position_loss_of(states, self.item_table(), following)
        return loss


class _OfRecBole(OnePass):
    """Stands in front of one of `RECBOLES`."""

    _takes_all = False

    def states_at_all_positions(self, item_seq: Tensor) -> Tensor:
        """Return what `forward` has at every position before it takes the last one."""
        model: Any = self
        self._takes_all = True
        try:
            states: Tensor = model.forward(item_seq, (item_seq > 0).sum(dim=1))
        finally:
            self._takes_all = False
        return states

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """Return the states at `gather_index`, as RecBole does, or all of them within `states_at_all_positions`."""
        if self._takes_all:
            return output
        model: Any = super()
        last: Tensor = model.gather_indexes(output, gather_index)
        return last


class _InTwoLevels(_OfRecBole):
    """Such a model with a two-level softmax, which has weights of its own and ranks by log p."""

    def __init__(self, config: Any, dataset: Any, **arguments: Any) -> None:
        super().__init__(config, dataset, **arguments)
        self._seed = config["seed"]

    def _made_loss(self, config: Any, dataset: Any) -> TwoLevelSoftmax:
        return TwoLevelSoftmax(self.item_table().shape[1], dataset.item_num, config["item_optimizer"] is not None)

    def before_training(self, dataset: Any) -> None:
        """Choose the clusters once: items that are training targets of the same users are near one another."""
        softmax = self.position_loss_of
        assert isinstance(softmax, TwoLevelSoftmax)
        if softmax.chosen:
            return
        users, items = (dataset.inter_feat[field].cpu().numpy() for field in (dataset.uid_field, dataset.iid_field))
        size = self.item_table().shape[1]
        vectors = interaction_vectors(users, items - 1, dataset.item_num - 1, size, self._seed)
        softmax.choose_clusters(vectors, self._seed)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return log p of all items [batch, items], float32, -inf for the padding id."""
        model: Any = self
        scores: Tensor = model.position_loss_of.scores(self._user_vectors(interaction), self.item_table())
        return scores

    def scores_of_items(self, interaction: Any) -> ScoresOfItems | None:
        """Return what gives log p of some items. See `ModelHooks`."""
        model: Any = self
        found: ScoresOfItems = model.position_loss_of.in_blocks(self._user_vectors(interaction), self.item_table())
        return found

    def _user_vectors(self, interaction: Any) -> Tensor:
        model: Any = self
        vectors: Tensor = model.forward(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
        return vectors

    def predict(self, interaction: Any) -> Tensor:
        """Return log p [batch] of each row's item."""
        model: Any = self
        vectors, items = self._user_vectors(interaction), interaction[model.ITEM_ID]
        found: Tensor = model.position_loss_of.of_pairs(vectors, self.item_table(), items)
        return found


def one_pass_class(model_class: type, loss_type: str | None = None) -> type:
    """Return the class that a model has with another `train_positions` than last.

    Args:
        model_class: a model class.
        loss_type: the loss of the run.

    Raises:
        SettingError: if its user vectors do not come from one pass, or do not go with the loss.
    """
    name = model_class.__name__
    if hooks_of_class(model_class).one_pass:
        if loss_type == TWO_LEVEL:
            raise SettingError(
                f"loss_type={TWO_LEVEL} is for {', '.join(RECBOLES)} and ST2SI, not for {name}: take SampledCE or gBCE"
            )
        return model_class
    if name in RECBOLES and model_class.__module__.startswith("recbole.model."):
        return _with_all_positions(model_class, loss_type == TWO_LEVEL)
    why = _WHY_NOT.get(name, "it does not read the items of a history one after the other")
    raise SettingError(
        f"train_positions=all is not for {name}: {why}; leave it out, or take one of {', '.join(RECBOLES)}"
    )


@functools.cache
def _with_all_positions(model_class: type, in_two_levels: bool) -> type:
    # The name and the module are RecBole's: whoever asks which model this is gets the answer that holds for its rows.
    own = {"__module__": model_class.__module__, "capturable": model_class.__name__ in _CAPTURABLE}
    return type(model_class.__name__, (_InTwoLevels if in_two_levels else _OfRecBole, model_class), own)


def _with_a_loss_of_rows(config: Any) -> Any:
    """Return the settings with a loss that RecBole's constructors know, where `PositionLoss` has one of its own."""
    if config["loss_type"] in ("CE", "BPR") or config["train_positions"] == "last":
        return config
    own = copy.copy(config)
    own.final_config_dict = {**config.final_config_dict, "loss_type": "CE"}
    return own
