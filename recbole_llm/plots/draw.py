"""Pictures of finished runs or of a comparison, by their kind."""

from collections.abc import Callable

from matplotlib.figure import Figure

from recbole_llm.errors import SettingError, nearest
from recbole_llm.plots.backbones import backbones
from recbole_llm.plots.bars import bars
from recbole_llm.plots.curves import curves
from recbole_llm.plots.groups import groups
from recbole_llm.plots.kinds import KINDS
from recbole_llm.plots.pretraining import pretraining
from recbole_llm.plots.records import Results
from recbole_llm.plots.scaling import scaling
from recbole_llm.plots.sensitivity import sensitivity
from recbole_llm.plots.trade_off import trade_off

_ONE_METRIC: dict[str, Callable[[Results, str], Figure]] = {
    "curves": curves,
    "groups": groups,
    "backbones": backbones,
    "scaling": scaling,
    "trade_off": trade_off,
}


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
    if kind not in KINDS:
        raise SettingError(f"there is no plot '{kind}'{nearest(kind, KINDS)} Plots are {', '.join(KINDS)}")
    if (kind == "sensitivity") != (setting is not None):
        what = "needs the setting to draw against" if setting is None else f"has no use for setting={setting}"
        raise SettingError(f"--kind={kind} {what}; --kind=sensitivity --setting=num_virtual_tokens goes together")
    if not results.records:
        raise SettingError("no run of the comparison is finished: there is nothing to draw")
    chosen = results.metric(metric)
    if kind == "bars" and metric is None and not results.metrics:
        raise SettingError("the comparison shows no metric of a ranking: name one to draw, such as --metric=ndcg@10")
    if kind == "bars":
        return {kind: bars(results, [chosen] if metric is not None else results.metrics)}
    if kind == "pretraining":
        return {f"{kind}-{name}": figure for name, figure in pretraining(results, chosen).items()}
    if setting is not None:
        return {f"{kind}-{setting}": sensitivity(results, setting, chosen)}
    return {kind: _ONE_METRIC[kind](results, chosen)}
