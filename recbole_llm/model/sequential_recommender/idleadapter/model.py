"""IDLE-Adapter: Break the ID-Language Barrier (Yu et al.).

The user vector of a trained, frozen ID model (eq. 2) is projected, layer by layer, into virtual tokens (eq. 5 to 7)
that stand before a hard prompt in every layer of a frozen language model (eq. 8 to 11). The pooled last state is mapped
to item ids by a linear head (eq. 14). Cross-entropy (eq. 13) is trained together with the discrepancy between the
virtual tokens and the language model's own states (eq. 12, 15); adapter and head are all that is trained (eq. 16).
With ``tuning: lora`` or ``full`` the language model is trained, too, and with `id_weight` the ID model's own
scores are mixed in when items are ranked; neither is in the paper.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import Backbone, first_position, load_backbone
from recbole_llm.backbone.padded import require_packed
from recbole_llm.backbone.precision import resolve_precision
from recbole_llm.backbone.preset import read_config
from recbole_llm.backbone.resolve import resolve
from recbole_llm.backbone.tuning import prepare_for_tuning
from recbole_llm.backbone.virtual_tokens import (
    PooledInputs,
    VirtualTokens,
    checkpoint_layers,
    compile_layers,
    visit_layers,
    visited_hidden_states,
)
from recbole_llm.config import registry
from recbole_llm.data.dataset import HistoryDataset, row_ends
from recbole_llm.data.prompt_batches import PackedPrompts, PromptStyle
from recbole_llm.data.prompts import PromptLimits, Prompts
from recbole_llm.errors import DataError, SettingError
from recbole_llm.model.id_model.frozen import FrozenIdModel
from recbole_llm.model.id_model.histories import resized_histories
from recbole_llm.model.id_model.memory import RowMemory
from recbole_llm.model.id_model.scores import IdScores, require_scores_of_all_items, validation_gain
from recbole_llm.model.id_model.user_vector import check_finite, require_user_vector, user_vector_shape, user_vectors
from recbole_llm.model.layers.item_linear_projection import ItemLinearProjection
from recbole_llm.model.layers.mmd import gaussian_mmd, median_rho
from recbole_llm.model.layers.virtual_token_adapter import VirtualTokenAdapter, truncated_normal_
from recbole_llm.model.needs import IdModel
from recbole_llm.model.projected_recommender import ProjectedRecommender
from recbole_llm.model.sequential_recommender.idleadapter.inputs import AdapterBatch, AdapterInputs
from recbole_llm.model.sequential_recommender.idleadapter.settings import IDLEAdapterSettings
from recbole_llm.model.sequential_recommender.idleadapter.trainer import AdapterTrainer
from recbole_llm.runs.checkpoint import trained_state


class IDLEAdapter(ProjectedRecommender):
    """IDLE-Adapter as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.
        id_model: whose user vectors are read.

    Attributes:
        inputs: prompts of histories, and the prefixes to train on.
        id_model: the frozen ID model.
        backbone: the language model, frozen unless `tuning` says otherwise.
        adapter: from user vectors to virtual tokens.
        projection: W_y of eq. 14.
        id_scores: the ID model's scores that are mixed in, None with ``id_weight: 0``.

    Raises:
        BackboneError: if the backbone cannot be had, or is a Longformer.
        CheckpointError: if the ID model belongs to other data, or is broken.
        DataError: if a column is missing, or no item has a text.
        SettingError: for a value that is not allowed, or an ID model without a user vector.
        TrainingError: if the ID model's vectors are not numbers.
    """

    dataset_class = HistoryDataset
    trainer_class = AdapterTrainer
    several_processes = True
    stages = (IdModel(),)
    histories_on_host = True  # where prompts are put together
    renamed_weights: ClassVar[dict[str, str]] = {"head.weight": "projection.weight"}  # in runs of version 0.1.0

    def __init__(self, config: Any, dataset: HistoryDataset, id_model: FrozenIdModel) -> None:
        super().__init__(config, dataset)
        self.settings = settings = IDLEAdapterSettings.from_config(config)
        self.precision = resolve_precision(config["precision"], torch.device(self.device))
        self.id_run = id_model
        self.id_model = id_model.module
        self._known_vectors = RowMemory()
        interests, size = user_vector_shape(self.id_model)
        loaded = load_backbone(settings.backbone, dtype=self.precision, device=torch.device(self.device))
        self.backbone = loaded.model
        self.backbone_folder = loaded.folder
        self.layers = len(loaded.layers)
        self.width = int(loaded.model.config.hidden_size)
        self.virtual = interests * settings.virtual_tokens
        self.inputs = self._inputs(dataset, loaded)
        use_packed_attention(self.backbone)
        prepare_for_tuning(loaded, settings.tuning)
        visit_layers(loaded.layers)
        self._layers = tuple(loaded.layers)  # no ModuleList: their weights have a name already
        if settings.compile:
            compile_layers(loaded.layers)
        if settings.gradient_checkpointing:
            checkpoint_layers(loaded.layers)
        self.adapter = VirtualTokenAdapter(
            size, self.width, self.layers, settings.virtual_tokens, settings.layerwise, settings.refinement
        )
        self.id_scores = None if settings.id_weight == 0 else IdScores(config, self.id_model)
        self.projection = ItemLinearProjection(loaded.width, self.n_items)
        truncated_normal_(self.projection.weight)

    @classmethod
    def check_processes(cls, config: Any) -> None:
        """Refuse rows of the discrepancy that are the prompts of one pass: several processes have several passes."""
        super().check_processes(config)
        if config["mmd_weight"] and config["mmd_rows"] == "batch":
            raise SettingError(
                "mmd_rows=batch compares the prompts of one process: set mmd_rows=layers, or run without torchrun"
            )

    @classmethod
    def check_before_stages(cls, config: Any, dataset: Any) -> None:
        """Refuse what an ID model would be trained in vain for."""
        settings = IDLEAdapterSettings.from_config(config)
        require_packed(read_config(resolve(settings.backbone).folder), settings.backbone, cls.__name__)
        dataset.item_texts(settings.template.fields, _names_columns(config))
        if settings.id_weight is None:
            validation_gain(config)
        if not config["id_model_path"] and config["id_model"]:
            wanted = registry.model_class(config["id_model"])
            require_user_vector(wanted)
            if settings.id_weight != 0:
                require_scores_of_all_items(wanted)

    def _inputs(self, dataset: HistoryDataset, loaded: Backbone) -> AdapterInputs:
        settings = self.settings
        texts = dataset.item_texts_by_id(settings.template.fields, _names_columns(dataset.config))
        limits = PromptLimits(
            settings.max_items, settings.max_prompt_tokens, settings.max_attribute_tokens, loaded.max_positions
        )
        prompts = Prompts(settings.template, texts, loaded.tokenizer, limits, self.virtual)
        if not (texts.iloc[1:, 0] != "").any():
            raise DataError(f"no item of {dataset.dataset_name} has a text in '{settings.template.fields[0]}'")
        style = PromptStyle(
            causal=loaded.preset.kind == "decoder",
            pooling=loaded.preset.pooling,
            absolute=_looks_up_positions(loaded.model),
            first_position=first_position(loaded.model),
        )
        return AdapterInputs(dataset, prompts, style)

    def train(self, mode: bool = True) -> "IDLEAdapter":
        """Set training mode; both pretrained models stay in eval mode, without dropout."""
        super().train(mode)
        self.backbone.eval()
        self.id_model.eval()
        return self

    # -- computation -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the ID model's user vectors u [batch, interests, d], float32 (eq. 2).

        Raises:
            SettingError: if the ID model has none.
            TrainingError: if one is not a number.
        """
        fields = [name for name in (self.ITEM_SEQ, self.ITEM_SEQ_LEN, self.USER_ID) if name in interaction]
        rows = Interaction({name: interaction[name] for name in fields}).to(self.device)
        width = int(self.id_model.max_seq_length)  # type: ignore[arg-type]
        if width != rows[self.ITEM_SEQ].shape[1]:
            rows.update(resized_histories(rows, self.ITEM_SEQ, self.ITEM_SEQ_LEN, width))
        vectors = user_vectors(self.id_model, rows).float()
        check_finite(vectors, self.id_model)
        return vectors

    def virtual_tokens(self, vectors: Tensor) -> Tensor:
        """Return D [L, batch, virtual, d'] of user vectors [batch, interests, d] (eq. 5 to 7)."""
        return self.adapter(vectors)

    def pooled_states(self, prompts: PackedPrompts, tokens: Tensor) -> Tensor:
        """Return the pooled last-layer states [prompts, width], float32, with virtual tokens D in every layer."""
        visitor = VirtualTokens(prompts.virtual_index, tokens.flatten(1, 2))
        return prompts.segments.pool(visited_hidden_states(self.backbone, prompts.packed, visitor))

    @torch.no_grad()
    def language_states(self, prompts: PackedPrompts) -> Tensor:
        """Return H~ [prompts, L, d'], float32: every layer's pooled input without virtual tokens.

        `prompts` were packed without virtual tokens.
        """
        visitor = PooledInputs(prompts.segments)
        visited_hidden_states(self.backbone, prompts.packed, visitor)
        return torch.stack(visitor.states, dim=1)

    def pass_loss_sum(self, batch: AdapterBatch) -> Tensor:
        """Return the sum over the prompts of a pass of -log p (eq. 13) and lambda times the discrepancy (eq. 12)."""
        prompts = batch.prompts.to(self.device)
        rows = batch.rows.to(self.device, non_blocking=True)
        tokens = self.virtual_tokens(self.inputs.vectors.index_select(0, rows))
        assert prompts.packed.labels is not None
        states = F.dropout(self.pooled_states(prompts, tokens), self.settings.head_dropout, self.training)
        loss = self.projection.loss(states, prompts.packed.labels, self.precision)
        if self.settings.mmd_weight:
            if batch.plain is not None:
                language = self.language_states(batch.plain.to(self.device))
            else:
                assert self.inputs.language_states is not None
                language = self.inputs.language_states.take(rows).view(-1, self.layers, self.width)
            loss = loss + self.settings.mmd_weight * self.discrepancy_sum(tokens, language)
        return loss

    def discrepancy_sum(self, tokens: Tensor, language: Tensor) -> Tensor:
        """Return eq. 12 times the number of prompts.

        With ``mmd_rows: layers`` a user's rows are d_a, the mean of layer a's virtual tokens, and h~_a. With
        ``mmd_rows: batch`` a layer's rows are the users of the pass, and the mean over layers is taken.

        Args:
            tokens: D [L or 1, prompts, virtual, d'].
            language: H~ [prompts, L, d'].
        """
        virtual_states = tokens.mean(dim=2).expand(self.layers, -1, -1)  # [L, prompts, d']
        language_states = language.transpose(0, 1)
        if self.settings.mmd_rows == "layers":
            virtual_states, language_states = virtual_states.transpose(0, 1), language
        discrepancy = gaussian_mmd(virtual_states, language_states, median_rho(virtual_states, language_states))
        return discrepancy.sum() if self.settings.mmd_rows == "layers" else discrepancy.mean() * tokens.shape[1]

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the mean cross-entropy of a RecBole batch of prefix rows. `AdapterTrainer` trains on `inputs`."""
        labels = interaction[self.POS_ITEM_ID].to(self.device)
        return self.projection.loss(self.row_states(interaction), labels, self.precision) / len(labels)

    def row_states(self, interaction: Interaction) -> Tensor:
        """Return the pooled states [batch, width] of histories, in passes within `eval_batch_tokens`."""
        if self.training:  # the batches of an epoch do not come again
            vectors = self.user_vectors(interaction)
        else:
            vectors = self._known_vectors.get(interaction, lambda: self.user_vectors(interaction))
        tokens = self.virtual_tokens(vectors)
        lengths, ends = interaction[self.ITEM_SEQ_LEN].cpu().numpy(), row_ends(interaction)
        if ends is None:
            histories = interaction[self.ITEM_SEQ].cpu().numpy()
            passes = self.inputs.prompts_of(histories, lengths, self.settings.eval_batch_tokens)
        else:
            passes = self.inputs.prompts_before(ends, lengths, self.settings.eval_batch_tokens)
        states = []
        for rows, prompts in passes:
            part = tokens[:, torch.from_numpy(rows).to(tokens.device)]
            states.append(self.pooled_states(prompts.to(self.device), part))
        return torch.cat(states)

    def item_states(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the pooled states of prompts of one item each, without virtual tokens. See `ProjectedRecommender`."""
        items = self.inputs.prompts.items_with_text()
        for rows, prompts in self.inputs.prompts_of(
            items[:, None], np.ones_like(items), self.settings.eval_batch_tokens, plain=True
        ):
            moved = prompts.to(self.device)
            yield items[rows], moved.segments.pool(packed_hidden_states(self.backbone, moved.packed))

    # -- what a run keeps --------------------------------------------------------------------------------------------

    def training_samples(self, rng: np.random.Generator) -> Any:
        """Return the prefixes of one epoch. See `PackedTrainer`."""
        return self.inputs.training_prefixes()

    def sample_tokens(self, samples: Any) -> np.ndarray:
        """Return how many items the history of each prefix has, in the place of its tokens. See `TextRecommender`."""
        return self.inputs.lengths[samples.rows]

    def layers_to_shard(self) -> list[nn.Module]:
        """Return the layers of the language model, if they are not compiled. See `TextRecommender`."""
        return [] if self.settings.compile else list(self._layers)

    def _least_batch(self) -> AdapterBatch:
        shortest = self.inputs.lengths.argmin(keepdims=True)
        return self.prepared_step(self.inputs.training_prefixes().select(shortest))[1][0]

    def states_of_least(self) -> Tensor:
        """Return the pooled state of the shortest prefix. See `ProjectedRecommender`."""
        batch = self._least_batch()
        tokens = self.virtual_tokens(self.inputs.vectors.index_select(0, batch.rows.to(self.device)))
        return self.pooled_states(batch.prompts.to(self.device), tokens)

    def empty_pass_loss(self) -> Tensor:
        """Return 0, see `ProjectedRecommender`; the median distance is that of the other processes."""
        loss = super().empty_pass_loss()
        if self.settings.mmd_weight:
            if self.inputs.language_states is not None:  # of which other processes ask for rows of this one
                self.inputs.language_states.take(torch.zeros(0, dtype=torch.long, device=self.device))
            elif self.backbone_is_sharded:
                plain = self._least_batch().plain
                assert plain is not None
                self.language_states(plain.to(self.device))
            none = torch.empty(0, self.layers, self.width, device=self.device)
            median_rho(none, none)
        return loss

    def prepared_step(self, samples: Any) -> tuple[int, list[AdapterBatch]]:
        """Return how many prefixes a step has, and its passes. See `PackedTrainer`."""
        plain = bool(self.settings.mmd_weight) and self.inputs.language_states is None
        return len(samples), self.inputs.batches(samples, self.settings.train_batch_tokens, plain)

    def stored_state(self) -> dict[str, Tensor]:
        """Return the weights that a checkpoint holds: what is trained, and the share of the ID model's scores."""
        weight = {} if self.id_scores is None else {"id_scores.weight": self.id_scores.weight}
        return {**trained_state(self), **weight}

    def extra_results(self) -> dict[str, Any]:
        """Return what `result.json` holds beyond what every model's does: the ID model and its own test metrics."""
        own: dict[str, Any] = {"model": type(self.id_model).__name__}
        if self.id_scores is not None:
            own["weight"] = round(float(self.id_scores.weight), 4)
        own["test"] = self.id_run.test_metrics()
        return {"id_model": own, "prompt": self.inputs.prompt_counts()}

    def save_extras(self, folder: Path, dataset: Any) -> None:
        """Write what a finished run holds beside its weights: the ID model."""
        self.id_run.copy_into(folder)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups with their rates."""
        groups: list[dict[str, Any]] = [
            {"params": list(self.adapter.parameters()), "lr": self.settings.learning_rate},
            {"params": list(self.projection.parameters()), "lr": self.settings.head_learning_rate},
        ]
        tuned = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return [*groups, {"params": tuned, "lr": self.settings.backbone_learning_rate}] if tuned else groups


def _names_columns(config: Any) -> str:
    """Return the setting that names the columns of the `.item` file in a prompt."""
    return "prompt_item" if config["prompt_item"] else "item_text_fields"


def _looks_up_positions(model: nn.Module) -> bool:
    """Tell whether positions are rows of a table (BERT, OPT, GPT-2) and not angles (Llama)."""
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    return any(re.search("pos|wpe", name) for name in tables)
