"""float32 master copies of weights that the model holds in bfloat16.

A bfloat16 weight keeps 8 bits: most AdamW steps are smaller than its last bit and would be lost. The optimiser updates
a float32 copy, and the model gets that copy rounded.
"""

from typing import Any

import torch
from torch import Tensor


class MasterWeights:
    """Puts float32 masters in the place of low-precision parameters of optimiser groups.

    Args:
        groups: AdamW's parameter groups; changed in place.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.low: list[Tensor] = []
        self.masters: list[Tensor] = []
        for group in groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]

    def _master(self, parameter: Tensor) -> Tensor:
        if parameter.dtype == torch.float32:
            return parameter
        self.low.append(parameter)
        self.masters.append(parameter.detach().float().clone().requires_grad_())
        return self.masters[-1]

    def take_gradients(self) -> None:
        """Move the gradients of the model's weights to the masters, in float32."""
        for low, master in zip(self.low, self.masters, strict=True):
            master.grad = None if low.grad is None else low.grad.float()
            low.grad = None

    def rounded(self, state: list[Tensor]) -> list[Tensor]:
        """Return what the model's weights are with the masters that `state` returned."""
        return [master.to(low.dtype) for low, master in zip(self.low, state, strict=True)]

    def give_weights(self) -> None:
        """Round the masters into the model."""
        if self.low:
            with torch.no_grad():
                torch._foreach_copy_(self.low, self.masters)

    def state(self) -> list[Tensor]:
        """Return the masters."""
        return [master.detach().cpu() for master in self.masters]

    def own(self, state: list[Tensor]) -> list[Tensor]:
        """Return the rows of this process of whole masters: here all."""
        return state

    def load_state(self, state: list[Tensor]) -> None:
        """Take back what `state` returned."""
        with torch.no_grad():
            for master, stored in zip(self.masters, state, strict=True):
                master.copy_(stored)
