"""A decoder-only model with a key-value cache: prompts are read once, and any number of tokens follow.

Prompts are padded on the left, so that all rows of a batch go on in the same column. Attention is torch's own with a
mask; training reads packed rows instead, see `recbole_llm.backbone.attention`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from recbole_llm.backbone.precision import in_autocast_type
from recbole_llm.errors import BackboneError
from recbole_llm.packing.ragged import ranges

_LOGITS_BYTES = {"cpu": 30 * 1024**2, "cuda": 512 * 1024**2}
"""The most that the float32 logits of one piece may take. A CPU's allocator keeps memory below 32 MiB for the next
piece; above, every piece costs as many page faults as products."""


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts of one batch as input embeddings, padded on the left.

    Attributes:
        embedded: [rows, columns, width].
        lengths: int64 [rows], tokens of each prompt, at least 1.
        shift: [rows, width], what is added to the embedding of every token that follows the prompt; None for nothing.
    """

    embedded: Tensor
    lengths: Tensor
    shift: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        """Which columns hold a token: bool [rows, columns]."""
        columns = torch.arange(self.embedded.shape[1], device=self.lengths.device)
        return columns >= self.embedded.shape[1] - self.lengths[:, None]


def left_padded(embedded: Tensor, lengths: np.ndarray, shift: Tensor | None = None) -> PaddedPrompts:
    """Return prompts that lie end to end as padded ones.

    Args:
        embedded: [tokens, width], the input embeddings of all prompts.
        lengths: int64 [rows], tokens of each prompt, on the host.
        shift: see `PaddedPrompts`.
    """
    rows, columns = len(lengths), int(lengths.max(initial=1))
    places = torch.from_numpy(ranges(np.arange(1, rows + 1) * columns - lengths, lengths)).to(embedded.device)
    padded = embedded.new_zeros(rows * columns, embedded.shape[1]).index_copy(0, places, embedded)
    return PaddedPrompts(
        padded.view(rows, columns, -1), torch.from_numpy(np.asarray(lengths)).to(embedded.device), shift
    )


@dataclass
class Prefix:
    """What has been read so far.

    Attributes:
        cache: keys and values.
        visible: bool [rows, columns], which columns of the cache hold a token that all further ones see.
        lengths: int64 [rows], tokens read: the position of the next one.
        shift: see `PaddedPrompts`.
    """

    cache: Cache
    visible: Tensor
    lengths: Tensor
    shift: Tensor | None


class KeptCache(DynamicCache):
    """Keys and values in the type that attention multiplies, which is autocast's where that is on.

    Rotary embeddings of float32 weights give float32 keys under autocast. Kept so, they and the values beside them take
    twice the memory, and every further token has all of them cast again.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *more: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values of a layer, [rows, heads, tokens, size]; return all of it."""
        key_states, value_states = in_autocast_type(key_states, value_states)
        kept: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *more, **keywords)
        return kept


class Decoder:
    """Reads prompts and what follows them. Nothing has gradients.

    Args:
        model: a transformers base model of the decoder kind.
        weight: returns W of the language head, [vocabulary, width].
        embed: from token ids [...] to input embeddings [..., width].
        autocast: whether to multiply in bfloat16 what is kept in float32.
    """

    def __init__(
        self, model: Any, weight: Callable[[], Tensor], embed: Callable[[Tensor], Tensor], autocast: bool = False
    ) -> None:
        self.model = model
        self.weight = weight
        self.embed = embed
        self.autocast = autocast

    def read(self, prompts: PaddedPrompts) -> tuple[Tensor, Prefix]:
        """Read prompts; return the states after their last tokens, [rows, width], and what can be extended.

        Raises:
            BackboneError: if they are longer than the window that the model's layers see.
        """
        columns = prompts.embedded.shape[1]
        places = torch.arange(columns, device=prompts.lengths.device)
        visible = prompts.visible
        # Padding sees itself: a row of attention without any key would have no number.
        mask = (visible[:, None] & (places <= places[:, None])) | torch.eye(
            columns, dtype=torch.bool, device=places.device
        )
        positions = (places - (columns - prompts.lengths[:, None])).clamp_min(0)
        prefix = Prefix(KeptCache(), visible, prompts.lengths, prompts.shift)
        states = self._forward(prefix, prompts.embedded, positions, mask)
        return states[:, -1], prefix

    def follow(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Let one token follow in each row, int64 [rows], and return the states after it: [rows, width]."""
        seen = torch.cat([prefix.visible, prefix.visible.new_ones(len(tokens), 1)], dim=1)
        states = self._forward(prefix, self._embedded(prefix, tokens[:, None]), prefix.lengths[:, None], seen[:, None])
        prefix.visible, prefix.lengths = seen, prefix.lengths + 1
        return states[:, 0]

    def branch(self, prefix: Prefix, tokens: Tensor, sees: Tensor, depths: Tensor) -> Tensor:
        """Return the states after many tokens that follow a prefix in several branches at once.

        Called again, further tokens follow those of earlier calls; `follow` cannot go on behind branches.

        Args:
            prefix: of `read`. Its cache gets a column per token.
            tokens: int64 [rows, tokens].
            sees: bool [rows or 1, tokens, columns], whether a token sees those of earlier calls and of this one, in
                their order; each sees itself.
            depths: int64 [rows or 1, tokens], how many tokens of its branch stand before it.

        Returns:
            [rows, tokens, width].
        """
        rows, count = tokens.shape
        before = prefix.visible[:, None].expand(rows, count, prefix.visible.shape[1])
        mask = torch.cat([before, sees.expand(rows, *sees.shape[1:])], dim=2)
        positions = prefix.lengths[:, None] + depths
        return self._forward(prefix, self._embedded(prefix, tokens), positions, mask)

    def log_probabilities(self, states: Tensor) -> Tensor:
        """Return log p of every token after states [..., width]: [..., vocabulary], float32."""
        with torch.no_grad():
            return self.logits(states).log_softmax(dim=-1)

    def logits(self, states: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the logits of all tokens, or of some, after states [..., width]: [..., tokens], float32."""
        weight = self.weight()
        if tokens is not None:
            weight = weight[tokens]
        dtype = torch.bfloat16 if self.autocast else weight.dtype
        return (states.to(dtype) @ weight.to(dtype).T).float()

    def _embedded(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        embedded = self.embed(tokens)
        return embedded if prefix.shift is None else embedded + prefix.shift[:, None]

    @torch.no_grad()
    def _forward(self, prefix: Prefix, embedded: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the states of tokens that follow a prefix, [rows, tokens, width], whose cache grows by them.

        Args:
            prefix: what has been read.
            embedded: [rows, tokens, width].
            positions: int64 [rows, tokens].
            mask: bool [rows, tokens, columns of the cache and these tokens], what each sees.
        """
        window = getattr(self.model.config, "sliding_window", None)
        longest = 0 if window is None else int(positions.max()) + 1
        if window is not None and longest > window:
            raise BackboneError(
                f"a prompt and its answer take {longest} tokens, and {type(self.model).__name__} sees a window "
                f"of {window}: shorten the history"
            )
        with plain_attention(self.model), torch.autocast(embedded.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model(
                inputs_embeds=embedded,
                position_ids=positions,
                attention_mask=mask[:, None],
                past_key_values=prefix.cache,
                use_cache=True,
            )
        states: Tensor = output.last_hidden_state
        return states


def states_per_piece(vocabulary: int, device: torch.device) -> int:
    """Return how many states may have their logits over a vocabulary at once, at least 1."""
    return max(_LOGITS_BYTES.get(device.type, _LOGITS_BYTES["cuda"]) // (4 * vocabulary), 1)


@contextlib.contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Let a model attend by torch's own function and a mask, and afterwards again as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
