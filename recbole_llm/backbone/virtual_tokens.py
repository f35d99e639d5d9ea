"""Virtual tokens: rows of a packed batch whose hidden state is overwritten at every layer's input (IDLE-Adapter).

With D in L' placeholder rows before the prompt H, a layer computes its queries, keys and values from [D; H]: eq. 9 to
11 are the layer as it is, applied to [D; H]. What it makes of the virtual rows is overwritten before the next layer.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_llm.backbone.attention import packed_hidden_states
from recbole_llm.backbone.pooling import Segments
from recbole_llm.packing.batch import PackedBatch


class LayerVisitor(Protocol):
    """Sees the input of every layer of a pass, and may replace it."""

    def enter(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what layer number `layer` reads in place of `hidden`, both [1, tokens, width]."""


@dataclass
class VirtualTokens:
    """Overwrites the virtual rows at every layer's input.

    Attributes:
        index: int64 [virtual], the places of the virtual rows in the packed row.
        states: [layers, virtual, width], D^(l) of eq. 7; with one layer, the same for all.
    """

    index: Tensor
    states: Tensor

    def enter(self, layer: int, hidden: Tensor) -> Tensor:
        """See `LayerVisitor`. Out of place, so that the backward pass finds what it kept."""
        states = self.states[layer if len(self.states) > 1 else 0]
        return hidden.index_copy(1, self.index, states[None].to(hidden.dtype))


@dataclass
class PooledInputs:
    """Keeps the pooled input of every layer, H^(l) of eq. 9 to 11 as one vector per sequence.

    Attributes:
        segments: which rows of each sequence are pooled, and how.
        states: list over layers of [sequences, width], float32.
    """

    segments: Segments
    states: list[Tensor] = field(default_factory=list)

    def enter(self, layer: int, hidden: Tensor) -> Tensor:
        """See `LayerVisitor`."""
        self.states.append(self.segments.pool(hidden[0]))
        return hidden


def visit_layers(layers: nn.ModuleList) -> None:
    """Let the layers show their inputs to the `layer_visitor` that a call of the model brings along, if it brings one.

    transformers' models hand keywords that they do not know down to every layer.
    """
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(_visit(number), with_kwargs=True)


def _visit(number: int) -> Callable[..., Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        visitor: LayerVisitor | None = kwargs.pop("layer_visitor", None)
        if visitor is None:
            return args, kwargs
        if args:
            return (visitor.enter(number, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": visitor.enter(number, kwargs["hidden_states"])}

    return before


def visited_hidden_states(model: nn.Module, batch: PackedBatch, visitor: LayerVisitor) -> Tensor:
    """Return the last-layer hidden states [tokens, width] of a pass whose layers `visitor` sees.

    `model` went through `use_packed_attention`, its layers through `visit_layers`.
    """
    return packed_hidden_states(model, batch, layer_visitor=visitor)


def compile_layers(layers: nn.ModuleList) -> None:
    """Compile every layer with torch.compile, its hooks left out.

    A hook knows its layer's number: compiled with it, no two layers would share their compiled code.
    """
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Have every layer keep its input alone, and compute what happens inside again in the backward pass.

    transformers' own checkpointing does so in training mode alone, and these layers stay in eval mode, without dropout.
    The hooks of `visit_layers` are left out: each sees its layer's input once.
    """
    for layer in layers:
        # Nothing is drawn inside of a layer, so no random state is kept.
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
