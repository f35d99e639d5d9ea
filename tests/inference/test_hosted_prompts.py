"""Hosted models: prompts to a file, a loopback server that misbehaves, and answers that become a run."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_data import write_dataset
from test_end_to_end import cut_of_ml_100k
from testing.model_tests import HISTORIES, TITLES

from recbole_llm.cli.main import main
from recbole_llm.comparison.compare import compare_models
from recbole_llm.errors import DataError, EndpointError, SettingError
from recbole_llm.inference.hosted.ask import Endpoint, ask
from recbole_llm.inference.hosted.import_answers import import_answers

SETTINGS = ["--candidates=4", "--candidate_seeds=3", "--use_gpu=false", "--state=ERROR"]
LISTS = len(HISTORIES) * 3
PLACE = {"data_path": "."}


@pytest.fixture
def exported(workdir, monkeypatch):
    """A working folder with a dataset and its prompts; no proxy stands between."""
    monkeypatch.setenv("NO_PROXY", "*")
    write_dataset(workdir, HISTORIES, TITLES, columns=("title", "class"))
    command = ["prompts", "export", "--dataset=small", f"--data_path={workdir}", "--out=prompts.jsonl", *SETTINGS]
    assert main(command) == 0
    return Path("prompts.jsonl")


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def right_answers(prompts, target_of):
    """Answer every prompt with its target's title; lists are in the order of RecBole's test rows."""
    return [
        {"row": line["row"], "draw": line["draw"], "answer": TITLES[target_of(line)][0]} for line in lines_of(prompts)
    ]


def target(line):
    """The target is the last item of a history that is not shown; all candidates but it are outside of the history."""
    by_text = {", ".join(TITLES[item][0] for item in items[:-1]): items[-1] for items in HISTORIES.values()}
    for history, item in by_text.items():
        if f"chose {history}. Which" in line["prompt"]:
            return item
    raise AssertionError(line["prompt"])


def write_lines(path, lines):
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Path(path)


def test_prompts_show_titles_in_the_order_of_the_candidates(exported):
    lines = lines_of(exported)
    assert [(line["row"], line["draw"]) for line in lines] == [(row, draw) for row in range(12) for draw in range(3)]
    for line in lines:
        assert line.keys() == {"row", "draw", "prompt", "candidates"}
        shown = ", ".join(TITLES[item][0] for item in line["candidates"])
        assert line["prompt"].endswith(f"Which of these 4 products is next: {shown}? Answer by its title:")
        assert target(line) in line["candidates"]
    places = {line["candidates"].index(target(line)) for line in lines}
    assert len(places) == 4
    assert main(["prompts", "export", "--dataset=small", "--out=prompts.jsonl", *SETTINGS]) == 2  # it is there already


def test_a_row_of_a_table_is_exported(workdir, capsys):
    """GPT-4's row of Table 9, on a cut of ml-100k that has the dataset's name; no other row is one of prompts."""
    cut_of_ml_100k(workdir, 12)
    command = [
        "prompts",
        "export",
        "--paper=st2si/table9/ml-100k-llara/gpt-4",
        "--dataset=ml-100k",
        "--candidate_seeds=1",
    ]
    place = [f"--data_path={workdir}", "--use_gpu=false", "--state=ERROR", "--max_sequence_tokens=512"]
    assert main([*command, *place, "--out=asked.jsonl"]) == 0
    line = lines_of("asked.jsonl")[0]
    assert len(line["candidates"]) == 20
    assert line["prompt"].startswith("This user has watched ")
    assert "Choose the answer from the following 20 movie titles: " in line["prompt"]
    assert main(["prompts", "export", "--paper=st2si/table9/ml-100k-llara/sasrec", *place]) == 2
    assert "its model SASRec is no prompted one: recbole-llm run --paper=" in capsys.readouterr().err


def test_right_titles_give_1_and_a_run_that_compares(exported, capsys):
    write_lines("right.jsonl", reversed(right_answers(exported, target)))
    assert main(["prompts", "import", "--answers=right.jsonl", "--name=GPT-4", "--data_path=."]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    result = json.loads(path.read_text())
    assert result["model"] == "GPT-4" and result["test"] is None
    assert result["candidates"]["hit@1"] == result["candidates"]["valid_ratio"] == {"mean": 1.0, "std": 0.0}
    wrong = [{**line, "answer": "none of them"} for line in right_answers(exported, target)]
    wrong[0]["answer"] = right_answers(exported, target)[0]["answer"]
    other = import_answers(exported, write_lines("wrong.jsonl", wrong), "mute-1.0", settings=PLACE)
    expected = round(1 / LISTS, 4)
    assert other["candidates"]["hit@1"]["mean"] == other["candidates"]["valid_ratio"]["mean"] == expected
    table = compare_models(runs=[str(path.parent), str(Path(other["path"]).parent)], out="together")
    assert table["columns"] == ["candidates.hit@1", "candidates.valid_ratio"]
    text = Path("together/comparison.md").read_text()
    assert "| Model | HitRatio@1 | ValidRatio |" in text
    assert "| GPT-4 | 1.0000 ± 0.0000 | 1.0000 ± 0.0000 |" in text
    assert "among 4 candidates drawn 3 times" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "lacks 1 of 36 answers, row 0, draw 0 the first"),
        (lambda lines: [*lines, lines[4]], "line 37 of .* answers row 1, draw 1 again"),
        (lambda lines: [*lines, {**lines[0], "row": 12}], "is of row 12, draw 0, but the prompts have rows 0 to 11"),
        (lambda lines: [*lines, {**lines[0], "draw": True}], "is of row 0, draw True, but the prompts"),
        (lambda lines: [{**lines[0], "answer": None}, *lines[1:]], "line 1 of .* has no text under 'answer'"),
        (lambda lines: [["a"], *lines], "is no JSON object"),
    ],
)
def test_answers_that_are_refused(exported, change, message):
    path = write_lines("answers.jsonl", change(right_answers(exported, target)))
    with pytest.raises(DataError, match=message) as error:
        import_answers(exported, path, "GPT-4", settings=PLACE)
    assert "\n" not in str(error.value)
    assert not list(Path().glob("saved/*"))


def test_candidates_without_the_target_are_refused(exported):
    answers = right_answers(exported, target)
    shown = lines_of(exported)[5]["candidates"]
    answers[5]["candidates"] = [item for item in shown if item != target(lines_of(exported)[5])]
    with pytest.raises(DataError, match=r"line 6 of .* do not hold the target of row 1, draw 2"):
        import_answers(exported, write_lines("a.jsonl", answers), "GPT-4", settings=PLACE)
    answers[5]["candidates"] = shown[::-1]
    with pytest.raises(DataError, match=r"line 6 of .* are not those of the prompt"):
        import_answers(exported, write_lines("a.jsonl", answers), "GPT-4", settings=PLACE)


def test_changed_data_is_noticed(exported):
    later = {user: [*items[:-1], items[0]] for user, items in HISTORIES.items()}
    write_dataset(Path(), later, TITLES, columns=("title", "class"))
    path = write_lines("answers.jsonl", right_answers(exported, target))
    with pytest.raises(DataError, match="the data have changed"):
        import_answers(exported, path, "GPT-4", settings=PLACE)
    with pytest.raises(SettingError, match=r"name=\.\./x must name the model"):
        import_answers(exported, path, "../x", settings=PLACE)


# -- a server of this test ---------------------------------------------------------------------------------------------


class Server:
    """Answers each request by what `behave` says: a status and a body, or None for no reply at all."""

    def __init__(self, behave):
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                reply = behave(len(outer.requests), body)
                if reply is None:
                    self.connection.close()
                    return
                status, content = reply
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def well(text):
    usage = {"prompt_tokens": 100, "completion_tokens": 5}
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


def right(_, body):
    """The right title, from the prompt alone."""
    return well(TITLES[target({"prompt": body["messages"][0]["content"]})][0])


def endpoint_of(server, **changes):
    waits = []
    return Endpoint(server.url, "m", **{"key": "sk-secret", "retries": 2, "sleep": waits.append, **changes}), waits


@pytest.mark.parametrize("parallel", [1, 3])
def test_every_prompt_is_asked_once_and_cached(exported, monkeypatch, capsys, parallel):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Server(right) as server:
        command = ["prompts", "ask", f"--endpoint={server.url}", "--model=gpt", f"--parallel={parallel}"]
        command += ["--price_in=2.5", "--price_out=10"]
        assert main([*command, "--answers=a.jsonl"]) == 0
        out = capsys.readouterr().out
        assert "36 answers asked, 0 from the cache, 0 already there; 3,600 tokens of prompts and 180 of answers" in out
        assert f"cost {(3600 * 2.5 + 180 * 10) / 1e6:.4f}" in out
        assert len(server.requests) == LISTS
        path, key, body = server.requests[0]
        assert (path, key) == ("/v1/chat/completions", "Bearer sk-secret")
        assert body["model"] == "gpt" and body["temperature"] == 0
        assert main([*command, "--answers=a.jsonl"]) == main([*command, "--answers=b.jsonl"]) == 0
        out = capsys.readouterr().out
        assert "0 from the cache, 36 already there" in out and "0 answers asked, 36 from the cache" in out
        assert len(server.requests) == LISTS
    assert import_answers(exported, Path("a.jsonl"), "GPT-4", settings=PLACE)["hosted"] == {
        "answers": LISTS, "prompt_tokens": 3600, "completion_tokens": 180,
    }  # fmt: skip
    assert import_answers(exported, Path("b.jsonl"), "GPT-4", settings=PLACE)["candidates"]["hit@1"]["mean"] == 1.0
    assert b"sk-secret" not in b"".join(file.read_bytes() for file in Path().rglob("*.json*") if file.is_file())


def test_429_and_500_and_garbage_pass(exported):
    def shaky(number, body):
        return {1: (429, ""), 2: (500, "oops"), 4: (200, "<html>"), 5: (200, '{"choices": []}')}.get(
            number, right(number, body)
        )

    with Server(shaky) as server:
        endpoint, waits = endpoint_of(server)
        used = ask(exported, Path("a.jsonl"), endpoint)
    assert used.asked == LISTS and waits == [1.0, 2.0, 1.0, 2.0]
    assert import_answers(exported, Path("a.jsonl"), "GPT-4", settings=PLACE)["candidates"]["hit@1"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("broken", "message", "tries"),
    [
        ((401, "no"), r"refuses the key \(HTTP 401\): set the environment variable", 1),
        ((429, "slow"), "gave no answer in 3 attempts: HTTP 429", 3),
        ((200, "garbage"), "gave no answer in 3 attempts: its answer is not that of the chat interface", 3),
        ((200, '{"choices": [{"message": {"content": 5}}]}'), "its answer has no text", 3),
        ((404, "no such model sk-secret\nhere"), r"refuses the prompt \(HTTP 404\): no such model \*\*\* here", 1),
        ((302, ""), r"refuses the prompt \(HTTP 302\)", 1),
        (None, "gave no answer in 3 attempts: the connection failed", 3),
    ],
)
def test_a_server_that_fails_loses_no_answer(exported, broken, message, tries):
    with Server(lambda number, body: right(number, body) if number <= 5 else broken) as server:
        endpoint, _ = endpoint_of(server)
        with pytest.raises(EndpointError, match=message) as error:
            ask(exported, Path("a.jsonl"), endpoint)
        assert len(server.requests) == 5 + tries
    assert "5 of 36 answers are in a.jsonl, and the same command goes on from there" in str(error.value)
    assert "\n" not in str(error.value) and "sk-secret" not in str(error.value)
    assert len(lines_of("a.jsonl")) == 5
    with Path("a.jsonl").open("a") as file:  # and an interruption has cut a line
        file.write('{"row": 1, "dr')
    with Server(right) as server:
        used = ask(exported, Path("a.jsonl"), endpoint_of(server)[0])
        assert (used.kept, used.asked, len(server.requests)) == (5, LISTS - 5, LISTS - 5)
    assert import_answers(exported, Path("a.jsonl"), "GPT-4", settings=PLACE)["candidates"]["hit@1"]["mean"] == 1.0


def test_nobody_is_there(exported):
    with Server(right) as server:
        endpoint, waits = endpoint_of(server)
    with pytest.raises(EndpointError, match=r"the connection failed \(ConnectionError\); 0 of 36 answers"):
        ask(exported, Path("a.jsonl"), endpoint)
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prompts", "prompts=None is not one of export, ask, import"),
        ("prompts exports", "did you mean 'export'"),
        ("prompts ask --endpoint=http://x", "prompts ask needs --model"),
        ("prompts ask --endpoint=ftp://x --model=m", "endpoint=ftp://x must be an address such as"),
        ("prompts ask --endpoint=http://x --model=m --retries=-1", "retries=-1 must be a number from 0"),
        ("prompts ask --endpoint=http://x --model=m --epochs=3", "prompts ask takes no settings of a run"),
        ("prompts import --name=x", "needs --answers=FILE"),
        ("prompts export --dataset=small --name=x", "prompts export has no use for --name"),
    ],
)
def test_commands_that_are_refused(exported, capsys, command, message):
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err
