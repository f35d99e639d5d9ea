"""Tables for people."""

from typing import Any

from tabulate import tabulate

from recbole_llm.runs.result import RunResult
from recbole_llm.utils.plain_text import one_line


def result_table(result: RunResult | dict[str, Any]) -> str:
    """Return a short table of one run: the metrics of the best epoch, then time, memory and size.

    Args:
        result: of the run, or the fields of its `result.json`, as `recbole_llm.run` returns them.
    """
    result = result if isinstance(result, RunResult) else RunResult.from_dict(result, "this")
    test, valid = result.test or {}, result.valid or {}
    rows = [[one_line(name), valid.get(name), value] for name, value in test.items()]
    table = tabulate(rows, headers=["metric", "valid", "test"], floatfmt=".4f", missingval="-")
    title = [part for part in (result.model, result.dataset, result.backbone, result.tuning) if part]
    seconds, parameters = result.seconds, result.parameters
    facts = (
        f"epochs {result.epochs} (best {_or_dash(result.best_epoch)}), "
        f"prepare {seconds['prepare']:.0f} s, fit {seconds['fit']:.0f} s, evaluate {seconds['evaluate']:.0f} s, "
        f"{_peak_memory(result)}"
        f"trained {parameters['trained']:,} and frozen {parameters['frozen']:,} parameters, on {result.device}"
    )
    return f"\n{one_line(' · '.join(title))}\n\n{table}\n\n{_candidates(result.candidates)}{one_line(facts)}"


def _peak_memory(result: RunResult) -> str:
    if result.peak_memory_bytes is None:
        return ""
    return f"peak memory {result.peak_memory_bytes / 2**30:.2f} GiB, "


def _candidates(candidates: dict[str, Any] | None) -> str:
    if candidates is None:
        return ""
    size, seeds, ratio = (candidates[key] for key in ("size", "seeds", "hit@1"))
    valid = candidates.get("valid_ratio")  # from version 0.3 on
    answered = "" if valid is None else f", valid ratio {valid['mean']:.4f} +- {valid['std']:.4f}"
    return f"hit@1 among {size} candidates: {ratio['mean']:.4f} +- {ratio['std']:.4f}{answered} over {seeds} draws\n\n"


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
