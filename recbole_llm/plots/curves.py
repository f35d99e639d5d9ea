"""Learning curves: the validation metric and the training loss after every epoch."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recbole_llm.errors import SettingError
from recbole_llm.plots.records import Record, Results
from recbole_llm.plots.style import Look, height_of_labels, label_ends, looks, metric_name, number_axis, panels, styled

_HEIGHT, _AROUND = 3.0, 0.95  # inches of one row of panels, at least, and of what stands above and below its axes


@styled
def curves(results: Results, metric: str) -> Figure:
    """Return one row of panels per dataset, a line per run: validation left, its tested epoch marked; loss right.

    Losses of different models are no common measure (RecBole adds up the batches of an epoch), so only their course
    can be compared.

    Args:
        results: runs with a history; epochs are counted from 0, as there.
        metric: of validation, as in `result.json`.

    Raises:
        SettingError: if no run was validated with `metric`.
    """
    datasets = [name for name in results.datasets if any(_validated(r, metric) for r in results.of(name))]
    if not datasets:
        raise SettingError(f"no run has {metric} of a validation after an epoch: there is no learning curve to draw")
    look = looks(results.labels)
    height = max(_HEIGHT, height_of_labels(results.labels) + _AROUND)
    figure, rows = panels(len(datasets), 2, 4.6, height)
    for dataset, (left, right) in zip(datasets, rows, strict=True):
        records = results.of(dataset)
        _draw(left, [(r, _validated(r, metric)) for r in records], look, height - _AROUND, best=True)
        _draw(right, [(r, _losses(r)) for r in records], look, height - _AROUND, best=False)
        left.set(title=dataset, xlabel="epoch, from 0", ylabel=f"validation {metric_name(metric)}")
        right.set(title="", xlabel="epoch, from 0", ylabel="training loss")
    return figure


def _validated(record: Record, metric: str) -> list[tuple[int, float]]:
    return [(e["epoch"], e["valid"][metric]) for e in record.history if metric in (e.get("valid") or {})]


def _losses(record: Record) -> list[tuple[int, float]]:
    losses = [(e["epoch"], e["train_loss"]) for e in record.history if e.get("train_loss") is not None]
    return losses if any(loss for _, loss in losses) else []  # Pop and its like learn nothing and write 0


def _draw(
    ax: Axes, lines: list[tuple[Record, list[tuple[int, float]]]], look: dict[str, Look], height: float, best: bool
) -> None:
    lines = [(record, points) for record, points in lines if points]
    ends: dict[str, tuple[float, float, str, str]] = {}
    for record, points in lines:
        style = look[record.label]
        epochs, values = zip(*points, strict=True)
        # A run of a single epoch is a point.
        marker = style.marker if len(points) == 1 else ""
        ax.plot(epochs, values, color=style.colour, linestyle=style.dashes, marker=marker, label=record.label)
        tested = [point for point in points if point[0] == record.best_epoch]
        if best and tested:
            ax.plot(*tested[0], color=style.colour, marker=style.marker, linestyle="", label="_best")
        end = (epochs[-1], values[-1], record.label, style.colour)
        if record.label not in ends or ends[record.label][0] < end[0]:
            ends[record.label] = end
    if not lines:
        ax.set_axis_off()
        return
    number_axis(ax, "y", [value for _, points in lines for _, value in points], logarithmic=not best)
    number_axis(ax, "x", [epoch for _, points in lines for epoch, _ in points], logarithmic=False)
    label_ends(ax, list(ends.values()), height)
