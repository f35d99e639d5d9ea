"""The HTTP interface: the answers of `Recommender`, with titles; bad input in one sentence; health and counts."""

import json

import pandas as pd
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from small_data import HISTORIES, TITLES, build_parts, small_settings, write_dataset

from recbole_llm.errors import DataError
from recbole_llm.inference.recommender import Recommender
from recbole_llm.quick_start.run import load, run
from recbole_llm.serving.app import BODY_BYTES, Batching, make_app
from recbole_llm.serving.service import Limits, Question, Service


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("serve"))
    settings = small_settings(root, backbone=str(tiny["opt"]), tuning="ilp", epochs=1, alignment=False)
    return load(run(settings=settings)["path"])


@pytest.fixture(scope="module")
def client(parts):
    with client_of(parts) as client:
        yield client


def client_of(parts, *, window_ms=0.0, **options):
    service = Service(parts, Limits(k=6, history=20), **options)
    return TestClient(make_app(service, Batching(window_ms=window_ms)), raise_server_exceptions=False)


def expected(found, titles=TITLES):
    pairs = zip(found.items, found.scores, strict=True)
    return [
        {"item": item, **({"title": titles[item]} if titles else {}), "score": pytest.approx(score, abs=1e-5)}
        for item, score in pairs
    ]


def error_of(client, status, body=None, **given):
    answer = client.post("/recommend", json=body, **given) if body is not None else client.post("/recommend", **given)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert "\n" not in told["error"] and "Traceback" not in answer.text
    return told


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("exclude_seen", [None, True, False])
def test_a_history(parts, client, k, exclude_seen):
    for history in (["a", "b", "c"], ["h"], list("abcdefg")):
        body = {"history": history, "k": k, "exclude_seen": exclude_seen}
        answer = client.post("/recommend", json=body)
        assert answer.status_code == 200
        assert answer.json() == {"items": expected(parts.recommend(history, k, exclude_seen))}


@pytest.mark.parametrize("exclude_seen", [None, True, False])
def test_a_user(parts, client, exclude_seen):
    for user in ("u1", "u7"):
        answer = client.post("/recommend", json={"user": user, "k": 4, "exclude_seen": exclude_seen})
        assert answer.json() == {"items": expected(parts.recommend_to(user, 4, exclude_seen))}


def test_a_history_of_a_user_and_the_usual_k(parts, client):
    answer = client.post("/recommend", json={"history": ["a"], "user": "u1", "k": 5})
    assert answer.json() == {"items": expected(parts.recommend(["a"], 5))}
    assert "k=10 is more than the 8 items of small" in error_of(client, 422, {"history": ["a"]})["error"]


def test_the_server_may_leave_out_what_was_seen(parts):
    with client_of(parts, exclude_seen=True) as client:
        history = list("abcdef")
        found = client.post("/recommend", json={"history": history, "k": 6}).json()["items"]
        assert {item["item"] for item in found} == set("gh")
        every = client.post("/recommend", json={"history": history, "k": 6, "exclude_seen": False}).json()["items"]
        assert len(every) == 6


def test_a_model_that_knows_users_by_id(workdir):
    write_dataset(workdir, {user: items for user, items in HISTORIES.items() if user != "u4"}, titles=None)
    bpr = build_parts(workdir, model="BPR")
    with client_of(bpr) as client:
        answer = client.post("/recommend", json={"user": "u1", "k": 2})
        assert answer.json() == {"items": expected(bpr.recommend_to("u1", 2), titles=None)}
        told = error_of(client, 422, {"history": ["a"], "k": 2})
        assert told["error"].startswith("BPR knows users by id and reads no history")


def test_new_items_are_ranked(small, tiny):
    new = pd.DataFrame({"title": ["Xylophone"]}, index=["x"])
    # Twice, from the same seed: a model is changed by its new items.
    served, other = (build_parts(small, model="UniSRec", backbone=str(tiny["bert"]), epochs=0) for _ in range(2))
    found = Recommender(other.model, other.train._dataset, new_items=new).recommend(["a"], len(TITLES) + 1)
    with TestClient(make_app(Service(served, Limits(), new_items=new), Batching(0.0))) as client:
        assert client.get("/health").json()["items"] == len(TITLES) + 1
        answer = client.post("/recommend", json={"history": ["a"], "k": len(TITLES) + 1})
    assert answer.json() == {"items": expected(found, {**TITLES, "x": "Xylophone"})}
    assert "Xylophone" in answer.text


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_unknown_items_are_named(client):
    told = error_of(client, 422, {"history": ["a", "zz", "b", "[PAD]", "zz"], "k": 2})
    assert told == {"error": "there is no item 'zz', '[PAD]' in small", "unknown_items": ["zz", "[PAD]"]}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "a request needs a history or a user: there is nobody to recommend to"),
        ({"history": [], "k": 2}, "a history is empty: there is nothing to recommend from"),
        ({"user": "nobody", "k": 2}, "there is no user 'nobody' in small"),
        ({"user": "[PAD]", "k": 2}, "there is no user '[PAD]' in small"),
        ({"history": ["a"], "user": "nobody", "k": 2}, "there is no user 'nobody' in small"),
        ({"history": ["a"], "k": 0}, "k=0 must be a whole number from 1"),
        ({"history": ["a"], "k": 7}, "k=7 is more than 6, the most that this server answers"),
        ({"history": ["a"], "k": True}, "'k' of the body is wrong: input should be a valid integer"),
        ({"history": ["a"], "k": "3"}, "'k' of the body is wrong: input should be a valid integer"),
        ({"history": "abc"}, "'history' of the body is wrong: input should be a valid list"),
        ({"history": ["a", 3]}, "'history.1' of the body is wrong: input should be a valid string"),
        ({"history": ["a"] * 21, "k": 2}, "the history has 21 items, more than the 20 that this server reads: send the "
         "most recent"),
        ({"histories": ["a"]}, "the body has 'histories', which is not understood: it may have history, user, k, "
         "exclude_seen"),
        ([1], "the body must be a JSON object with history, user, k, exclude_seen, sent with Content-Type: "
         "application/json"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(client, body, sentence):
    if body == {}:
        body = {"k": 2}
    assert error_of(client, 422, body)["error"] == sentence


def test_other_bodies_are_refused(client):
    assert error_of(client, 400, content=b"{", headers={"Content-Type": "application/json"})["error"].startswith(
        "the body is not JSON: "
    )
    error_of(client, 422, content=b"")
    error_of(client, 422, content=b'{"history": ["a"]}', headers={"Content-Type": "text/plain"})
    error_of(client, 400, content=b'{"history": ["\xff"]}', headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(client, chunked):
    body = json.dumps({"history": ["a" * 900] * (BODY_BYTES // 900)}).encode()
    content = iter([body[:1000], body[1000:]]) if chunked else body
    told = error_of(client, 413, content=content, headers={"Content-Type": "application/json"})
    assert told["error"] == f"the body has more than {BODY_BYTES} bytes: send a shorter history"
    assert client.post("/recommend", json={"history": ["a"], "k": 1}).status_code == 200


def test_there_is_nothing_else(client):
    for answer in (client.get("/"), client.get("/recommend"), client.get("/docs")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"] == "there are POST /recommend, GET /health and GET /metrics, and nothing else"


def test_one_bad_question_spoils_no_other(parts):
    service = Service(parts, Limits())
    alone, unknown = Question(("a",), None, 3), Question(("zz",), None, 3)
    asked = [alone, unknown, Question(None, "u1", 2), Question(("b", "c"), None, 1)]
    first, bad, user, last = service.answer(asked)
    assert isinstance(bad, DataError)
    assert first.items == parts.recommend(["a"], 3).items
    assert user.items == parts.recommend_to("u1", 2).items
    assert last.items == parts.recommend(["b", "c"], 1).items


def test_a_defect_is_told_and_ends_nothing(parts, monkeypatch):
    with client_of(parts) as client:
        with monkeypatch.context() as patch:
            patch.setattr(parts.model, "row_states", lambda rows: 1 / 0)
            told = error_of(client, 500, {"history": ["a"], "k": 1})
        assert told["error"] == "the server failed on this request, and its log says why"
        assert client.post("/recommend", json={"history": ["a"], "k": 1}).status_code == 200


# -- health and metrics ------------------------------------------------------------------------------------------------


def samples(client):
    text = client.get("/metrics").text
    return {
        (sample.name, sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_health(client):
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "model": "ST2SI", "dataset": "small", "items": len(TITLES)}


def test_health_after_the_end(parts):
    client = client_of(parts)  # not entered: nothing answers
    answer = client.get("/health")
    assert answer.status_code == 503 and answer.json()["status"].startswith("no request is answered any more")


def test_metrics_count_what_was_asked(parts):
    with client_of(parts) as client:
        for user in list(HISTORIES)[:3]:
            assert client.post("/recommend", json={"user": user, "k": 2}).status_code == 200
        error_of(client, 422, {"user": "nobody", "k": 2})
        error_of(client, 413, content=b" " * (BODY_BYTES + 1))
        found = samples(client)
    assert found["recbole_llm_requests_total", "200"] == 3
    assert found["recbole_llm_requests_total", "422"] == found["recbole_llm_requests_total", "413"] == 1
    assert found["recbole_llm_request_seconds_count", None] == 5
    assert found["recbole_llm_batch_size_sum", None] == found["recbole_llm_batch_size_count", None] == 3
    assert found["recbole_llm_batch_seconds_count", None] == 3
    assert found["recbole_llm_waiting", None] == 0
