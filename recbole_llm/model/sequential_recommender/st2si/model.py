"""ST2SI: Learning Transition Patterns by Large Language Models for Sequential Recommendation (Zhai et al.).

A decoder language model reads the texts of a user's items with a query token after each (eq. 2); a linear projection
turns the hidden state at every query into a distribution over item ids (eq. 4, 5). Alignment inputs, an instruction
and one item's text, are mapped to the item's own id by the same projection (eq. 6), and both are trained together by
cross-entropy (eq. 7). With ``tuning: ilp`` the language model is frozen and the projection alone is trained (3.4.2).
With ``id_model`` a trained ID model's scores are mixed in when items are ranked, which is not in the paper.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.feature_cache import CachedQueries, StateMemory
from recbole_llm.backbone.loading import Backbone, load_backbone
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.backbone.query_token import query_token_id
from recbole_llm.backbone.resolve import resolve
from recbole_llm.backbone.tuning import prepare_for_tuning
from recbole_llm.data.dataset import HistoryDataset, row_ends
from recbole_llm.data.item_text import tokenize_items
from recbole_llm.data.windows import WindowLimits
from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.id_model.frozen import FrozenIdModel
from recbole_llm.model.id_model.scores import IdScores, check_mixed_id_model
from recbole_llm.model.layers.item_projections import item_projection
from recbole_llm.model.needs import IdModel, PretrainedBackbone
from recbole_llm.model.sequential_recommender.st2si.inputs import ST2SIInputs
from recbole_llm.model.sequential_recommender.st2si.scenario import save_scenario
from recbole_llm.model.sequential_recommender.st2si.settings import ST2SISettings, require_decoder, require_positions
from recbole_llm.model.sequential_recommender.st2si.single_history import SingleHistory
from recbole_llm.model.sequential_recommender.st2si.stored import StoredStates
from recbole_llm.packing.batch import PackedBatch
from recbole_llm.packing.ragged import ranges
from recbole_llm.packing.sequences import Sequences, digests, distinct, pack
from recbole_llm.runs.checkpoint import trained_state
from recbole_llm.trainer.packed_trainer import PackedTrainer
from recbole_llm.utils.collectives import from_first_

_ITEMS = 4096  # whose states are computed at once


class ST2SI(StoredStates):
    """ST2SI as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.
        backbone: a preset, a folder or a hub id; None for that of the settings.
        id_model: whose scores are mixed in; None for none.

    Attributes:
        inputs: the token sequences of users and alignment inputs.
        backbone: the language model, without a head.
        tokenizer: the language model's.
        projection: the item linear projection.
        state_cache: the stored hidden states of a frozen backbone, once `fill_state_cache` was called.
        id_scores: the ID model whose scores are mixed in, None without one.

    Raises:
        BackboneError: if the backbone cannot be had, or is an encoder: its queries would see later items.
        CheckpointError: if the ID model belongs to other data, or is broken.
        DataError: if no item has a text, or a text field is missing.
    """

    dataset_class = HistoryDataset
    trainer_class = PackedTrainer
    several_processes = True
    trains_on_rows = False  # but on windows of whole histories
    has_position_losses = True
    stages = (PretrainedBackbone(), IdModel(required=False))
    histories_on_host = True  # where item texts are looked up

    def __init__(
        self,
        config: Any,
        dataset: HistoryDataset,
        backbone: str | None = None,
        id_model: FrozenIdModel | None = None,
    ) -> None:
        super().__init__(config, dataset)
        self.settings = ST2SISettings.from_config(config, backbone)
        self.seed = config["seed"]
        self.precision = resolve_precision(config["precision"], torch.device(self.device))
        dtype = self.settings.tuning.load_dtype(self.precision)
        loaded = load_backbone(self.settings.backbone, dtype=dtype, device=torch.device(self.device))
        require_decoder(self.settings.backbone, loaded.preset)
        require_positions(self.settings, loaded.max_positions)
        self.backbone = loaded.model
        self.backbone_folder = loaded.folder
        self._memory = StateMemory()
        self.tokenizer = loaded.tokenizer
        self.inputs = self._inputs(dataset, loaded)
        use_packed_attention(self.backbone)
        prepare_for_tuning(loaded, self.settings.tuning)
        self._layers = tuple(loaded.layers)  # no ModuleList: their weights have a name already
        self.projection = item_projection(config, loaded.width, self.inputs.label_counts())
        self._ilp_accuracy: dict[str, float] | None = None
        self.id_run = id_model
        self.id_scores: IdScores | None = None
        if id_model is not None:
            self.id_scores = IdScores(config, id_model.module)
            # Training draws the seed's first numbers, however many an ID model of this kind drew before.
            init_seed(config["seed"], config["reproducibility"])
        self.reads_text_only = self.id_scores is None

    @classmethod
    def check_before_stages(cls, config: Any, dataset: Any) -> None:
        """Refuse what a pre-training or an ID model would be made in vain for."""
        settings = ST2SISettings.from_config(config)
        if settings.id_model:
            require_decoder(settings.backbone, resolve(settings.backbone).preset)
            check_mixed_id_model(config)

    def _inputs(self, dataset: HistoryDataset, loaded: Backbone) -> ST2SIInputs:
        settings = self.settings
        texts = dataset.item_texts_by_id(settings.item_text_fields)
        text = tokenize_items(texts, loaded.tokenizer, settings.max_attribute_tokens)
        if not text.lengths[1:].any():
            raise DataError(f"no item of {dataset.dataset_name} has a text in '{settings.item_text_fields[0]}'")
        without = np.unique(dataset.history_items[text.lengths[dataset.history_items] == 0])
        if len(without):
            raise DataError(
                f"{len(without)} items of {dataset.dataset_name} have no text in '{settings.item_text_fields[0]}', and "
                f"ST2SI reads nothing but text: set items_without_text=drop"
            )
        instruction = loaded.tokenizer(settings.alignment_instruction, add_special_tokens=False)["input_ids"]
        longest = len(instruction) + int(text.lengths.max()) + 1
        if settings.alignment and loaded.max_positions is not None and longest > loaded.max_positions:
            raise SettingError(
                f"alignment_instruction and the longest item take {longest} tokens, more than the "
                f"{loaded.max_positions} positions of {settings.backbone}: shorten the instruction, or lower "
                f"max_attribute_tokens"
            )
        # The query token is looked up last: a token added to the tokenizer must not change how texts are cut.
        query = query_token_id(loaded.tokenizer, loaded.model, settings.query_token)
        aligned = None
        if settings.alignment_token is not None:
            aligned = query_token_id(loaded.tokenizer, loaded.model, settings.alignment_token)
        limits = WindowLimits(settings.max_items, settings.max_sequence_tokens)
        return ST2SIInputs(
            dataset, text, query, instruction, limits, settings.train_window, settings.multi_query, settings.alignment,
            aligned,
        )  # fmt: skip

    def train(self, mode: bool = True) -> "ST2SI":
        """Set training mode; a frozen backbone stays in eval mode, without dropout."""
        super().train(mode)
        if self.settings.frozen:
            self.backbone.eval()
        return self

    # -- computation -----------------------------------------------------------------------------------------------

    def query_states(self, batch: PackedBatch) -> Tensor:
        """Return the last-layer hidden states h_q [queries, width] (eq. 4)."""
        batch = batch.to(self.device)
        autocast = self.settings.tuning.needs_autocast(self.precision)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=autocast):
            hidden = packed_hidden_states(self.backbone, batch)
        return hidden.index_select(0, batch.query_index)

    def layers_to_shard(self) -> list[nn.Module]:
        """Return the layers of the backbone, if they are not compiled. See `TextRecommender`."""
        return [] if self.settings.tuning.compile else list(self._layers)

    def states_of_least(self) -> Tensor:
        """Return the state of a pass of the shortest item text. See `ProjectedRecommender`."""
        return self.query_states(pack(self.inputs.least_sequence(), self.inputs.table))

    def pass_loss_sum(self, part: PackedBatch | CachedQueries) -> Tensor:
        """Return the sum of -log p over all queries of one pass (eq. 7), or of queries whose states are stored.

        `head_dropout` takes part in it.
        """
        assert part.labels is not None
        if isinstance(part, CachedQueries):
            assert self.state_cache is not None
            states, labels = self.state_cache.store.take_own(part.rows), part.labels
        else:
            states, labels = self.query_states(part), part.labels.to(self.device, non_blocking=True)
        states = F.dropout(states, self.settings.head_dropout, self.training)
        return self.projection.loss(states, labels, self.precision)

    @torch.no_grad()
    def before_epoch(self, epoch: int) -> None:
        """Start the projection; choose clusters or codes of items, once: by the states of their alignment inputs."""
        super().before_epoch(epoch)
        if self.projection.to_choose:
            self.eval()
            self.projection.choose(self._alignment_states(self.inputs.alignment_sequences()), self.seed)
            # States of several devices may differ in their last bits, and codes by them.
            from_first_([chosen for chosen in self.projection.buffers() if chosen.dtype != torch.bool])

    def training_samples(self, rng: np.random.Generator) -> Sequences:
        """Return the samples of one epoch. See `PackedTrainer`."""
        return self.inputs.training_sequences(rng)

    def sample_tokens(self, samples: Sequences) -> np.ndarray:
        """Return the tokens of each sample. See `TextRecommender`."""
        return samples.tokens(self.inputs.table)

    def prepared_step(self, samples: Sequences) -> tuple[int, list[PackedBatch]]:
        """Return how many queries a step has, and its passes. See `PackedTrainer`."""
        parts = self.passes(samples, self.settings.train_batch_tokens)
        return int(samples.query_mask.sum()), [pack(part, self.inputs.table) for part in parts]

    def loss_sum(self, sequences: Sequences) -> Tensor:
        """Return the sum of -log p over all queries of `sequences`, in one packed pass."""
        return self.pass_loss_sum(pack(sequences, self.inputs.table))

    @torch.no_grad()
    def states_of(self, sequences: Sequences) -> Tensor:
        """Return the states of all queries of `sequences` [queries, width], in passes within `eval_batch_tokens`.

        Sequences of the same tokens, read at the same places, are read once.
        """
        first, index = distinct(digests(sequences, self.inputs.table))
        read = sequences.select(first) if len(first) < len(sequences) else sequences
        passes = self.passes(read, self.settings.eval_batch_tokens)
        states = torch.cat([self.query_states(pack(part, self.inputs.table)) for part in passes])
        if len(first) == len(sequences):
            return states
        queries = read.queries()
        places = ranges((np.cumsum(queries) - queries)[index], queries[index])
        return states.index_select(0, torch.from_numpy(places).to(states.device))

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean cross-entropy of a RecBole batch of prefix rows (one query each, at the end).

        `PackedTrainer` trains on `inputs.training_sequences` instead, where one row serves all positions of a user.
        """
        sequences = self._prefixes(interaction)
        labels = np.zeros_like(sequences.rows)
        labels[sequences.query_mask] = interaction[self.POS_ITEM_ID].cpu().numpy()
        return self.loss_sum(replace(sequences, labels=labels)) / len(sequences)

    def _prefixes(self, interaction: Interaction) -> Sequences:
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        ends = self._ends(interaction)
        if ends is not None:
            return self.inputs.sequences_before(ends, lengths)
        return self.inputs.prefix_sequences(interaction[self.ITEM_SEQ].cpu().numpy(), lengths)

    def _ends(self, interaction: Interaction) -> np.ndarray | None:
        """Return where the rows' histories end in those that the model holds, None if it does not hold them."""
        return row_ends(interaction) if isinstance(self.inputs, ST2SIInputs) else None  # another scenario has none

    def row_states(self, interaction: Interaction) -> Tensor:
        """Return the states at the last query of each row: [batch, width], float32."""
        ends = self._ends(interaction)
        if self.state_cache is None or ends is None:
            return self._last_states(self._prefixes(interaction)).float()
        return self.state_cache.lookup(ends, lambda rows: self._last_states(self._prefixes(interaction[rows]))).float()

    def _last_states(self, sequences: Sequences) -> Tensor:
        """Return the state at the one query of each sequence; those of a frozen backbone are remembered."""
        if not self.settings.frozen:
            return self.states_of(sequences)
        keys = digests(sequences, self.inputs.table)
        return self._memory.take(keys, lambda missing: self.states_of(sequences.select(missing)))

    def before_storing(self) -> None:
        """Measure the ILP accuracy while all processes are there that have a part of the projection."""
        if self._split() is not None:
            self._ilp_accuracy = self._measured_accuracy()

    @torch.no_grad()
    def _measured_accuracy(self) -> dict[str, float]:
        self.eval()
        found = np.zeros(2)
        aligned = self.inputs.alignment_sequences()
        for labels, states in self._alignment_states(aligned):
            top = self._best_items(states.float(), min(5, self.n_items - 1)).cpu().numpy()
            hits = top == labels[:, None]
            found += (hits[:, 0].sum(), hits.any(axis=1).sum())
        top1, top5 = found / len(aligned)
        return {"acc@1": round(float(top1), 4), "acc@5": round(float(top5), 4)}

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does.

        The ILP accuracy: how often an item's own text is mapped to its id, first and among five (Table 5). The
        pre-training: datasets, epochs, seconds, folder. The ID model, its weight and its own test metrics.
        """
        results: dict[str, Any] = {"ilp_accuracy": self._ilp_accuracy or self._measured_accuracy()}
        if self.settings.pretraining:
            results["pretraining"] = self.settings.pretraining
        if self.id_scores is not None and self.id_run is not None:
            results.update(self.id_scores.result(self.id_run))
        return results

    def item_states(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the states at the query of histories of one item each. See `ProjectedRecommender`."""
        items = np.flatnonzero(self.inputs.text.lengths)
        for part in np.array_split(items, -(-len(items) // _ITEMS)):
            yield part, self._last_states(self.inputs.prefix_sequences(part[:, None], np.ones_like(part)))

    def _alignment_states(self, aligned: Sequences) -> Iterator[tuple[np.ndarray, Tensor]]:
        labels = aligned.labels[aligned.query_mask]
        if self.state_cache is not None and len(self.state_cache.aligned):
            for part in np.array_split(np.arange(len(labels)), -(-len(labels) // _ITEMS)):
                rows = torch.from_numpy(self.state_cache.aligned[part])
                yield labels[part], self.state_cache.store.take_common(rows)
            return
        for passed in self.passes(aligned, self.settings.eval_batch_tokens):
            yield passed.labels[passed.query_mask], self.states_of(passed)

    def single_sequence(self) -> SingleHistory | None:
        """Return what ranks for one history by a CUDA graph; None on the CPU and with an ID model."""
        if torch.device(self.device).type != "cuda" or self.id_scores is not None or not self.projection.linear:
            return None
        return SingleHistory(self)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds; frozen ones of the backbone are named, not stored again."""
        if self.settings.tuning.tuning != "full":
            state = {**trained_state(self), **self.projection.state_dict(prefix="projection.")}
        else:
            state = {name: value for name, value in self.state_dict().items() if not name.startswith("id_scores.")}
        if self.id_scores is not None:
            state["id_scores.weight"] = self.id_scores.weight
        return state

    def save_extras(self, folder: Path, dataset: Any) -> None:
        """Write what a finished run holds beside its weights.

        The ID model, if there is one; otherwise, with a frozen backbone, `scenario.safetensors`.
        """
        if self.id_run is not None:
            self.id_run.copy_into(folder)
        elif self.settings.frozen and self.projection.linear:
            save_scenario(self, dataset, folder / "scenario.safetensors")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the projection, and what is tuned of the backbone if anything is."""
        tuned = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        groups = self.projection.parameter_groups(self.settings.learning_rate)
        return [*groups, {"params": tuned, "lr": self.settings.learning_rate}] if tuned else groups
