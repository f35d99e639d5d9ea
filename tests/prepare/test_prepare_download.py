"""Downloads from a server on loopback that stands in for the publisher, well-behaved and not."""

import gzip
import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import CONTEXT
from raw_files import INTER, METADATA, REVIEWS

from recbole_llm.errors import DataError, StorageError
from recbole_llm.prepare import download as module
from recbole_llm.prepare import prepare
from recbole_llm.prepare.download import download

BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


class Publisher:
    """Answers each request with the next of its `manners`, and with the last one from then on."""

    def __init__(self) -> None:
        self.manners: list[Callable[[BaseHTTPRequestHandler, bytes], None]] = [well]
        self.files = {"/file": BODY}
        self.etag = '"one"'
        self.ranges: list[str | None] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.ranges.append(self.headers.get("Range"))
                manner = publisher.manners[0]
                if len(publisher.manners) > 1:
                    publisher.manners.pop(0)
                self.publisher = publisher
                manner(self, publisher.files.get(self.path, b""))

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def begin(handler, body: bytes, announced: int | None = None) -> bytes:
    """Send the head of an answer, minding Range and If-Range; return what is to be sent."""
    etag = handler.publisher.etag
    asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    start = 0
    if asked and condition == etag:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return b""
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{announced or len(body)}")
    else:
        handler.send_response(200)
    if etag:
        handler.send_header("ETag", etag)
    handler.send_header("Content-Length", str((announced or len(body)) - start))
    handler.end_headers()
    return body[start:]


def well(handler, body):
    handler.wfile.write(begin(handler, body))


def slow(handler, body):
    rest = begin(handler, body)
    for start in range(0, len(rest), 1 << 18):
        handler.wfile.write(rest[start : start + (1 << 18)])
        time.sleep(0.05)


def cut(handler, body):
    rest = begin(handler, body)
    handler.wfile.write(rest[: len(rest) // 2])


def wrong_length(handler, body):
    handler.wfile.write(begin(handler, body, announced=len(body) + 1000))


def hang(handler, body):
    begin(handler, body)
    time.sleep(1.5)


def no_ranges(handler, body):
    handler.headers.replace_header("Range", "") if "Range" in handler.headers else None
    handler.wfile.write(begin(handler, body))


def status(code: int, **headers: str) -> Callable:
    def answer(handler, body):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "TIMEOUT", (1.0, 1.0))
    server = Publisher()
    yield server
    server.close()


def nothing_left(target) -> bool:
    left = {path.name for path in target.parent.iterdir()} - {target.name, f".{target.name}.lock"}
    return not left


@pytest.mark.parametrize(
    "manners",
    [
        [well],
        [slow],
        [cut, well],
        [cut, cut, cut, cut, cut, cut, cut, well],  # more than the attempts, but each brings something
        [status(503), status(503), well],
        [status(503, Retry_After="0.05"), well],
        [status(429), cut, status(500), well],
        [hang, well],
        [cut, no_ranges],
    ],
    ids=lambda manners: "-".join(getattr(manner, "__name__", "?") for manner in manners),
)
def test_it_ends_well(publisher, tmp_path, manners):
    publisher.manners = list(manners)
    target = download(publisher.url(), tmp_path / "deep" / "file", DIGEST)
    assert target.read_bytes() == BODY
    assert nothing_left(target)


def test_an_interrupted_download_goes_on_where_it_ended(publisher, tmp_path):
    publisher.manners = [cut, well]
    download(publisher.url(), tmp_path / "file", DIGEST)
    assert publisher.ranges == [None, f"bytes={len(BODY) // 2}-"]


def test_progress_counts_what_was_there_before(publisher, tmp_path, monkeypatch):
    """tqdm shows the time left, as it knows the total and where it starts."""
    bars = []

    class Bar(module.tqdm):
        def __init__(self, *, initial, total, **named):
            super().__init__(initial=initial, total=total, **named)
            bars.append([initial, total, initial])

        def update(self, n=1):
            bars[-1][2] += n
            return super().update(n)

    monkeypatch.setattr(module, "tqdm", Bar)
    publisher.manners = [cut, well]
    download(publisher.url(), tmp_path / "file", DIGEST)
    half, whole = len(BODY) // 2, len(BODY)
    assert bars == [[0, whole, half], [half, whole, whole]]


def test_a_killed_download_goes_on_in_the_next_process(publisher, tmp_path):
    publisher.manners = [slow]
    publisher.files["/file"] = BODY * 8
    process = CONTEXT.Process(target=download, args=(publisher.url(), tmp_path / "file"))
    process.start()
    part = tmp_path / "file.part"
    deadline = time.time() + 10
    while time.time() < deadline and not (part.exists() and part.stat().st_size > len(BODY)):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "file").exists()
    have = part.stat().st_size
    assert have > len(BODY)
    publisher.manners = [well]
    download(publisher.url(), tmp_path / "file")
    assert publisher.ranges[-1] == f"bytes={have}-"
    assert (tmp_path / "file").read_bytes() == BODY * 8


def test_a_file_that_changed_meanwhile_is_fetched_anew(publisher, tmp_path):
    publisher.manners = [cut, status(404)]
    with pytest.raises(DataError):
        download(publisher.url(), tmp_path / "file")
    publisher.etag, publisher.files["/file"], publisher.manners = '"two"', BODY[::-1], [well]
    assert download(publisher.url(), tmp_path / "file").read_bytes() == BODY[::-1]


def test_without_a_validator_it_starts_again(publisher, tmp_path):
    publisher.etag, publisher.manners = "", [cut, well]
    assert download(publisher.url(), tmp_path / "file").read_bytes() == BODY
    assert publisher.ranges == [None, None]


def test_a_whole_part_is_only_renamed(publisher, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY)
    (tmp_path / "file.part.json").write_text(json.dumps({"url": publisher.url(), "validator": '"one"'}))
    assert download(publisher.url(), tmp_path / "file", DIGEST).read_bytes() == BODY


@pytest.mark.parametrize(
    ("manner", "digest", "message"),
    [
        (status(404), None, "answers 404 Not Found"),
        (status(503), None, "failed 6 times, at last with: answer 503 Service Unavailable"),
        (wrong_length, None, "failed 6 times, at last with: the part that is here does not fit"),
        (well, "0" * 64, f"gave a file whose sha256 is {DIGEST} where 000"),
    ],
    ids=["404", "503", "wrong length", "wrong checksum"],
)
def test_it_fails_with_one_sentence(publisher, tmp_path, manner, digest, message):
    publisher.manners = [manner]
    with pytest.raises(DataError, match=message) as error:
        download(publisher.url(), tmp_path / "file", digest)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "file").exists()


def test_nobody_there(tmp_path, publisher):
    url = publisher.url()
    publisher.close()
    with pytest.raises(DataError, match="failed 6 times, at last with: the connection failed or broke off"):
        download(url, tmp_path / "file")


def test_no_network_at_all_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(DataError, match=r"cannot be found by its name: is there a network\?"):
        download("http://publisher.invalid/file", tmp_path / "file")


def test_a_folder_that_may_not_be_written(publisher, tmp_path):
    (tmp_path / "plain").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="could not be written"):
        download(publisher.url(), tmp_path / "plain" / "file")


def _fetch(url, target, queue):
    download(url, target)
    queue.put(1)


def test_two_processes_fetch_once(publisher, tmp_path):
    publisher.manners = [slow]
    queue = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=_fetch, args=(publisher.url(), tmp_path / "file", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(publisher.ranges) == 1
    assert (tmp_path / "file").read_bytes() == BODY


def amazon_at(publisher, **digests: str | None) -> dict:
    reviews = "".join(json.dumps(review) + "\n" for review in REVIEWS).encode()
    publisher.files = {
        "/reviews_5.json.gz": gzip.compress(reviews, mtime=0),
        "/meta.json.gz": gzip.compress("\n".join(METADATA).encode(), mtime=0),
    }
    return {
        "interactions": {"url": publisher.url("/reviews_5.json.gz"), "sha256": digests.get("interactions")},
        "items": {"url": publisher.url("/meta.json.gz"), "sha256": digests.get("items")},
    }


def test_prepare_downloads_what_is_missing_and_records_hashes(publisher, settings_file, tmp_path):
    settings = settings_file(sources=amazon_at(publisher))
    done = prepare(settings, raw=tmp_path / "raw", out=tmp_path / "out")
    assert (done.folder / "toy.inter").read_text() == INTER
    for role, path in (("interactions", "/reviews_5.json.gz"), ("items", "/meta.json.gz")):
        source = done.manifest["sources"][role]
        assert source["sha256"] == hashlib.sha256(publisher.files[path]).hexdigest()
        assert source["url"] == publisher.url(path)


def test_prepare_uses_the_cache_where_no_folder_is_named(publisher, settings_file, tmp_path, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))
    prepare(settings_file(sources=amazon_at(publisher)), out=tmp_path / "out")
    assert (tmp_path / "cache" / "raw" / "toy" / "meta.json.gz").is_file()


def test_without_a_network_the_error_says_which_two_files_to_put_where(publisher, settings_file, tmp_path):
    sources = amazon_at(publisher)
    publisher.close()
    with pytest.raises(DataError) as error:
        prepare(settings_file(sources=sources), raw=tmp_path / "raw", out=tmp_path / "out")
    message = str(error.value)
    assert (
        f"put reviews_5.json.gz ({sources['interactions']['url']}) and meta.json.gz ({sources['items']['url']})"
        in message
    )
    assert f"into {tmp_path / 'raw'}" in message
    assert "\n" not in message
    assert not (tmp_path / "out" / "toy").exists()
