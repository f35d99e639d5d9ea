"""The histories of rows at the width that an ID model reads."""

import torch
from recbole.data.interaction import Interaction


def resized_histories(rows: Interaction, field: str, length_field: str, width: int) -> Interaction:
    """Return the histories of `rows` with `width` columns, the most recent items kept, and their lengths.

    Args:
        rows: with `field`, int64 [batch, items] from the left, and `length_field`, int64 [batch].
        field: of the histories.
        length_field: of their lengths.
        width: items that the ID model reads.
    """
    histories, lengths = rows[field], rows[length_field]
    kept = lengths.clamp(max=width)
    columns = torch.arange(width, device=histories.device)
    source = (lengths - kept)[:, None] + columns
    inside = columns < kept[:, None]
    recent = histories.gather(1, source.clamp(max=histories.shape[1] - 1)) * inside
    return Interaction({field: recent, length_field: kept})
