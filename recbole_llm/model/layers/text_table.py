"""Item tables made from text vectors by their principal directions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.errors import SettingError

_ZERO = 1e-6  # an eigenvalue below this share of the largest is one of no variance at all


def principal_directions(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [width], directions [width, width] and variances [width] of vectors [items, width], largest first.

    They are the singular value decomposition of the vectors' covariance, in float64. The largest number of a direction
    is positive, so that a direction and its opposite are not a matter of the machine.
    """
    double = vectors.double().cpu()
    mean = double.mean(dim=0)
    centred = double - mean
    covariance = centred.T @ centred / max(len(double) - 1, 1)
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return mean, directions * largest.sign(), variances


def projection_to(vectors: Tensor, size: int, standardised: bool) -> tuple[Tensor, Tensor]:
    """Return mean [width] and projection [width, size] onto the first principal directions, float32.

    Args:
        vectors: float32 [items, width].
        size: how many directions.
        standardised: whether each direction's variance becomes 1; one without any becomes 0.

    Raises:
        SettingError: if the vectors have fewer directions.
    """
    if size > vectors.shape[1]:
        raise SettingError(
            f"hidden_size={size} is more than the {vectors.shape[1]} numbers of a text vector: lower it, or take a "
            f"wider backbone"
        )
    mean, directions, variances = principal_directions(vectors)
    projection = directions[:, :size]
    if standardised:
        some = variances[:size] > _ZERO * variances[0]
        projection = projection * torch.where(some, variances[:size].clamp(min=1e-300).rsqrt(), 0.0)
    return mean.float(), projection.float()


class FusedTable(nn.Module):
    """AlphaFuse's item table: text in the row space of the language embeddings, learned vectors in their null space.

    The text vectors are centred and put onto their first `size` principal directions; the last `null_size` of these,
    with the least variance, are the null space. There the learned vectors are added to the text's, or take their place;
    the others are text alone and never change.

    Args:
        vectors: text vectors, float32 [items, width], row 0 is padding.
        size: of the item vectors.
        null_size: how many of the directions are learned, below `size`.
        standardised: whether the text has variance 1 in each direction.
        covered: whether learned vectors take the place of the text in the null space.
        deviation: standard deviation of the initial learned vectors.

    Raises:
        SettingError: if `size` is more than the width, or `null_size` not below `size`.
    """

    text: Tensor
    mean: Tensor
    projection: Tensor

    def __init__(
        self, vectors: Tensor, size: int, null_size: int, standardised: bool, covered: bool, deviation: float
    ) -> None:
        super().__init__()
        if null_size >= size:
            raise SettingError(f"null_size={null_size} must be below hidden_size={size}: the rest is the texts' space")
        mean, projection = projection_to(vectors[1:], size, standardised)
        if covered:
            projection[:, -null_size:] = 0
        # Stored with the weights: learned vectors fit these directions alone.
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)
        self.register_buffer("text", self.project(vectors.cpu()))
        self.learned = nn.Parameter(torch.empty(len(vectors), null_size))
        nn.init.normal_(self.learned, std=deviation)

    def project(self, vectors: Tensor) -> Tensor:
        """Return the text part [items, size] of text vectors [items, width]."""
        return (vectors - self.mean) @ self.projection

    def forward(self) -> Tensor:
        """Return the vectors of all items: [items, size]."""
        return self.text + F.pad(self.learned, (self.text.shape[1] - self.learned.shape[1], 0))

    @torch.no_grad()
    def append(self, vectors: Tensor) -> None:
        """Put items with these text vectors [new, width] behind the others; their learned part is 0."""
        self.text = torch.cat([self.text, self.project(vectors.to(self.text))])
        new = self.learned.new_zeros(len(vectors), self.learned.shape[1])
        self.learned = nn.Parameter(torch.cat([self.learned, new]))
