"""From a user vector to the virtual tokens of every layer: IDLE-Adapter, eq. 5 to 7."""

import torch
from torch import Tensor, nn


class VirtualTokenAdapter(nn.Module):
    """Layer-wise projection, layer-wise prefixes and the gate between the two.

    The gate's W_g carries no layer index in the paper: one serves all layers. All parameters start from a normal
    distribution truncated to [-0.02, 0.02] (5.1).

    Args:
        size: d, of a user vector.
        width: d', of the backbone's layers.
        layers: L.
        tokens: L', virtual tokens a user vector.
        layerwise: False: one projection and one prefix for all layers (Table 4, without LayerWise).
        refinement: False: D = P, without prefixes and gate (Table 4, without Refinement).

    Attributes:
        projection_weight: W_u [L, d', d].
        projection_bias: b_u [L, d'].
        prefix: C [L, L', d']; with several interests the same for each.
        gate_weight: W_g [2 d'].
    """

    prefix: nn.Parameter
    gate_weight: nn.Parameter

    def __init__(
        self, size: int, width: int, layers: int, tokens: int, layerwise: bool = True, refinement: bool = True
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.refinement = refinement
        own = layers if layerwise else 1
        self.projection_weight = nn.Parameter(torch.empty(own, width, size))
        self.projection_bias = nn.Parameter(torch.empty(own, width))
        if refinement:
            self.prefix = nn.Parameter(torch.empty(own, tokens, width))
            self.gate_weight = nn.Parameter(torch.empty(2 * width))
        for parameter in self.parameters():
            truncated_normal_(parameter)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return D [L, users, interests x L', d'] of user vectors u [users, interests, d]; L is 1 if not layer-wise.

        p = W_u u + b_u (eq. 5); g = sigmoid([C, P] W_g) (eq. 6); D = g C + (1 - g) P (eq. 7). P repeats p L' times.
        """
        own, width, size = self.projection_weight.shape
        users, interests, _ = vectors.shape
        flat = vectors.reshape(-1, size) @ self.projection_weight.reshape(own * width, size).T
        projected = (
            flat.view(-1, own, width).transpose(0, 1) + self.projection_bias[:, None]
        )  # [L, users x interests, d']
        repeated = projected[:, :, None].expand(-1, -1, self.tokens, -1)
        if not self.refinement:
            return repeated.reshape(own, users, interests * self.tokens, width)
        for_prefix, for_user = self.gate_weight.split(width)
        prefix = self.prefix[:, None]
        gate = torch.sigmoid((prefix @ for_prefix) + (projected @ for_user)[:, :, None])[..., None]
        return (gate * prefix + (1 - gate) * repeated).reshape(own, users, interests * self.tokens, width)


def truncated_normal_(tensor: Tensor) -> None:
    """Fill `tensor` from a normal distribution of deviation 0.02, truncated to [-0.02, 0.02]."""
    nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
