"""A comparison as Markdown, LaTeX (booktabs) and CSV, made from what `comparison.json` holds alone."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from recbole_llm.comparison.columns import (
    OF_CANDIDATES,
    are_numbers,
    column_name,
    column_text,
    column_values,
    is_column,
    mean_and_deviation,
)
from recbole_llm.utils.plain_text import csv_cell, one_line

ROWS = ("models", "metrics")
_ABSENT = "–"  # noqa: RUF001
_LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{_ABSENT: "--", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''"},
}


@dataclass(frozen=True)
class Value:
    """One field of a table.

    Attributes:
        text: the number, with its deviation over seeds, or a dash.
        style: best, second or empty.
        mark: of significance.
        note: number of the footnote, 0 without.
    """

    text: str = _ABSENT
    style: str = ""
    mark: str = ""
    note: int = 0


@dataclass(frozen=True)
class Grid:
    """A table before it is written: models by datasets and metrics."""

    models: list[str]
    columns: list[tuple[str, str]]
    values: dict[tuple[str, str, str], Value]
    notes: list[str]


def columns_of(comparison: dict[str, Any]) -> list[str]:
    """Return the columns of one dataset: metrics, and what else `show` named, in its order."""
    return list(comparison.get("columns") or comparison["metrics"])


def make_grid(comparison: dict[str, Any]) -> Grid:
    """Return models, improvements and the papers' rows as one grid, with footnotes for what is missing."""
    columns = [(dataset, column) for dataset in comparison["datasets"] for column in columns_of(comparison)]
    pairs = [(dataset, label) for dataset in comparison["datasets"] for label in comparison["models"]]
    why = {pair: text for pair in pairs if (text := _why(comparison, *pair))}
    notes = {pair: number for number, pair in enumerate(why, 1)}
    values = {
        (label, dataset, metric): Value(note=notes.get((dataset, label), 0))
        for label in comparison["models"]
        for dataset, metric in columns
    }
    for (label, dataset, column), value in values.items():
        if is_column(column) and (text := column_text(comparison, dataset, label, column)):
            values[label, dataset, column] = Value(text, note=value.note)
    models = list(comparison["models"])
    for entry in comparison["summary"]:
        where = (entry["label"], entry["dataset"], entry["metric"])
        spread = "" if entry["deviation"] is None else f" ± {entry['deviation']:.4f}"
        style = "best" if entry["best"] else "second" if entry["second"] else ""
        values[where] = Value(f"{entry['mean']:.4f}{spread}", style, entry["mark"], values[where].note)
        if entry["improvement"] is not None:
            row = f"Improvement of {entry['label']}"
            models += [] if row in models else [row]
            values[row, entry["dataset"], entry["metric"]] = Value(f"{entry['improvement']:+.2f}%")
    for dataset, methods in (comparison["papers"] or {}).items():
        for method, printed in methods.items():
            row = f"{method}, as printed"
            models += [] if row in models else [row]
            for metric in printed.keys() & {*comparison["metrics"], *columns_of(comparison)}:
                values[row, dataset, metric] = Value(f"{printed[metric]:.4f}")
    return Grid(models, columns, values, list(why.values()))


def _why(comparison: dict[str, Any], dataset: str, label: str) -> str:
    """Return the footnote on runs of one field that gave nothing, or an empty string."""
    cells = [cell for cell in comparison["cells"] if (cell["dataset"], cell["label"]) == (dataset, label)]
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell["status"] != "done":
            reasons.setdefault(f"{cell['status']}: {cell['reason']}", []).append(str(cell["seed"]))
    states = "; ".join(f"seed {', '.join(seeds)} {reason}" for reason, seeds in reasons.items())
    return f"{label} on {dataset}, {states}" if states else ""


def caption(comparison: dict[str, Any]) -> list[str]:
    """Return the sentences that say how to read the table."""
    seeds = sorted({entry["seeds"] for entry in comparison["summary"]})
    number = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}" if seeds else ""
    spread = f"; mean and standard deviation over {number} seeds" if seeds and seeds[-1] > 1 else ""
    sentences = [
        f"Test metrics of the epoch that was best on validation{spread}. Best in bold, second-best underlined."
    ]
    sentences += protocol_sentences(comparison) + validation_sentences(comparison) + candidate_sentences(comparison)
    if any(entry["improvement"] is not None for entry in comparison["summary"]):
        measured = {entry["label"] for entry in comparison["summary"]}
        baselines = ", ".join(label for label in comparison["baselines"] if label in measured)
        tests = (
            " ** and *: better than it with p < 0.01 and p < 0.05 in both the paired t-test and Wilcoxon's signed-rank "
            "test over users, corrected after Holm for all pairs of models."
        )
        tested = comparison["significance"] or any(entry["mark"] for entry in comparison["summary"])
        sentences.append(f"Improvements are over the best of {baselines}.{tests if tested else ''}")
    if comparison["papers"]:
        sentences.append(
            "Rows 'as printed' are the papers' own numbers. They come from other preparations of the data, and "
            "cannot be compared directly with the others."
        )
    elif comparison["papers"] is not None:
        sentences.append("The papers print no numbers for these datasets.")
    return sentences


def protocol_sentences(comparison: dict[str, Any]) -> list[str]:
    """Return one sentence for each answer to `repeatable` in the table; none for a comparison of version 0.2."""
    by_dataset: dict[str, bool | None] = comparison.get("repeatable") or {}
    found = []
    for repeatable in (False, True):
        datasets = [dataset for dataset, of_dataset in by_dataset.items() if of_dataset is repeatable]
        if datasets:
            where = f" of {', '.join(datasets)}" if len(datasets) < len(by_dataset) else ""
            way = "are ranked with all others" if repeatable else "are left out of the rankings"
            found.append(f"Items that a user met before {way}{where} (repeatable: {repeatable}).")
    return found


def validation_sentences(comparison: dict[str, Any]) -> list[str]:
    """Return one sentence for each number of users that were drawn for validation (`valid_users`)."""
    drawn: dict[int, dict[str, None]] = {}
    for cell in comparison["cells"]:
        users = (cell.get("settings") or {}).get("valid_users")
        if cell["status"] == "done" and users is not None:
            drawn.setdefault(users, {})[cell["label"]] = None
    return [f"Validation of {', '.join(labels)}: {users} users, drawn." for users, labels in drawn.items()]


def candidate_sentences(comparison: dict[str, Any]) -> list[str]:
    """Return what must be said of columns that are measured among few candidates; nothing without such a column."""
    if not any(column in OF_CANDIDATES for column in columns_of(comparison)):
        return []
    found = [cell["extras"].get("candidates") for cell in comparison["cells"] if cell["status"] == "done"]
    entries = [entry for entry in found if entry]
    sizes = sorted({f"{entry['size']}" for entry in entries})
    draws = sorted({f"{entry['seeds']}" for entry in entries})
    rules = sorted({entry["rule"] for entry in entries if "strict_rule" in entry})
    read = f" Answers are read by the rule {' or '.join(rules)}; one that is not valid is a miss." if rules else ""
    return [
        f"HitRatio@1 and ValidRatio: among {' or '.join(sizes)} candidates drawn {' or '.join(draws)} times, mean and "
        f"standard deviation over the draws (over seeds, if there are several).{read}"
    ]


def with_other(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the comparison, and the same under the other answer to `repeatable` where it has that."""
    other = comparison.get("other")
    return [comparison] if other is None else [comparison, {**comparison, **other, "other": None}]


def _layout(
    comparison: dict[str, Any], rows: str, show: Callable[[Value], str], name: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table with one line of header."""
    grid = make_grid(comparison)
    several = len(comparison["datasets"]) > 1

    def text(model: str, column: tuple[str, str]) -> str:
        return show(grid.values.get((model, *column), Value()))

    if rows == "models":
        header = [name(f"{d} {column_name(m)}" if several else column_name(m)) for d, m in grid.columns]
        return ["Model", *header], [[name(model), *(text(model, c) for c in grid.columns)] for model in grid.models]
    body = [[name(c[0]), name(column_name(c[1])), *(text(model, c) for model in grid.models)] for c in grid.columns]
    return ["Dataset", "Metric", *map(name, grid.models)], body


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown_table(comparison: dict[str, Any], rows: str = "models") -> str:
    """Return the table in Markdown; best ``**bold**``, second-best ``<u>underlined</u>``.

    Args:
        comparison: what `comparison.json` holds.
        rows: models or metrics.
    """
    if comparison.get("other"):
        return "\n\n".join(markdown_table(one, rows) for one in map(_alone, with_other(comparison)))
    table, *notes = markdown_parts(comparison, rows)
    title = f"{one_line(', '.join(comparison['datasets']))}\n\n" if len(comparison["datasets"]) == 1 else ""
    # stars of a mark must not become bold text
    said = [one_line(sentence).replace("*", "\\*") for sentence in caption(comparison)]
    return title + "\n\n".join([table, " ".join(said), *notes])


def _alone(comparison: dict[str, Any]) -> dict[str, Any]:
    return {**comparison, "other": None}


def markdown_parts(comparison: dict[str, Any], rows: str = "models") -> list[str]:
    """Return the table alone, and each footnote; see `markdown_table`."""
    header, body = _layout(comparison, rows, _markdown_value, markdown)
    left = 1 if rows == "models" else 2
    lines = [header, [":--"] * left + ["--:"] * (len(header) - left), *body]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return [table, *(f"[{number}] {one_line(text)}" for number, text in enumerate(make_grid(comparison).notes, 1))]


def markdown(text: str) -> str:
    """Return `text` for one cell of a table."""
    return one_line(text).replace("|", "\\|")


def _markdown_value(value: Value) -> str:
    shown = markdown(value.text)
    text = {"best": f"**{shown}**", "second": f"<u>{shown}</u>"}.get(value.style, shown)
    return text + value.mark.replace("*", "\\*") + (f" [{value.note}]" if value.note else "")


# -- LaTeX -------------------------------------------------------------------------------------------------------------


def latex_table(comparison: dict[str, Any], rows: str = "models") -> str:
    r"""Return the table in LaTeX, for a document with ``\usepackage{booktabs}``; see `markdown_table`."""
    if comparison.get("other"):
        return "\n\n".join(latex_table(one, rows) for one in map(_alone, with_other(comparison)))
    header, body = _layout(comparison, rows, _latex_value, latex)
    left = 1 if rows == "models" else 2
    count, datasets = len(columns_of(comparison)), comparison["datasets"]
    head = []
    if rows == "models" and len(datasets) > 1:
        spans = " & ".join(f"\\multicolumn{{{count}}}{{c}}{{{latex(dataset)}}}" for dataset in datasets)
        rules = "".join(f"\\cmidrule(lr){{{2 + n * count}-{1 + (n + 1) * count}}}" for n in range(len(datasets)))
        head = [f" & {spans} \\\\", rules]
        header = ["Model", *[latex(column_name(column)) for column in columns_of(comparison)] * len(datasets)]
    lines = [" & ".join(line) + r" \\" for line in body]
    if rows == "metrics":
        for n in range(count, len(lines), count + 1):
            lines.insert(n, r"\midrule")
    elif len(body) > len(comparison["models"]):
        lines.insert(len(comparison["models"]), r"\midrule")
    notes = [f"$^{{{number}}}$ {latex(text)}" for number, text in enumerate(make_grid(comparison).notes, 1)]
    title = f"{', '.join(datasets)}. " if len(datasets) == 1 and rows == "models" else ""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(title + ' '.join(caption(comparison)))}}}",
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}",
            r"\toprule",
            *head,
            " & ".join(header) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {note}" for note in notes),
            r"\end{table}",
        ]
    )


def latex(text: str) -> str:
    """Return `text` with all that LaTeX reads as a command made harmless."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def _latex_value(value: Value) -> str:
    text = latex(value.text)
    text = {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}.get(value.style, text)
    above = value.mark + (f"[{value.note}]" if value.note and value.mark else str(value.note or ""))
    return text + (f"$^{{{above}}}$" if above else "")


# -- CSV ---------------------------------------------------------------------------------------------------------------

_FIELDS = (
    *("source", "dataset", "model", "metric", "mean", "deviation", "seeds", "low", "high"),
    *("best", "second", "improvement", "mark", "missing"),
)


def csv_table(comparison: dict[str, Any]) -> str:
    """Return one line per dataset, model and metric, or other column of numbers.

    ``low`` and ``high`` are the interval over users. The papers' numbers have the source ``paper``. A comparison of
    both answers to `repeatable` has a column for it.
    """
    out = io.StringIO()
    both = comparison.get("other") is not None
    fields = (*_FIELDS, "repeatable") if both else _FIELDS
    writer = csv.DictWriter(out, fields, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in with_other(comparison):
        for line in _csv_lines(one):
            line |= {"repeatable": one["repeatable"][line["dataset"]]} if both else {}
            writer.writerow({name: csv_cell(value) for name, value in line.items()})
    return out.getvalue()


def _csv_lines(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    known = {(e["dataset"], e["label"], e["metric"]): e for e in comparison["summary"]}
    bounds = {(e["dataset"], e["label"], e["metric"]): e for e in comparison["intervals"]}
    for dataset in comparison["datasets"]:
        for label in comparison["models"]:
            for metric in comparison["metrics"]:
                where = (dataset, label, metric)
                line = {"source": "run", "dataset": dataset, "model": label, "metric": metric}
                line |= {"missing": _why(comparison, dataset, label), **known.get(where, {})}
                line |= {name: bounds[where][name] for name in ("low", "high") if where in bounds}
                yield {name: "" if value is None else value for name, value in line.items()}
            for column in filter(is_column, columns_of(comparison)):
                values = column_values(comparison, dataset, label, column)
                if are_numbers(values):
                    line = {"source": "run", "dataset": dataset, "model": label, "metric": column}
                    yield line | dict(zip(("mean", "deviation"), mean_and_deviation(values), strict=True))
        for method, printed in (comparison["papers"] or {}).get(dataset, {}).items():
            for metric, value in printed.items():
                yield {"source": "paper", "dataset": dataset, "model": method, "metric": metric, "mean": value}
