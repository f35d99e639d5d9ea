"""What a comparison says of users, as rows of a table: its tests over users, and its groups of users.

    recbole-llm compare --runs=... --ours=... --baselines=... --out=comparison
    python experiments/comparison_rows.py --comparison=comparison/comparison.json [--metric=ndcg@10] [--out=FILE.json]

Both need the ranks of all users, which may not be kept of some data (MovieLens): these rows may. Prints a JSON line

* for each model of `--ours` beside each of `--baselines`: the difference of their means over users, its 95% interval,
  and the p-values of the paired t-test and of Wilcoxon's, corrected by Holm;
* for each group of targets and each model: the metric's mean and its 95% interval.
"""

import argparse
from typing import Any

from probing import Lines, call

from recbole_llm.comparison.file import read_comparison
from recbole_llm.errors import SettingError


def rows_of(comparison: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """Return the rows of one metric, such as "ndcg@10", of what `comparison.json` holds.

    Raises:
        SettingError: if the comparison does not have the metric, two sides, or tests over users.
    """
    if metric not in comparison["metrics"]:
        raise SettingError(f"the comparison has no metric {metric!r}, but {', '.join(comparison['metrics'])}")
    ours, baselines = comparison.get("ours"), comparison.get("baselines")
    if not ours or not baselines:
        raise SettingError("the comparison does not say who is compared with whom: make it with --ours and --baselines")
    tests = [test for test in comparison["significance"] if test["metric"] == metric]
    if not tests:
        raise SettingError(f"the comparison has no tests of {metric}: its runs need ranks, and --significance=True")
    between = [
        {"dataset": test["dataset"], "model": test["label"]}
        | {name: test[name] for name in ("against", "metric", "difference", "low", "high")}
        | {"p_t": test["p_t_holm"], "p_wilcoxon": test["p_wilcoxon_holm"], "users": test["users"]}
        for test in tests
        if test["label"] in ours and test["against"] in baselines
    ]
    groups = [
        {"dataset": group["dataset"], "model": group["label"], "metric": metric}
        | {name: group[name] for name in ("by", "group", "targets")}
        | group["metrics"][metric]
        for group in comparison["groups"]
        if metric in group["metrics"]
    ]
    return between + groups


def main() -> None:
    """Print the lines, and write them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--comparison", required=True, metavar="FILE")
    arguments.add_argument("--metric", default="ndcg@10")
    arguments.add_argument("--out", help="a JSON file that gets the list of all lines")
    given = arguments.parse_args()
    lines = Lines("comparison_rows")
    for row in rows_of(read_comparison(given.comparison), given.metric):
        lines.add(**row)
    lines.write(given.out)


if __name__ == "__main__":
    call(main)
