"""Tables for people."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate


def result_table(result: dict[str, Any]) -> str:
    """Return a short table of what `result.json` holds: the metrics of the best epoch, then time, memory and size."""
    names = list(result["test"] or {})
    valid = result["valid"] or {}
    rows = [[name, valid.get(name), result["test"][name]] for name in names]
    table = tabulate(rows, headers=["metric", "valid", "test"], floatfmt=".4f", missingval="-")
    what = [result["model"], result["dataset"], *(str(result[key]) for key in ("backbone", "tuning") if result[key])]
    seconds, parameters = result["seconds"], result["parameters"]
    facts = (
        f"epochs {result['epochs']} (best {_or_dash(result['best_epoch'])}), "
        f"prepare {seconds['prepare']:.0f} s, fit {seconds['fit']:.0f} s, evaluate {seconds['evaluate']:.0f} s, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB, "
        f"trained {parameters['trained']:,} and frozen {parameters['frozen']:,} parameters, on {result['device']}"
    )
    return f"\n{' · '.join(what)}\n\n{table}\n\n{facts}"


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


def runs_table(results: Sequence[dict[str, Any]], metrics: Sequence[str] = ("ndcg@10", "recall@10", "mrr")) -> str:
    """Return a Markdown table of finished runs, one row each: test metrics of the epoch that was best on validation.

    Args:
        results: what `result.json` files hold, in the order of the rows.
        metrics: names as in the files.
    """
    rows = [
        [
            _run_name(result),
            *(f"{result['test'][metric]:.4f}" for metric in metrics),
            result["epochs"],
            f"{sum(result['seconds'].values()):.0f} s",
            result["device"],
        ]
        for result in results
    ]
    headers = ["model", *metrics, "epochs", "time", "on"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _run_name(result: dict[str, Any]) -> str:
    if not result["backbone"]:
        return str(result["model"])
    window = result["settings"]["MAX_ITEM_LIST_LENGTH"]
    return f"{result['model']}, {result['tuning']} tuning, {result['backbone']}, {window} items"
