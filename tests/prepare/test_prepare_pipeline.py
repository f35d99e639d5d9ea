"""The same bytes everywhere, the work once, and nothing half-written whatever happens."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import CONTEXT
from raw_files import INTER, ITEM, SETTINGS, pack

from recbole_llm.errors import DataError, SettingError
from recbole_llm.prepare import ensure, pipeline, prepare
from recbole_llm.prepare import write as write_module

NAMES = ["manifest.json", "toy.inter", "toy.item"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def larger(folder: Path, reviews: int = 4000) -> Path:
    """A pair with many ties and repeats, so that any order that is left to chance shows."""
    draw = random.Random(3)
    users, items = [f"u{draw.randrange(10**9)}" for _ in range(300)], [f"i{n}" for n in range(150)]
    lines = [
        json.dumps({"reviewerID": draw.choice(users), "asin": draw.choice(items), "unixReviewTime": draw.randrange(5)})
        for _ in range(reviews)
    ]
    pack(folder / "reviews_5.json.gz", lines)
    texts = [{"asin": draw.choice(items), "title": draw.choice(["", f"title {n}"]), "category": []} for n in range(400)]
    pack(folder / "meta.json.gz", [json.dumps(text) for text in texts])
    return folder


ALL_FILTERS = [
    {"titles": {"empty": "drop", "max_characters": 200}},
    {"repeats": {"keep": "last"}},
    {"k_core": {"user": 3, "item": 3, "until": "stable"}},
    {"sample_users": {"count": 100}},
]


def test_twice_gives_the_same_bytes(settings_file, amazon, tmp_path):
    first = prepare(settings_file(), raw=amazon, out=tmp_path / "one")
    second = prepare(settings_file(), raw=amazon, out=tmp_path / "two")
    assert first.made and second.made
    assert content(first.folder) == content(second.folder)
    assert list(content(first.folder)) == NAMES


def test_no_thread_count_hash_seed_or_locale_changes_a_byte(settings_file, tmp_path):
    raw = larger(tmp_path / "raw")
    settings = settings_file(filters=ALL_FILTERS)
    results = []
    for number, threads in enumerate(("1", "2", "7")):
        out = tmp_path / f"out{number}"
        paths = f"raw=Path({str(raw)!r}), out=Path({str(out)!r})"
        script = f"from pathlib import Path; from recbole_llm.prepare import prepare; prepare({settings!r}, {paths})"
        machine = {"POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": str(number), "LC_ALL": "C", "TZ": f"UTC-{number}"}
        subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | machine)
        results.append(content(out / "toy"))
    assert results[0] == results[1] == results[2]


def test_the_manifest_names_no_folder_and_no_date(settings_file, amazon, tmp_path):
    done = prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    text = (done.folder / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert done.manifest["outputs"]["toy.inter"]["sha256"]
    assert done.manifest["settings"]["seed"] == 1
    assert done.manifest["version"]["recbole_llm"]


def test_what_is_there_is_taken(settings_file, amazon, tmp_path):
    prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    for raw in amazon.iterdir():
        raw.unlink()
    assert not prepare(settings_file(), raw=amazon, out=tmp_path / "out").made


def test_other_settings_or_changed_files_are_not_overwritten(settings_file, amazon, tmp_path):
    done = prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    before = content(done.folder)
    with pytest.raises(DataError, match="holds other files than these settings make"):
        prepare(settings_file(filters=[]), raw=amazon, out=tmp_path / "out")
    assert content(done.folder) == before
    (done.folder / "toy.item").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        prepare(settings_file(), raw=amazon, out=tmp_path / "out")


@pytest.mark.parametrize("outputs", [[1], "abc", None, {"toy.inter": "abc"}, {"toy.inter": {}}])
def test_a_manifest_changed_by_hand_is_not_that_of_these_settings(settings_file, amazon, tmp_path, outputs):
    done = prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    (done.folder / "manifest.json").write_text(json.dumps({**done.manifest, "outputs": outputs}))
    with pytest.raises(DataError, match="holds other files than these settings make"):
        prepare(settings_file(), raw=amazon, out=tmp_path / "out")


def test_order_of_filters_counts(settings_file, amazon, tmp_path):
    """Before items without title go, u2 has six interactions; after, four."""
    swapped = [{"minimum_length": {"interactions": 5}}, {"titles": {"empty": "drop"}}]
    kept = prepare(settings_file(filters=swapped), raw=amazon, out=tmp_path / "a").counts
    assert (kept.users, kept.interactions) == (1, 4)
    with pytest.raises(DataError, match=r"no interaction of toy is left after the filter \{'minimum_length'"):
        prepare(settings_file(filters=swapped[::-1]), raw=amazon, out=tmp_path / "b")


def _prepare(settings: str, raw: Path, out: Path, queue=None) -> None:
    done = prepare(settings, raw, out)
    if queue is not None:
        queue.put(done.made)


def test_two_processes_do_the_work_once(settings_file, tmp_path):
    raw = larger(tmp_path / "raw")
    queue = CONTEXT.Queue()
    arguments = (settings_file(), raw, tmp_path / "out", queue)
    processes = [CONTEXT.Process(target=_prepare, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(queue.get(timeout=5) for _ in processes) == [False, True]


STEPS = [
    ("reading", "recbole_llm.prepare.read.interactions"),
    ("items", "recbole_llm.prepare.read.items"),
    ("ordering", "recbole_llm.prepare.pipeline._ordered"),
    ("inter", "recbole_llm.prepare.write.inter_file"),
    ("item", "recbole_llm.prepare.write.item_file"),
    ("manifest", "recbole_llm.prepare.pipeline.write_json"),
    ("rename", "os.rename"),
]


def _die_at(place: str, after: bool, settings: str, raw: Path, out: Path) -> None:
    module, _, name = place.rpartition(".")
    owner = sys.modules[module]
    real = getattr(owner, name)

    def dying(*arguments, **named):
        if after:
            real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)
    prepare(settings, raw, out)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("step", "place"), STEPS)
def test_killed_at_any_step_it_leaves_nothing_or_the_whole(settings_file, amazon, tmp_path, step, place, after):
    out, settings = tmp_path / "out", settings_file()
    process = CONTEXT.Process(target=_die_at, args=(place, after, settings, amazon, out))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    whole = step == "rename" and after
    assert (out / "toy").exists() == whole
    done = prepare(settings, raw=amazon, out=out)
    assert done.made != whole
    assert (done.folder / "toy.inter").read_text() == INTER
    assert (done.folder / "toy.item").read_text() == ITEM
    # What the killed process left beside is gone.
    assert {path.name for path in out.iterdir()} == {"toy", ".toy.lock"}


@pytest.mark.slow
def test_killed_at_random_times_it_leaves_nothing_or_the_whole(settings_file, tmp_path):
    raw, out, settings = larger(tmp_path / "raw", 200_000), tmp_path / "out", settings_file()
    draw = random.Random(0)
    outcomes = []
    for _ in range(40):
        process = CONTEXT.Process(target=_prepare, args=(settings, raw, out))
        process.start()
        time.sleep(draw.uniform(0.2, 3.0))
        process.kill()
        process.join()
        outcomes.append((out / "toy").exists())
        if outcomes[-1]:
            assert list(content(out / "toy")) == NAMES
            assert not prepare(settings, raw, out).made
            for path in (out / "toy").iterdir():
                path.unlink()
            (out / "toy").rmdir()
    assert any(outcomes) and not all(outcomes)


def test_ensure(settings_file, amazon, tmp_path, monkeypatch):
    configs = Path(settings_file()).parent
    for module in ("recbole_llm.prepare.spec",):
        monkeypatch.setattr(sys.modules[module], "shipped", lambda folder: configs)
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError) as error:
        ensure("toy", tmp_path / "data")
    place = tmp_path / "cache" / "raw" / "toy"
    assert f"put reviews_5.json.gz and meta.json.gz into {place}" in str(error.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    amazon.rename(place)
    folder = ensure("toy", tmp_path / "data")
    assert folder == tmp_path / "data" / "toy"
    assert (folder / "toy.inter").read_text() == INTER
    # Files of somebody else's making are left as they are.
    (tmp_path / "theirs" / "other").mkdir(parents=True)
    (tmp_path / "theirs" / "other" / "other.inter").write_text("anything")
    assert ensure("other", tmp_path / "theirs") == tmp_path / "theirs" / "other"
    with pytest.raises(SettingError, match=r"no dataset 'tou' is known; did you mean 'toy'\?"):
        ensure("tou", tmp_path / "data")


def test_rows_are_written_in_pieces(settings_file, amazon, tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "_ROWS", 3)
    done = prepare(settings_file(), raw=amazon, out=tmp_path / "out")
    assert (done.folder / "toy.inter").read_text() == INTER


def test_the_settings_of_the_tests_are_recformers():
    """So that what is shown here holds for the shipped datasets."""
    from recbole_llm.prepare.spec import load_spec

    shipped = load_spec("Scientific")
    assert [step.name for step in shipped.filters] == [next(iter(step)) for step in SETTINGS["filters"]]
    assert pipeline.read.title_field(shipped) == "title"
