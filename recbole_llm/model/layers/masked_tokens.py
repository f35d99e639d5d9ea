"""Masked language modelling on packed texts: which tokens are hidden, and the head that predicts them (BERT)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.data.history_texts import PackedTexts
from recbole_llm.errors import BackboneError

_WORD_STARTS = ("Ġ", "▁")  # of byte-level BPE and of SentencePiece


@dataclass(frozen=True)
class MaskedTexts:
    """Texts of one pass with hidden tokens.

    Attributes:
        texts: as they are read.
        index: int64 [hidden], which tokens are to be predicted.
        labels: int64 [hidden], what they are.
    """

    texts: PackedTexts
    index: Tensor
    labels: Tensor

    def pin_memory(self) -> "MaskedTexts":
        """Return the texts in page-locked memory."""
        return MaskedTexts(self.texts.pin_memory(), self.index.pin_memory(), self.labels.pin_memory())


class TokenMasker:
    """Hides whole words of items: a share of them; of their tokens 80% are masked, 10% random, 10% left as they are.

    Args:
        tokenizer: of the backbone.
        share: of the words that are hidden.

    Raises:
        BackboneError: if the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: Any, share: float) -> None:
        if tokenizer.mask_token_id is None:
            raise BackboneError(
                "the tokenizer has no mask token, which Recformer's pre-training hides words behind: choose a backbone "
                "of a BERT or RoBERTa type, or set mlm_weight=0"
            )
        self._mask = int(tokenizer.mask_token_id)
        self._share = share
        self._size = len(tokenizer)
        tokens = tokenizer.convert_ids_to_tokens(range(self._size))
        pieces = any(token.startswith("##") for token in tokens)  # WordPiece marks what goes on, others what begins
        self._goes_on = np.array(
            [token.startswith("##") if pieces else not token.startswith(_WORD_STARTS) for token in tokens]
        )

    def __call__(self, texts: PackedTexts, rng: np.random.Generator) -> MaskedTexts:
        """Return the texts with hidden words; `texts` say the kinds of their tokens, and those of kind 0 stay."""
        assert texts.kinds is not None and texts.places is not None
        tokens, kinds, places = (each.numpy() for each in (texts.packed.token_ids, texts.kinds, texts.places))
        begins = ~self._goes_on[tokens]
        begins[0] = True
        begins[1:] |= (kinds[1:] != kinds[:-1]) | (places[1:] != places[:-1])
        word = np.cumsum(begins) - 1
        hidden = (rng.random(int(word[-1]) + 1) < self._share)[word] & (kinds > 0)
        index = np.flatnonzero(hidden)
        fate = rng.random(len(index))
        read = tokens.copy()
        read[index[fate < 0.8]] = self._mask
        drawn = index[fate >= 0.9]
        read[drawn] = rng.integers(0, self._size, len(drawn))
        packed = replace(texts.packed, token_ids=torch.from_numpy(read))
        return MaskedTexts(replace(texts, packed=packed), torch.from_numpy(index), torch.from_numpy(tokens[index]))


class MaskedTokenHead(nn.Module):
    """BERT's head: a linear layer, GELU and a normalisation, then the word embeddings as the last layer.

    Args:
        width: of the hidden states and the word embeddings.
        words: how many there are.
        eps: of the normalisation.
    """

    def __init__(self, width: int, words: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor, words: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of -log p(label) of hidden states [hidden, width], with word embeddings [words, width]."""
        states = self.norm(F.gelu(self.dense(hidden.float())))
        return F.cross_entropy(F.linear(states, words.float(), self.bias), labels, reduction="sum")
