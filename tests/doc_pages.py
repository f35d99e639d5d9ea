"""The commands and the code in README.md and docs/, and a small world in which they run."""

import functools
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import recbole
import yaml
from small_data import of_model, write_dataset

from recbole_llm.quick_start.run import fit, run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
STARTS = (
    *("recbole-llm", "python ", "make", "pytest", "mkdocs", "pre-commit", "torchrun"),
    *(f".venv/bin/{name}" for name in ("recbole-llm", "python", "pytest", "mkdocs", "pre-commit")),
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: the name of its file.
        language: of a fence, empty for none; ``python`` also for an indented block that begins with an import.
        text: without fence and indentation.
    """

    page: str
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    """Return the fenced and the indented blocks of a page, in order."""
    found: list[Block] = []
    language: str | None = None
    lines: list[str] = []
    indented: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        fence = line.startswith("```")
        if language is None and not fence and (line.startswith("    ") or (indented and not line.strip())):
            indented.append(line[4:])
            continue
        if indented:
            text = "\n".join(indented).rstrip()
            found.append(Block(path.name, "python" if text.startswith(("from ", "import ")) else "", text))
            indented = []
        if fence and language is None:
            language, lines = line.strip("`").strip(), []
        elif fence:
            found.append(Block(path.name, str(language), "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    if indented:
        found.append(Block(path.name, "", "\n".join(indented).rstrip()))
    return found


def commands(path: Path) -> list[str]:
    """Return the commands of a page without comments, those over several lines as one; and those in its sentences."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(code.split()) for code in re.findall(r"`(recbole-llm [^`]*--[^`]*)`", text)]
    for block in blocks(path):
        if block.language in ("", "bash", "sh", "shell", "console"):
            for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
                command = re.sub(r"\s+#(\s.*)?$", "", line.strip())
                if command.startswith(STARTS):
                    found.append(" ".join(shlex.split(command, posix=False)))
    return found


# -- where they run ----------------------------------------------------------------------------------------------------

# Settings of all runs: seconds instead of hours.
SMALL: dict[str, Any] = {
    **{"epochs": 1, "hidden_size": 8, "inner_size": 8, "embedding_size": 8, "n_heads": 1, "n_layers": 1},
    **{"num_layers": 1, "MAX_ITEM_LIST_LENGTH": 8, "max_sequence_tokens": 100},
    **{"train_batch_size": 64, "pretrain_epochs": 1, "use_gpu": False, "precision": "fp32"},
    **{"show_progress": False, "state": "ERROR"},
}
SHORT_PROMPTS = {"max_attribute_tokens": 8, "max_prompt_tokens": 120}


class World:
    """A working folder with small datasets under the names that the pages use, tiny models, and runs when asked for.

    Args:
        root: the folder.
        tiny: folders of tiny language models.
    """

    def __init__(self, root: Path, tiny: dict[str, Path]) -> None:
        self.root = root
        self.tiny = tiny
        folders = ("properties", "dataset_configs", "results", "benchmarks", "experiments", "docs", "tests")
        for name in (*folders, "Makefile"):
            (root / name).symlink_to(ROOT / name)
        (root / "models").mkdir()
        (root / "models" / "my-llama").symlink_to(tiny["llama"])
        (root / "histories.txt").write_text("242,302\n302\n")
        text = next(b.text for b in blocks(ROOT / "docs" / "compare_and_tune.md") if b.language == "yaml")
        settings = yaml.safe_load(self.named(text))
        (root / "models.yaml").write_text(yaml.safe_dump(settings))
        cut_ml_100k(root / "dataset" / "ml-100k")
        for name in ("Scientific", "Arts", "Games", "Food", "Cell", "ml-1m"):
            items = {f"{name}{n}": f"{name} thing number {n}" for n in range(14)}
            histories = {f"u{n}": [f"{name}{(n + step * step) % 14}" for step in range(5)] for n in range(14)}
            write_dataset(root / "dataset", histories, items, name=name)

    def named(self, text: str) -> str:
        """Return `text` with a tiny model, and runs, in the place of what it names."""
        text = text.replace("smollm2-135m", str(self.tiny["llama"]))
        for mark, found in (
            ("--resume=saved/<run>", lambda: f"--resume={self.unfinished()}"),
            (
                "representations --run=saved/<run>",
                lambda: f"representations --run={self.finished('IDLEAdapter', 'Games')}",
            ),
            ("saved/<run>", lambda: self.finished("SASRec", "ml-100k")),
            ("saved/<the first run>", lambda: self.finished("ST2SI", "ml-100k")),
            ("saved/<a run on Games>", lambda: self.finished("ST2SI", "Games")),
            ("saved/<a run on Arts>", lambda: self.finished("ST2SI", "Arts")),
            ("saved/pretrain-Food-<hash>/backbone-epoch-10", lambda: str(self.tiny["llama"])),
            ("comparisons/<name>/comparison.json", self.comparison),
            ("saved/*-Scientific-*", self.two_of_scientific),
        ):
            if mark in text:
                text = text.replace(mark, found())
        return text

    def settings(self, model: str, dataset: str) -> dict[str, Any]:
        """Return the settings of a small run."""
        own: dict[str, dict[str, Any]] = {
            "ST2SI": {"backbone": str(self.tiny["llama"]), "tuning": "ilp"},
            "IDLEAdapter": {"backbone": str(self.tiny["bert"]), "id_model_settings": {"epochs": 1}, **SHORT_PROMPTS},
        }
        return {**of_model(model, SMALL), "model": model, "dataset": dataset, **own.get(model, {})}

    @functools.cache  # noqa: B019 (a world lives as long as the tests of one file)
    def finished(self, model: str, dataset: str) -> str:
        """Return the folder of a finished run."""
        return str(Path(run(settings=self.settings(model, dataset))["path"]).parent)

    def unfinished(self) -> str:
        """Return the folder of a run that is trained, but not evaluated."""
        from recbole_llm.config.config import Config

        folder = Path(tempfile.mkdtemp(prefix="unfinished-", dir="."))
        fit(Config(config_dict=self.settings("GRU4Rec", "ml-100k")), folder)
        return str(folder)

    @functools.cache  # noqa: B019
    def comparison(self) -> str:
        """Return the file of a comparison of two finished runs."""
        from recbole_llm.comparison.compare import Options, compare

        runs = [self.finished(model, "ml-100k") for model in ("SASRec", "ST2SI")]
        return str(Path(compare(Options(runs=runs, out="comparisons/two"))["path"]))

    @functools.cache  # noqa: B019
    def two_of_scientific(self) -> str:
        """Return the pattern of two finished runs."""
        for model in ("SASRec", "GRU4Rec"):
            run(settings={**self.settings(model, "Scientific"), "checkpoint_dir": "two"})
        return "two/*-Scientific-*"


def cut_ml_100k(folder: Path, users: int = 40, each: int = 12) -> None:
    """Write some lines of the first users of the ml-100k that comes with RecBole, and all its items."""
    folder.mkdir(parents=True)
    inter = pd.read_csv(ML_100K / "ml-100k.inter", sep="\t", dtype=str)
    first = inter["user_id:token"].drop_duplicates().head(users)
    inter = inter[inter["user_id:token"].isin(first)]
    asked_for = inter["item_id:token"].isin(["242", "302"])  # the pages recommend after these
    inter = pd.concat([inter[asked_for], inter[~asked_for]]).groupby("user_id:token").head(each)
    inter.to_csv(folder / "ml-100k.inter", sep="\t", index=False)
    for kind in ("item", "user"):
        (folder / f"ml-100k.{kind}").write_bytes((ML_100K / f"ml-100k.{kind}").read_bytes())


def with_options(arguments: list[str], options: dict[str, Any]) -> list[str]:
    """Return `arguments` with `options` in the place of those of the same name, or behind."""
    kept = [argument for argument in arguments if argument.removeprefix("--").partition("=")[0] not in options]
    return kept + [f"--{name}={value}" for name, value in options.items()]
