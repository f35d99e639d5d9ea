"""A metric against the size of the language model, one line per family (IDLE-Adapter, Figure 2)."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recbole_llm.errors import SettingError
from recbole_llm.plots.records import Point, Record, Results, mean, point
from recbole_llm.plots.sensitivity import draw_lines
from recbole_llm.plots.style import MUTED, grid, looks, metric_name, styled

# What a run with another language model differs in by its nature: how it is found, stored and fed.
_OF_THE_BACKBONE = (
    *("backbone", "weights", "precision", "gradient_checkpointing", "compile"),
    *("train_batch_size", "train_batch_tokens", "train_batch_samples"),
)


@styled
def backbones(results: Results, metric: str) -> Figure:
    """Return one panel per dataset: test metric against all parameters of the model, trained and frozen.

    The best run without a language model is a dashed line, for reference, as in the paper.

    Args:
        results: runs with language models of different sizes.
        metric: of the test.

    Raises:
        SettingError: if no family has two sizes, or runs at one point differ in something else.
    """
    lines = {name: _lines(results.of(name)) for name in results.datasets}
    sizes = {name: by_family for name, by_family in lines.items() if any(len(s) > 1 for s in by_family.values())}
    if not sizes:
        raise SettingError(
            "no two runs on one dataset have language models of one family and different sizes, such as "
            "backbone=opt-125m and backbone=opt-350m: give runs of both"
        )
    look = looks([family for by_family in lines.values() for family in by_family])
    figure, axes = grid(len(sizes))
    for (dataset, by_family), ax in zip(sizes.items(), axes, strict=True):
        points = {
            family: sorted((point_at_size(runs, metric) for runs in by_name.values()), key=_x)
            for family, by_name in by_family.items()
        }
        draw_best_without(ax, results.of(dataset), metric)
        draw_lines(ax, points, look, ticks=False)
        ax.set(title=dataset, xlabel="parameters, trained and frozen", ylabel=f"test {metric_name(metric)}")
    return figure


def family_of(backbone: str) -> str:
    """Return the family of a language model's name, hub id or folder: ``facebook/opt-125m`` is of ``opt``."""
    return Path(backbone).name.split("-")[0].lower()


def point_at_size(records: list[Record], metric: str) -> Point:
    """Return the mean of runs with one language model, at the number of all parameters, trained and frozen.

    Raises:
        SettingError: if they differ in more than the seed, or their models in size, as those of two folders with the
            same last name do.
    """
    sizes = {record.source: sum(record.parameters.values()) for record in records}
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    found = point(sizes[smallest], records, metric, *_OF_THE_BACKBONE)
    if sizes[smallest] != sizes[largest]:
        raise SettingError(
            f"the language models of {smallest} and {largest} have one name, but models of {sizes[smallest]:,} and "
            f"{sizes[largest]:,} parameters: give their folders other names"
        )
    return found


def _x(one: Point) -> float:
    return one.x


def _lines(records: list[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return the runs by family, and in it by the language model's name."""
    ways = {(r.model, r.tuning) for r in records if r.backbone}
    lines: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.backbone:
            family = family_of(record.backbone)
            own = " ".join(str(part) for part in (record.model, record.tuning) if part)
            name = family if len(ways) == 1 else f"{own}, {family}"
            lines.setdefault(name, {}).setdefault(Path(record.backbone).name, []).append(record)
    return lines


def draw_best_without(ax: Axes, records: list[Record], metric: str) -> None:
    """Draw the best run without a language model, if there is one, as a dashed line with its label."""
    reference = best_without(records, metric)
    if reference is None:
        return
    ax.axhline(reference[1], color=MUTED, linestyle="--", linewidth=1.0, label=reference[0])
    ax.annotate(
        reference[0], (0.01, reference[1]), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", color=MUTED,
    )  # fmt: skip


def best_without(records: list[Record], metric: str) -> tuple[str, float] | None:
    """Return label and mean over seeds of the best without a language model, None if all runs have one."""
    labels = dict.fromkeys(record.label for record in records if not record.backbone)
    means = {label: mean(0, [r for r in records if r.label == label], metric).mean for label in labels}
    return max(means.items(), key=lambda pair: pair[1]) if means else None
