"""The verb ``serve`` in a process of its own: 64 clients, none of them lost; a signal ends it in order."""

import http.client
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import child_runs
import pytest
from small_data import TITLES, small_settings, write_dataset

from recbole_llm.cli import serve
from recbole_llm.cli.main import main
from recbole_llm.quick_start.run import recommender, run
from recbole_llm.utils import packages

CLIENTS, REQUESTS = 64, 5
ITEMS = list(TITLES)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a run of one epoch."""
    root = write_dataset(tmp_path_factory.mktemp("serve"))
    settings = small_settings(root, backbone=str(tiny["opt"]), tuning="ilp", epochs=1, alignment=False)
    return run(settings=settings)["path"].removesuffix("/result.json")


@contextmanager
def served(folder, *arguments):
    """The process of a server on a free port, and that port."""
    out = folder / "child.out"
    line = ["serve", "--port=0", *arguments]
    child = child_runs.process(folder, line)
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", out.read_text() if out.exists() else "")):
            assert child.is_alive() and time.monotonic() < end, (folder / "child.err").read_text()
            time.sleep(0.02)
        yield child, int(found[1])
    finally:
        if child.is_alive():
            child.kill()
        child.join()


def ask(connection, body):
    connection.request("POST", "/recommend", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def questions(client):
    """Those of one client: histories and `k` of its own, some of them bad."""
    found = []
    for turn in range(REQUESTS):
        first = (client + 3 * turn) % len(ITEMS)
        history = (ITEMS[first:] + ITEMS)[: 1 + (client + turn) % 5]
        found.append({"history": history, "k": 1 + (client + turn) % len(ITEMS), "exclude_seen": client % 3 == 0})
    if client % 8 == 0:
        found.insert(2, {"history": ["a", f"unknown-{client}"], "k": 2})
    return found


def test_64_clients_and_none_is_lost(finished, workdir):
    start = Barrier(CLIENTS)

    def client(number, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        start.wait(60)
        found = [ask(connection, body) for body in questions(number)]
        connection.close()
        return found

    with served(workdir, f"--run={finished}", "--window_ms=20") as (child, port):
        with ThreadPoolExecutor(CLIENTS) as threads:
            answers = list(threads.map(client, range(CLIENTS), [port] * CLIENTS))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/metrics")
        counts = connection.getresponse().read().decode()
        os.kill(child.pid, signal.SIGTERM)
        child.join(60)
    assert child.exitcode == 0
    assert (workdir / "child.out").read_text().splitlines()[-1] == "stopped"
    assert (workdir / "child.err").read_text() == ""

    by_itself = recommender(finished)  # one history after the other, in this process
    statuses = Counter()
    for number, found in enumerate(answers):
        for body, (status, answer) in zip(questions(number), found, strict=True):
            statuses[status] += 1
            if status == 422:
                assert answer["unknown_items"] == [f"unknown-{number}"]
                continue
            expected = by_itself.recommend(body["history"], body["k"], body["exclude_seen"])
            assert [item["item"] for item in answer["items"]] == expected.items
            assert [item["title"] for item in answer["items"]] == [TITLES[item] for item in expected.items]
            assert [item["score"] for item in answer["items"]] == pytest.approx(expected.scores, abs=1e-5)
    assert statuses == {200: CLIENTS * REQUESTS, 422: CLIENTS // 8}
    assert f'recbole_llm_requests_total{{status="200"}} {CLIENTS * REQUESTS}.0' in counts
    batches = float(re.search(r"^recbole_llm_batch_size_count (.+)$", counts, re.MULTILINE)[1])
    asked = float(re.search(r"^recbole_llm_batch_size_sum (.+)$", counts, re.MULTILINE)[1])
    assert asked == CLIENTS * REQUESTS and batches < asked / 2, "nothing was answered together"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_what_was_asked_before_a_signal_is_answered(finished, workdir, by):
    with served(workdir, f"--run={finished}", "--window_ms=1000") as (child, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"history": ["a", "b"], "k": 3})
        connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        counts = b""
        while b"\nrecbole_llm_waiting 1.0\n" not in counts and b"requests_total{" not in counts:
            other.request("GET", "/metrics")
            counts = other.getresponse().read()
        os.kill(child.pid, by)
        answer = connection.getresponse()
        assert answer.status == 200
        assert [item["item"] for item in json.loads(answer.read())["items"]] == (
            recommender(finished).recommend(["a", "b"], 3).items
        )
        child.join(60)
    assert child.exitcode == 0
    assert (workdir / "child.out").read_text().splitlines()[-1] == "stopped"


# -- mistakes ----------------------------------------------------------------------------------------------------------


def refused(capsys, code, *arguments):
    assert main(["serve", *arguments]) == code
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("error: ")
    return error.removeprefix("error: ").rstrip()


def test_a_missing_package_is_told(finished, capsys, monkeypatch, workdir):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "uvicorn" else object())
    told = refused(capsys, 2, f"--run={finished}")
    assert told == "serving needs the package 'uvicorn': pip install 'recbole-llm[serve]'"


def test_mistakes_are_one_sentence(finished, capsys, workdir):
    assert refused(capsys, 2) == "serve needs the folder of a finished run: --run=saved/<run>"
    assert "no-such" in refused(capsys, 1, "--run=no-such")
    for given, told in {
        "--port=x": "port=x must be a whole number from 0",
        "--port=65536": "port=65536 is more than 65535",
        "--max_batch=0": "max_batch=0 must be a whole number from 1",
        "--window_ms=-1": "window_ms=-1 must be a number from 0 to 1000",
        "--window_ms=.nan": "window_ms=.nan must be a number from 0 to 1000",
        "--host=nowhere.invalid": "the server cannot listen on --host=nowhere.invalid --port=8000 (",
        "--ports=1": "serve has no setting 'ports'; did you mean 'port'?",
    }.items():
        assert refused(capsys, 2, f"--run={finished}", given).startswith(told)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refused(capsys, 2, f"--run={finished}", f"--port={port}")
    assert told == f"port {port} of 127.0.0.1 is taken: give another --port"


def test_it_listens_on_this_machine_alone_unless_told(capsys):
    assert serve._is_loopback("127.0.0.1") and serve._is_loopback("::1")
    assert not serve._is_loopback("0.0.0.0") and not serve._is_loopback("192.168.1.2")
    assert serve._HOST == "127.0.0.1"
