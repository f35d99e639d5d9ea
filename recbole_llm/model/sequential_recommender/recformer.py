"""Recformer (Li et al., KDD 2023, "Text Is All You Need"): language representations of sequences of items.

An item is ``name value name value ...``; a bidirectional encoder reads the items of a history, the newest first, or one
item alone, and its state at the first token is the vector. Four embeddings are added before the first layer: of the
word, of the token's position, of its kind (before the items, name, value) and of its item's place in the history. The
score is cos(u, v) / .05. Fine-tuning has two stages around a table of item vectors that takes no gradient: made again
for every epoch; then, from the best weights, never again. See `StagedTrainer`.

A deviation: the paper's Longformer restricts attention to a window of 64 tokens and reads 1,024; here an encoder of a
BERT or RoBERTa type attends in full to what its positions allow, mostly 512 tokens.
"""

import torch
from torch import Tensor, nn

from recbole_llm.backbone.loading import Backbone
from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.data.history_texts import PackedTexts
from recbole_llm.errors import BackboneError
from recbole_llm.model.needs import PretrainedState
from recbole_llm.model.text_tower import TextTower
from recbole_llm.model.tower_recommender import TowerRecommender
from recbole_llm.model.tower_texts import TextForm

_KINDS = 3  # before the items, name, value


class RecformerTower(TextTower):
    """A text tower that adds embeddings of a token's kind and of its item's place to those of the words.

    The backbone adds its positions and the first row of its own token types before its normalisation, as to any text.
    So `kinds` begins at 0: every kind then has the backbone's row, as in the authors' code.

    Args:
        loaded: the backbone.
        tuning: how much of it is trained.
        precision: of its arithmetic.
        items: maximum number of items of a history.

    Attributes:
        kinds: [3, width].
        places: [items + 1, width], row 0 for what stands before the items.
    """

    def __init__(self, loaded: Backbone, tuning: TuningSettings, precision: torch.dtype, items: int) -> None:
        super().__init__(loaded, tuning, precision)
        words = loaded.model.get_input_embeddings()
        width = int(words.weight.shape[1])
        self.kinds = nn.Embedding(_KINDS, width)
        self.places = nn.Embedding(items + 1, width)
        nn.init.zeros_(self.kinds.weight)
        nn.init.normal_(self.places.weight, std=getattr(loaded.model.config, "initializer_range", 0.02))

    def embeddings(self, texts: PackedTexts) -> dict[str, Tensor]:
        """Return the sum of word, kind and place embeddings: [tokens, width]."""
        words = self.backbone.get_input_embeddings()
        assert texts.kinds is not None and texts.places is not None
        summed = words(texts.packed.token_ids) + self.kinds(texts.kinds) + self.places(texts.places)
        return {"inputs_embeds": summed.to(words.weight.dtype)}


class Recformer(TowerRecommender):
    """Recformer as a RecBole sequential model.

    Args:
        config: the settings of the run.
        dataset: the training part of a `HistoryDataset`.

    Raises:
        BackboneError: if the backbone cannot be had, is a decoder, or a Longformer.
        DataError: if items have no text, or all the same.
        SettingError: for values that do not go together.
    """

    stages = (PretrainedState(),)
    form = TextForm(named=True, newest_first=True, closed=False)

    def check_backbone(self, loaded: Backbone) -> None:
        """Refuse a decoder. Raises BackboneError."""
        super().check_backbone(loaded)
        if loaded.preset.kind == "decoder":
            raise BackboneError(
                f"Recformer reads a history in both directions, but {self.settings.backbone} is a decoder: choose an "
                f"encoder such as sbert-minilm or bge-small"
            )

    def make_tower(self, loaded: Backbone) -> TextTower:
        """Return a tower with embeddings of kinds and places."""
        return RecformerTower(loaded, self.settings.tuning, self.precision, self.settings.max_items)
