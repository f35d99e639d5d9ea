"""Users, items and interactions of a prepared dataset, beside the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import polars as pl
from tabulate import tabulate

from recbole_llm.prepare.formats.base import ITEM, USER


@dataclass(frozen=True)
class Counts:
    """How large a dataset is.

    Args:
        users: with at least one interaction.
        items: with at least one interaction.
        interactions: rows, repeats included.
    """

    users: int
    items: int
    interactions: int

    @property
    def mean_length(self) -> float:
        """Interactions per user ("Avg. n" in ST2SI's Table 1)."""
        return self.interactions / self.users if self.users else 0.0

    @property
    def density(self) -> float:
        """Interactions per cell of the user-item matrix."""
        return self.interactions / (self.users * self.items) if self.users and self.items else 0.0

    def as_dict(self) -> dict[str, int]:
        """The three numbers by name."""
        return asdict(self)


def count(interactions: pl.DataFrame) -> Counts:
    """Count the rows and the distinct USER and ITEM values."""
    return Counts(interactions[USER].n_unique(), interactions[ITEM].n_unique(), interactions.height)


def comparison(ours: Counts, papers: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    """Return rows (what, ours, the paper, its number, difference, in percent) for every number that a paper states."""
    rows = []
    own_counts = ours.as_dict()
    for paper, printed in papers.items():
        for name, number in printed.items():
            gap = own_counts[name] - number
            rows.append(
                [name, f"{own_counts[name]:,}", paper, f"{number:,}", f"{gap:+,}", f"{100 * gap / number:+.2f} %"]
            )
    return rows


def table(ours: Counts, papers: Mapping[str, Mapping[str, int]], notes: Sequence[str]) -> str:
    """Return what `prepare` prints at its end: our numbers, each paper's with the difference, known discrepancies."""
    size = [
        ["users", f"{ours.users:,}"],
        ["items", f"{ours.items:,}"],
        ["interactions", f"{ours.interactions:,}"],
        ["interactions per user", f"{ours.mean_length:.2f}"],
        ["density", f"{ours.density:.2e}"],
    ]
    parts = [tabulate(size, tablefmt="simple", colalign=("left", "right"), disable_numparse=True)]
    if rows := comparison(ours, papers):
        header = ["", "ours", "paper", "paper's", "difference", ""]
        align = ("left", "right", "left", "right", "right", "right")
        parts.append(tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True))
    parts += [f"Known: {note}" for note in notes]
    return "\n\n".join(parts)
