"""Tables for people."""

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
    return f"\n{' · '.join(what)}\n\n{table}\n\n{_candidates(result)}{facts}"


def _candidates(result: dict[str, Any]) -> str:
    if "candidates" not in result:
        return ""
    size, seeds, ratio = (result["candidates"][key] for key in ("size", "seeds", "hit@1"))
    return f"hit@1 among {size} candidates: {ratio['mean']:.4f} +- {ratio['std']:.4f} over {seeds} draws\n\n"


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
