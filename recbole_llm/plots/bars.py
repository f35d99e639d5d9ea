"""The table as bars: one panel per dataset and metric, one bar per model."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recbole_llm.errors import SettingError
from recbole_llm.plots.records import Results, mean
from recbole_llm.plots.style import INK, MUTED, looks, metric_name, panels, plain_number, styled, wrapped


@styled
def bars(results: Results, metrics: list[str]) -> Figure:
    """Return bars of the test metrics, the mean over seeds, with a row of panels per dataset and a column per metric.

    The whisker is the comparison's interval over users; for runs by themselves it is one standard deviation over
    seeds, and there is none for one seed. Labels without a finished run keep their place.

    Args:
        results: a comparison's, or runs.
        metrics: test metrics, as in `result.json`.

    Raises:
        SettingError: if there is no finished run, or two runs of one label have the same seed.
    """
    datasets = [name for name in results.datasets if results.of(name)]
    if not datasets:
        raise SettingError("no run is finished: there is no bar to draw")
    # A panel has room for every label; only the first column writes them.
    tallest = max(wrapped(label).count("\n") for label in results.labels)
    height = 0.9 + (0.34 + 0.13 * tallest) * len(results.labels)
    figure, rows = panels(len(datasets), len(metrics), 4.6 if len(metrics) == 1 else 3.4, height)
    for dataset, row in zip(datasets, rows, strict=True):
        for column, (metric, ax) in enumerate(zip(metrics, row, strict=True)):
            whiskers = _draw(ax, results, dataset, metric)
            ax.set(title=dataset if column == 0 else "", xlabel=f"test {metric_name(metric)}{whiskers}")
            if column:
                ax.tick_params(labelleft=False)
    return figure


def _draw(ax: Axes, results: Results, dataset: str, metric: str) -> str:
    """Draw one panel and return what its whiskers are."""
    look = looks(results.labels)
    meaning = ""
    widest = 0.0
    for place, label in enumerate(results.labels):
        records = results.of(dataset, label)
        if not records:
            ax.annotate("no finished run", (0, place), (5, 0), textcoords="offset points", va="center", color=MUTED)
            continue
        found = mean(place, records, metric)
        ax.barh(place, found.mean, height=0.62, color=look[label].colour, alpha=0.6)  # whiskers show on it
        low, high = found.mean, found.mean
        if (dataset, label, metric) in results.intervals:
            low, high = results.intervals[dataset, label, metric]
            meaning = ", 95 % interval over users"
        elif found.deviation is not None:
            low, high = found.mean - found.deviation, found.mean + found.deviation
            meaning = ", ± standard deviation over seeds"
        if low < high:
            ax.plot([low, high], [place, place], color=INK, linewidth=1.2, marker="|", markersize=6, label="_whisker")
        widest = max(widest, high)
        ax.annotate(
            f"{found.mean:.4f}", (max(high, found.mean), place), (5, 0), textcoords="offset points", va="center"
        )
    ax.set_xlim(0, widest * 1.3 or 1.0)
    ax.set_ylim(len(results.labels) - 0.45, -0.55)
    ax.set_yticks(range(len(results.labels)), [wrapped(label) for label in results.labels])
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.grid(visible=False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.xaxis.set_major_formatter(FuncFormatter(plain_number))
    return meaning
