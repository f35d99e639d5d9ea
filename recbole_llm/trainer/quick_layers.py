"""Layers of RecBole's models, in fewer passes over memory while they are trained.

On a CPU a training step of a small transformer spends a quarter of its time in two of its cheapest layers: `nn.Dropout`
draws each number of a mask by itself, and RecBole's gelu (`recbole/model/layers.py:512`) is five operations forward and
more backward. Both have the same values here, or the same distribution, without a weight more; neither changes a model
that is not being trained.
"""

from collections.abc import Callable

import torch
from recbole.model.layers import FeedForward
from torch import Tensor, nn
from torch.nn import functional as F


class QuickDropout(nn.Dropout):
    """`nn.Dropout` whose mask, on a CPU, comes from vectorised numbers of [0, 1): those from p up stay."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` with elements left out, the others divided by 1 - p; as it is where nothing is trained."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        return input * (torch.rand_like(input) >= self.p).to(input.dtype).div_(1 - self.p)


class QuickGelu(nn.Module):
    """x Phi(x) in one kernel while it is trained.

    Args:
        exact: what is called otherwise, so that scores are to the digit those of RecBole's layers.
    """

    def __init__(self, exact: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """Return x Phi(x), of the shape of x."""
        return F.gelu(x) if self.training else self.exact(x)


def quicken(model: nn.Module) -> None:
    """Put the layers above into the place of those that `model` has. Names of weights stay as they are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, QuickDropout(child.p).train(child.training))
        if isinstance(module, FeedForward) and module.intermediate_act_fn == module.gelu:
            module.intermediate_act_fn = QuickGelu(module.gelu).train(module.training)
