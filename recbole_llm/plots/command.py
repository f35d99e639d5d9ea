"""The verb ``plot``: pictures of finished runs, of a comparison, or of the vectors of one run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from recbole_llm.cli.arguments import read_options
from recbole_llm.comparison.file import read_comparison
from recbole_llm.errors import SettingError, nearest
from recbole_llm.plots.backbones import backbones
from recbole_llm.plots.bars import bars
from recbole_llm.plots.curves import curves
from recbole_llm.plots.groups import groups
from recbole_llm.plots.pretraining import pretraining
from recbole_llm.plots.records import Results, from_comparison, read_runs
from recbole_llm.plots.sensitivity import sensitivity
from recbole_llm.plots.style import metric_name, save
from recbole_llm.plots.trade_off import trade_off
from recbole_llm.utils.files import write_json

_OF_RESULTS = ("runs", "comparison", "setting", "metric")
_OF_A_RUN = ("run", "layer", "data_path")
_OPTIONS = ("kind", *_OF_RESULTS, *_OF_A_RUN, "out")
_ONE_METRIC: dict[str, Callable[[Results, str], Figure]] = {
    "curves": curves,
    "groups": groups,
    "backbones": backbones,
    "trade_off": trade_off,
}
KINDS = ("curves", "bars", "groups", "sensitivity", "backbones", "pretraining", "trade_off")
_REPRESENTATIONS = "representations"  # not of results, but of the model of one run
_ALL_KINDS = (*KINDS, _REPRESENTATIONS)


def draw(results: Results, kind: str, metric: str | None = None, setting: str | None = None) -> dict[str, Figure]:
    """Return the figures of one kind by the names of their files.

    Args:
        results: of runs or of a comparison.
        kind: one of `KINDS`.
        metric: ``ndcg@10`` by default, if the runs have it; bars show all of a comparison's by default.
        setting: what ``sensitivity`` draws against.

    Raises:
        SettingError: for an unknown kind, metric or setting, and for runs that do not suffice for the plot.
    """
    _check_kind(kind, KINDS)
    if (kind == "sensitivity") != (setting is not None):
        what = "needs the setting to draw against" if setting is None else f"has no use for setting={setting}"
        raise SettingError(f"--kind={kind} {what}; --kind=sensitivity --setting=num_virtual_tokens goes together")
    if not results.records:
        raise SettingError("no run of the comparison is finished: there is nothing to draw")
    chosen = results.metric(metric)
    if kind == "bars":
        return {kind: bars(results, [chosen] if metric is not None else results.metrics)}
    if kind == "pretraining":
        return {f"{kind}-{name}": figure for name, figure in pretraining(results, chosen).items()}
    if setting is not None:
        return {f"{kind}-{setting}": sensitivity(results, setting, chosen)}
    return {kind: _ONE_METRIC[kind](results, chosen)}


def _check_kind(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise SettingError(f"there is no plot '{kind}'{nearest(kind, kinds)} Plots are {', '.join(kinds)}")


def plot_command(arguments: list[str]) -> int:
    """Write the pictures of one kind and print their paths, PNG and SVG.

    Raises:
        SettingError: for options that are missing or not understood, and for runs that do not suffice for the plot.
        DataError: if a run or the comparison cannot be read.
        CheckpointError: if the run whose vectors are drawn is broken.
        StorageError: if the pictures cannot be written.
    """
    given = read_options(arguments, "plot", _OPTIONS)
    if "kind" not in given:
        raise SettingError(f"plot needs --kind, one of {', '.join(_ALL_KINDS)}")
    _check_kind(given["kind"], _ALL_KINDS)
    others = _OF_RESULTS if given["kind"] == _REPRESENTATIONS else _OF_A_RUN
    for name in (name for name in others if name in given):
        raise SettingError(
            f"--kind={given['kind']} has no use for --{name}: representations alone have --run=saved/<run>"
        )
    if given["kind"] == _REPRESENTATIONS:
        return _draw_representations(given)
    if ("runs" in given) == ("comparison" in given):
        raise SettingError("plot needs either --runs=saved/<run>,saved/<run> or --comparison=comparison.json")
    results = read_runs(given["runs"]) if "runs" in given else from_comparison(read_comparison(given["comparison"]))
    metric = given.get("metric", "").lower() or None
    for name, figure in draw(results, given["kind"], metric, given.get("setting")).items():
        title = f"{name.replace('_', ' ')}: {metric_name(results.metric(metric))} on {', '.join(results.datasets)}"
        for path in save(figure, Path(given.get("out", "plots")), name, title):
            print(path)
    return 0


def _draw_representations(given: dict[str, str]) -> int:
    from recbole_llm.plots.representations import representations  # it loads models, which others need not

    if "run" not in given:
        raise SettingError("--kind=representations needs the folder of a finished run: --run=saved/<run>")
    layer = given.get("layer")
    if layer is not None and not layer.isdecimal():
        raise SettingError(f"layer={layer} must be a whole number from 1")
    figure, distances = representations(
        given["run"], None if layer is None else int(layer), data_path=given.get("data_path")
    )
    folder = Path(given.get("out", "plots"))
    title = f"densities of the coordinates of id model, language model and adapter on {distances['dataset']}"
    for path in save(figure, folder, _REPRESENTATIONS, title):
        print(path)
    write_json(folder / f"{_REPRESENTATIONS}.json", distances)
    print(folder / f"{_REPRESENTATIONS}.json")
    return 0
