"""T5 types: the encoder reads a prompt, and the decoder writes after a start token, seeing all that was read.

T5 tells where tokens stand by a bias of attention for their distance, which transformers takes from their columns. Of
branches that lie side by side behind a prompt the distances are those within a branch: the bias is computed for them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from recbole_llm.backbone.decoding.decoder import Decoder, PaddedPrompts, Prefix


@dataclass
class EncodedPrefix(Prefix):
    """A prompt that the encoder read, and what the decoder has read so far.

    Attributes:
        encoded: [rows, prompt columns, width], the encoder's last states.
        encoded_visible: bool [rows, prompt columns], which of them hold a token.
        positions: int64 [rows, columns], the position of the decoder's tokens in the cache, 0 for the start token.
    """

    encoded: Tensor
    encoded_visible: Tensor
    positions: Tensor


class EncoderDecoder(Decoder):
    """Reads prompts with the encoder and what follows them with the decoder. Nothing has gradients."""

    @torch.no_grad()
    def read(self, prompts: PaddedPrompts) -> tuple[Tensor, Prefix]:
        """Read prompts; return the states after the decoder's start token, [rows, width], and what can be extended."""
        device, rows = prompts.embedded.device, len(prompts.lengths)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            encoded = encode(self.model, prompts)
        starts = torch.full((rows, 1), start_token(self.model), device=device)
        prefix = EncodedPrefix(
            cache=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            visible=torch.ones(rows, 1, dtype=torch.bool, device=device),
            lengths=torch.ones(rows, dtype=torch.int64, device=device),
            shift=None,
            encoded=encoded,
            encoded_visible=prompts.visible,
            positions=torch.empty(rows, 0, dtype=torch.int64, device=device),
        )
        states = self._forward(prefix, self.embed(starts), torch.zeros_like(starts), prefix.visible[:, None])
        return states[:, -1], prefix

    @torch.no_grad()
    def _forward(self, prefix: Prefix, embedded: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        assert isinstance(prefix, EncodedPrefix)
        prefix.positions = torch.cat([prefix.positions, positions.expand(len(prefix.positions), -1)], dim=1)
        with (
            torch.autocast(embedded.device.type, torch.bfloat16, enabled=self.autocast),
            _distances(self.model, positions, prefix.positions),
        ):
            return decoder_states(
                self.model,
                embedded,
                prefix.encoded,
                prefix.encoded_visible,
                attention_mask=mask[:, None],
                past_key_values=prefix.cache,
                use_cache=True,
            )


def start_token(model: Any) -> int:
    """Return the token that every answer of an encoder-decoder begins behind."""
    token = model.config.decoder_start_token_id
    return int(model.config.pad_token_id if token is None else token)  # T5's is its padding token


def encode(model: Any, prompts: PaddedPrompts) -> Tensor:
    """Return the encoder's last states of padded prompts: [rows, columns, width]."""
    states: Tensor = model.encoder(inputs_embeds=prompts.embedded, attention_mask=prompts.visible).last_hidden_state
    return states


def decoder_states(model: Any, embedded: Tensor, encoded: Tensor, visible: Tensor, **keywords: Any) -> Tensor:
    """Return the decoder's last states [rows, tokens, width], scaled so that W h are the logits.

    Args:
        model: a transformers base model of a T5 type.
        embedded: [rows, tokens, width], the decoder's input embeddings; each token sees those before it, and all that
            was encoded.
        encoded: [rows, columns, width], see `encode`.
        visible: bool [rows, columns], which of them hold a token.
        keywords: given to the decoder.
    """
    keywords.setdefault("use_cache", False)
    output = model.decoder(
        inputs_embeds=embedded, encoder_hidden_states=encoded, encoder_attention_mask=visible, **keywords
    )
    states: Tensor = output.last_hidden_state
    return states * model.config.d_model**-0.5 if scales_states(model.config) else states


def scales_states(config: Any) -> bool:
    """Tell whether the decoder's states are scaled before the head: in T5, whose head is its word embeddings."""
    named = getattr(config, "scale_decoder_outputs", None)
    if named is None:  # mT5, whose head is its own; or a transformers that asks whether T5's is
        return config.model_type == "t5" and bool(config.tie_word_embeddings)
    return bool(named)


@contextlib.contextmanager
def _distances(model: Any, queries: Tensor, keys: Tensor) -> Iterator[None]:
    """Let the decoder's attention to itself know tokens by given positions, int64 [rows, tokens] and [rows, columns].

    Its first layer computes the bias of all layers.
    """
    first = model.decoder.block[0].layer[0].SelfAttention
    buckets = first._relative_position_bucket(
        keys[:, None] - queries[:, :, None],
        bidirectional=False,
        num_buckets=first.relative_attention_num_buckets,
        max_distance=first.relative_attention_max_distance,
    )
    bias = first.relative_attention_bias(buckets).permute(0, 3, 1, 2)
    first.compute_bias = lambda *_, **__: bias
    try:
        yield
    finally:
        del first.compute_bias
