"""The verb ``plot``: pictures of finished runs, of a comparison, or of the vectors of one run."""

from pathlib import Path
from typing import Any

from recbole_llm.cli.arguments import Given, Parser
from recbole_llm.cli.show import show
from recbole_llm.errors import SettingError, nearest
from recbole_llm.plots.kinds import KINDS, REPRESENTATIONS

_OF_RESULTS = ("runs", "comparison", "setting", "metric")
_OF_A_RUN = ("run", "layer", "data_path")
_ALL_KINDS = (*KINDS, REPRESENTATIONS)


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "plot",
        "Draw finished runs, a comparison, or the vectors of one run. Prints the paths of the pictures, PNG and SVG.",
        "--kind=KIND --runs=saved/<run>,... | --comparison=FILE [--metric=ndcg@10]\n"
        "       recbole-llm plot --kind=representations --run=saved/<run> [--layer=INT]",
    )
    group = found.add_argument_group("what to draw")
    group.add_argument("--kind", metavar="KIND", help=", ".join(_ALL_KINDS))
    group.add_argument("--out", metavar="FOLDER", type=Path, help="where the pictures are written (default: plots)")
    group = found.add_argument_group("all kinds but representations")
    group.add_argument("--runs", metavar="PATTERNS", help="folders of finished runs, separated by commas")
    group.add_argument("--comparison", metavar="FILE", help="the comparison.json of recbole-llm compare")
    group.add_argument("--metric", metavar="NAME", help="what is drawn (default: ndcg@10; bars: all of a comparison's)")
    group.add_argument("--setting", metavar="NAME", help="the numeric setting that sensitivity draws against")
    group = found.add_argument_group("representations")
    group.add_argument("--run", metavar="FOLDER", help="a finished run of IDLEAdapter")
    group.add_argument("--layer", metavar="INT", help="the layer of the language model, from 1 (default: the last)")
    group.add_argument("--data_path", metavar="FOLDER", help="where its dataset is (default: as in the run)")
    return found


def main(given: Given) -> int:
    """Write the pictures of one kind and print their paths, PNG and SVG.

    Raises:
        SettingError: for options that are missing or not understood, and for runs that do not suffice for the plot.
        DataError: if a run or the comparison cannot be read.
        CheckpointError: if the run whose vectors are drawn is broken.
        StorageError: if the pictures cannot be written.
    """
    options = given.options
    kind = _kind(options)
    others = _OF_RESULTS if kind == REPRESENTATIONS else _OF_A_RUN
    for name in (name for name in others if name in options):
        raise SettingError(f"--kind={kind} has no use for --{name}: representations alone have --run=saved/<run>")
    folder = options.get("out", Path("plots"))
    if kind == REPRESENTATIONS:
        return _draw_representations(options, folder)
    if ("runs" in options) == ("comparison" in options):
        raise SettingError("plot needs either --runs=saved/<run>,saved/<run> or --comparison=comparison.json")
    return _draw_results(options, kind, folder)


def _kind(options: dict[str, Any]) -> str:
    if "kind" not in options:
        raise SettingError(f"plot needs --kind, one of {', '.join(_ALL_KINDS)}")
    kind = str(options["kind"])
    if kind not in _ALL_KINDS:
        raise SettingError(f"there is no plot '{kind}'{nearest(kind, _ALL_KINDS)} Plots are {', '.join(_ALL_KINDS)}")
    return kind


def _draw_results(options: dict[str, Any], kind: str, folder: Path) -> int:
    from recbole_llm.comparison.file import read_comparison, showing
    from recbole_llm.plots.draw import draw
    from recbole_llm.plots.records import from_comparison, read_runs
    from recbole_llm.plots.scaling import scaling_points
    from recbole_llm.plots.style import metric_name, save
    from recbole_llm.utils.files import write_json

    metric = options.get("metric", "").lower() or None
    if "runs" in options:
        results = read_runs(options["runs"])
        pictures = draw(results, kind, metric, options.get("setting"))
    else:
        comparison = read_comparison(options["comparison"])
        with showing(options["comparison"]):
            results = from_comparison(comparison)
            pictures = draw(results, kind, metric, options.get("setting"))
    for name, figure in pictures.items():
        title = f"{name.replace('_', ' ')}: {metric_name(results.metric(metric))} on {', '.join(results.datasets)}"
        for path in save(figure, folder, name, title):
            show(path)
    if kind == "scaling":
        write_json(folder / f"{kind}.json", scaling_points(results, results.metric(metric)))
        show(folder / f"{kind}.json")
    return 0


def _draw_representations(options: dict[str, Any], folder: Path) -> int:
    if "run" not in options:
        raise SettingError("--kind=representations needs the folder of a finished run: --run=saved/<run>")
    layer = options.get("layer")
    if layer is not None and not layer.isdecimal():
        raise SettingError(f"layer={layer} must be a whole number from 1")
    from recbole_llm.plots.representations import representations
    from recbole_llm.plots.style import save
    from recbole_llm.utils.files import write_json

    figure, distances = representations(
        options["run"], None if layer is None else int(layer), data_path=options.get("data_path")
    )
    title = f"densities of the coordinates of ID model, language model and adapter on {distances['dataset']}"
    for path in save(figure, folder, REPRESENTATIONS, title):
        show(path)
    write_json(folder / f"{REPRESENTATIONS}.json", distances)
    show(folder / f"{REPRESENTATIONS}.json")
    return 0
