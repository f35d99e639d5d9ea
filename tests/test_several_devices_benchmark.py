"""benchmarks/several_devices.py: its cases, small, in one process and in two; nothing is timed here."""

import contextlib
import importlib
import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from several_processes import together

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def lines_of(cache, *arguments):
    """Run the benchmark on the CPU in this process, perhaps one of several, and return its lines."""
    os.environ["RECBOLE_LLM_CACHE"] = cache
    sys.path.insert(0, str(FOLDER))
    before, out = sys.argv, io.StringIO()
    try:
        benchmark = importlib.import_module("several_devices")
        benchmark.GPU, benchmark.PRECISION, benchmark.WARM_UP = False, torch.float32, 1
        sys.argv = ["several_devices.py", "--shape=tiny", "--steps=3", *arguments]
        with contextlib.redirect_stdout(out):
            benchmark.main()
    finally:
        sys.argv = before
        sys.path.remove(str(FOLDER))
        logging.disable(logging.NOTSET)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def work(line):
    (rate,) = (name for name in line if name.endswith("_per_second"))
    return line[rate.replace("second", "step")], line[rate]


@pytest.mark.parametrize(
    "cases", ["full,full-1m,sasrec,projection", pytest.param("lora,lora-1m,7b,adapter", marks=pytest.mark.slow)]
)
def test_two_processes_do_the_work_of_one_and_twice_as_much(workdir, cases):
    """A step of the same samples has the same tokens; twice as many samples, of other data, about twice as many."""
    cache, folder = str(workdir / "cache"), f"--folder={workdir / 'kept'}"
    ones = lines_of(cache, f"--cases={cases}", folder)
    base = workdir / "one.jsonl"
    base.write_text("noise\n" + "".join(json.dumps(line) + "\n" for line in ones))
    arguments = (f"--cases={cases}", folder, f"--base={base}", "--scaling=strong,weak")
    first, second = together(lines_of, 2, cache, *arguments)
    assert second == []
    assert [line["case"] for line in ones] == cases.split(",")
    assert [(line["case"], line["scaling"]) for line in first] == [
        (case, scaling) for case in cases.split(",") for scaling in ("strong", "weak")
    ]
    known = {line["case"]: line for line in ones}
    for line in first:
        one = known[line["case"]]
        times = 2 if line["scaling"] == "weak" else 1
        assert (one["processes"], line["processes"]) == (1, 2)
        assert line["samples"] == times * one["samples"]
        (done, rate), (of_one, rate_of_one) = work(line), work(one)
        assert done == pytest.approx(times * of_one, rel=1e-9 if times == 1 else 0.4)
        assert line["efficiency"] == pytest.approx(rate / (2 * rate_of_one), abs=1e-4)
        assert "efficiency" not in one


def test_lines_of_other_sizes_give_no_efficiency(workdir):
    cache, base = str(workdir / "cache"), workdir / "one.jsonl"
    (line,) = lines_of(cache, "--cases=projection")
    for change in ({"samples": 1}, {"items": 1}, {"device": "another"}, {"processes": 2}):
        base.write_text(json.dumps({**line, **change}) + "\n")
        assert "efficiency" not in lines_of(cache, "--cases=projection", f"--base={base}")[0]
    base.write_text(json.dumps({**line, "queries_per_second": 1.0}) + "\n")
    (found,) = lines_of(cache, "--cases=projection", f"--base={base}")
    assert found["efficiency"] == pytest.approx(found["queries_per_second"], abs=1e-3)


def test_an_unknown_case_is_named(workdir):
    with pytest.raises(SystemExit, match="there is no case ful, but full, lora"):
        lines_of(str(workdir), "--cases=ful,lora")
