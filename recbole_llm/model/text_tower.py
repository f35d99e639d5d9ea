"""A language model as a text tower: packed texts in, one vector per text out, with gradients in bounded memory."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_llm.backbone.attention import packed_hidden_states, use_packed_attention
from recbole_llm.backbone.loading import Backbone
from recbole_llm.backbone.tuning import TuningSettings, prepare_for_tuning
from recbole_llm.data.history_texts import PackedTexts, in_order


class TextTower(nn.Module):
    """Pooled last hidden states of a backbone.

    Args:
        loaded: the backbone; it is prepared for packed batches and for its tuning here.
        tuning: how much of it is trained.
        precision: of its arithmetic.

    Attributes:
        backbone: the language model, without a head.
        width: of the vectors.
    """

    def __init__(self, loaded: Backbone, tuning: TuningSettings, precision: torch.dtype) -> None:
        super().__init__()
        self.backbone = loaded.model
        self.width = loaded.width
        self._frozen = tuning.tuning == "frozen"
        self._autocast = tuning.needs_autocast(precision)
        use_packed_attention(self.backbone)
        prepare_for_tuning(loaded, tuning)

    def train(self, mode: bool = True) -> "TextTower":
        """Set training mode; a frozen backbone stays in eval mode, without dropout."""
        super().train(mode)
        if self._frozen:
            self.backbone.eval()
        return self

    def forward(self, texts: PackedTexts) -> Tensor:
        """Return the vectors of the texts of one pass: [texts, width], float32."""
        texts = texts.to(next(self.backbone.parameters()).device)
        return texts.segments.pool(self.hidden_states(texts))

    def hidden_states(self, texts: PackedTexts) -> Tensor:
        """Return the last hidden states of texts on the device: [tokens, width].

        Attention weights are not dropped out (BERT does so at .1): the kernel of packed sequences has no dropout. A
        Longformer's are.
        """
        packed = replace(texts.packed, bounds=replace(texts.packed.bounds, drops_attention=False))
        with torch.autocast(texts.packed.token_ids.device.type, torch.bfloat16, enabled=self._autocast):
            return packed_hidden_states(self.backbone, packed, **self.embeddings(texts))

    def embeddings(self, texts: PackedTexts) -> dict[str, Tensor]:
        """Return what is fed in place of the word embeddings, as ``inputs_embeds``; by default nothing."""
        del texts
        return {}

    def encode(self, passes: Sequence[PackedTexts]) -> Tensor:
        """Return the vectors of all passes, in the order of the texts: [texts, width], float32.

        With gradients, the activations of one pass at a time are kept: where there are several, each is computed again
        in the backward pass, with the same dropout. So the number of passes changes no gradient.
        """
        if len(passes) == 1 or not torch.is_grad_enabled():
            vectors = [self(texts) for texts in passes]
        else:
            vectors = [checkpoint(self, texts, use_reentrant=False) for texts in passes]
        return in_order(passes, torch.cat(vectors))
