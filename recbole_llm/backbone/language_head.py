"""The language head of a backbone: from hidden states to logits over its vocabulary, which AutoModel leaves out."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from recbole_llm.backbone.decoding.encoder_decoder import scales_states
from recbole_llm.backbone.gguf import quiet_transformers
from recbole_llm.backbone.loading import Backbone
from recbole_llm.backbone.tuning import TuningSettings
from recbole_llm.errors import BackboneError

# What some types do to logits after the product with the head, and the value that does nothing.
_AFTER_LOGITS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0, "lm_head_multiplier": 1.0}


class LanguageHead(nn.Module):
    """logits = W h, without a bias.

    Args:
        embedding: the backbone's word embeddings, whose weight W is where both are tied; it is not stored again here.
        own: W [vocabulary, width] where it is a matrix of its own.

    Attributes:
        own: the same as a parameter, or None.
    """

    def __init__(self, embedding: nn.Module, own: Tensor | None = None) -> None:
        super().__init__()
        self.own = None if own is None else nn.Parameter(own)
        self._embedding = (embedding,)  # in a tuple, so that torch does not take it for a part of this module

    @property
    def weight(self) -> Tensor:
        """W, [vocabulary, width]."""
        weight: Tensor = self._embedding[0].weight if self.own is None else self.own  # type: ignore[assignment]
        return weight

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits [..., vocabulary] of hidden states [..., width], float32."""
        return (states.to(self.weight.dtype) @ self.weight.T).float()


def language_head(loaded: Backbone, tuning: TuningSettings, dtype: torch.dtype) -> LanguageHead:
    """Return the head of a decoder, or of a T5 type: its word embeddings if tied, else the matrix in its weights file.

    A head of its own is trained with ``tuning: full`` alone.

    Args:
        loaded: the backbone.
        tuning: how much of it is trained.
        dtype: the type that a head of its own is kept in.

    Raises:
        BackboneError: if the backbone is an encoder, has no head in its file, or one that is more than a product.
    """
    config = loaded.model.config
    where = f"the backbone in {loaded.folder} ('{config.model_type}')"
    if loaded.preset.kind == "encoder":
        raise BackboneError(f"{where} writes no text: choose a decoder, such as smollm2-135m")
    for name, nothing in _AFTER_LOGITS.items():
        if getattr(config, name, None) not in (None, nothing):
            raise BackboneError(f"{where} changes its logits by {name}, which is not supported: choose another decoder")
    encodes = loaded.preset.kind == "encoder-decoder"
    # transformers calls every T5 tied; one with a head of its own is told by what it does to the states before it.
    if scales_states(config) if encodes else config.tie_word_embeddings:
        return LanguageHead(loaded.model.get_input_embeddings())
    with quiet_transformers():
        causal, report = (AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM).from_pretrained(
            loaded.folder,
            dtype=dtype,
            weights_only=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    head = causal.get_output_embeddings()
    if encodes and head.weight is causal.get_input_embeddings().weight:
        return LanguageHead(loaded.model.get_input_embeddings())
    if head is None or any(key.endswith("head.weight") for key in report["missing_keys"]):
        raise BackboneError(f"{where} has no language head in its weights: fetch the model for text generation")
    if head.bias is not None:
        raise BackboneError(f"{where} has a bias in its language head, which is not supported: choose another decoder")
    found = LanguageHead(loaded.model.get_input_embeddings(), head.weight.detach())
    return found.requires_grad_(tuning.tuning == "full")
