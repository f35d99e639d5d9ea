"""Asks a server that speaks the chat interface of OpenAI (many do): every prompt once, every answer kept at once.

An answer is appended to the file of answers as soon as it is there, and stored in the cache by a hash of all that was
asked. The same command goes on where an interruption or an error ended it, and asks nothing twice.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from recbole_llm.errors import DataError, EndpointError, SettingError
from recbole_llm.inference.hosted.prompt_file import append, key_of, read_lines, read_prompts
from recbole_llm.utils.files import read_json_object, storage_errors, write_json
from recbole_llm.utils.paths import cache_folder
from recbole_llm.utils.plain_text import one_line

KEY = "OPENAI_API_KEY"
_PATH = "/chat/completions"
_LONGEST_WAIT = 60.0
_SHOWN = 200  # characters of a server's own words


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask, and how.

    Attributes:
        url: of the interface, such as ``https://host/v1``.
        model: its name there.
        key: is sent as a bearer token; None sends none. Not shown.
        max_tokens: of an answer.
        retries: how often a prompt is asked again after an error that may pass.
        timeout: seconds until an answer must have begun.
        first_wait: seconds before the first repetition; each further one waits twice as long, at most a minute.
        sleep: waits.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int = 64
    retries: int = 6
    timeout: float = 120.0
    first_wait: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SettingError(f"endpoint={self.url} must be an address such as https://host/v1")
        if self.key is not None and (not self.key.isascii() or not self.key.isprintable() or " " in self.key):
            raise SettingError("the key in the environment has characters that no header can have: set it again")

    @property
    def address(self) -> str:
        """Where prompts are sent."""
        base = self.url.rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH

    def body(self, prompt: str) -> dict[str, Any]:
        """Return what is sent for one prompt; answers are the most probable ones."""
        message = {"role": "user", "content": prompt}
        return {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}


def key_from(variable: str) -> str | None:
    """Return the key in an environment variable; None where it is not set or empty."""
    return os.environ.get(variable) or None


@dataclass
class Usage:
    """What was used.

    Attributes:
        asked: prompts that were sent and answered.
        cached: those that were answered by the cache.
        kept: those that the file had already.
        prompt_tokens, completion_tokens: as the server counts them, of what was asked now.
    """

    asked: int = 0
    cached: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def sentence(self, price_in: float | None, price_out: float | None) -> str:
        """Return one line on all of it, with the cost if prices (per million tokens) are known."""
        cost = ""
        if price_in is not None or price_out is not None:
            total = self.prompt_tokens * (price_in or 0.0) + self.completion_tokens * (price_out or 0.0)
            cost = f", cost {total / 1e6:.4f}"
        return (
            f"{self.asked} answers asked, {self.cached} from the cache, {self.kept} already there; "
            f"{self.prompt_tokens:,} tokens of prompts and {self.completion_tokens:,} of answers{cost}"
        )


def ask(prompts: Path, answers: Path, endpoint: Endpoint, parallel: int = 1, progress: Any = None) -> Usage:
    """Ask all prompts of a file that have no answer yet.

    Args:
        prompts: the file that `prompt_file.export` wrote.
        answers: the file of answers; what it has is kept.
        endpoint: whom to ask.
        parallel: how many prompts are under way at once.
        progress: a bar with ``update(n)`` and a ``total``, or None.

    Raises:
        EndpointError: if the server refuses, or gives no answer that can be read; the file has all answers so far.
        DataError: if a file is broken.
        StorageError: if an answer cannot be stored.
    """
    lines = read_prompts(prompts)
    done = _kept(answers, {key_of(line): line for line in lines})
    waiting = [line for line in lines if key_of(line) not in done]
    usage = Usage(kept=len(done))
    if progress is not None:
        progress.total = len(waiting)
    lock, session, stop = threading.Lock(), requests.Session(), threading.Event()

    def one(line: dict[str, Any]) -> None:
        if stop.is_set():
            return
        found, cached = _answer(session, endpoint, line["prompt"], stop)
        with lock:
            append(answers, {**{name: line[name] for name in ("row", "draw", "candidates")}, **found})
            usage.asked, usage.cached = usage.asked + (not cached), usage.cached + cached
            if not cached:
                usage.prompt_tokens += found["usage"].get("prompt_tokens", 0)
                usage.completion_tokens += found["usage"].get("completion_tokens", 0)
            if progress is not None:
                progress.update(1)

    try:
        _all(one, waiting, parallel, stop)
    except EndpointError as error:
        raise EndpointError(
            f"{error}; {len(done) + usage.asked + usage.cached} of {len(lines)} answers are in {answers}, and the same "
            f"command goes on from there"
        ) from error
    return usage


def _all(one: Callable[[Any], None], waiting: list[Any], parallel: int, stop: threading.Event) -> None:
    """Do `one` for each, some at once. After an error what is under way is finished, and nothing begun."""
    with ThreadPoolExecutor(max_workers=parallel) as workers:
        under_way: set[Future[None]] = set()
        try:
            for line in waiting:
                if len(under_way) >= parallel:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                under_way.add(workers.submit(one, line))
            for future in under_way:
                future.result()
        except BaseException:
            stop.set()
            raise


def _kept(path: Path, prompts: dict[tuple[int, int], dict[str, Any]]) -> set[tuple[int, int]]:
    """Return which prompts a file of answers answers; a last line that was cut by an interruption is removed."""
    if not path.exists():
        return set()
    _mend(path)
    found: set[tuple[int, int]] = set()
    for number, line in read_lines(path, "answers"):
        key = (line.get("row"), line.get("draw"))
        if key not in prompts or line.get("candidates", prompts[key]["candidates"]) != prompts[key]["candidates"]:
            raise DataError(
                f"line {number} of {path} answers row {key[0]}, draw {key[1]} of other prompts: name another file "
                f"with --answers"
            )
        found.add(key)
    return found


def _mend(path: Path) -> None:
    with storage_errors(path), path.open("rb+") as file:
        text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            file.truncate(whole)


# -- one prompt --------------------------------------------------------------------------------------------------------


def _answer(
    session: requests.Session, endpoint: Endpoint, prompt: str, stop: threading.Event
) -> tuple[dict[str, Any], bool]:
    """Return answer and usage of one prompt, and whether the cache had it."""
    body = endpoint.body(prompt)
    asked = json.dumps([endpoint.address, body], sort_keys=True)
    path = cache_folder("answers") / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    if path.is_file():
        try:
            stored = read_json_object(path, "stored answer")
            if isinstance(stored.get("answer"), str) and isinstance(stored.get("usage"), dict):
                return stored, True
        except DataError:
            pass  # cut short: it is asked again
    found = _with_patience(session, endpoint, body, stop)
    write_json(path, found)
    return found, False


def _with_patience(
    session: requests.Session, endpoint: Endpoint, body: dict[str, Any], stop: threading.Event
) -> dict[str, Any]:
    pause = endpoint.first_wait
    for attempt in range(endpoint.retries + 1):
        found = _once(session, endpoint, body)
        if isinstance(found, dict):
            return found
        reason, asked_for = found
        if attempt == endpoint.retries or stop.is_set():
            break
        endpoint.sleep(min(max(pause, asked_for), _LONGEST_WAIT))
        pause *= 2
    raise EndpointError(f"{endpoint.address} gave no answer in {attempt + 1} attempts: {reason}")


def _once(session: requests.Session, endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any] | tuple[str, float]:
    """Return the answer, or what went wrong and the seconds that the server asks to wait.

    Raises:
        EndpointError: for what waiting does not mend.
    """
    headers = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
    try:
        # A key must not follow to another host; requests drops it there, and here nothing is followed.
        answer = session.post(
            endpoint.address, json=body, headers=headers, timeout=endpoint.timeout, allow_redirects=False
        )
    except requests.Timeout:
        return f"nothing came within {endpoint.timeout:g} seconds", 0.0
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise EndpointError(f"{endpoint.address} is no address: {one_line(error)}") from error
    except requests.RequestException as error:
        return f"the connection failed ({type(error).__name__})", 0.0
    status = answer.status_code
    if status in (401, 403):
        raise EndpointError(
            f"{endpoint.address} refuses the key (HTTP {status}): set the environment variable that --key_env names"
        )
    if status in (408, 425, 429) or status >= 500:
        return f"HTTP {status}", _seconds(answer.headers.get("Retry-After"))
    if status != 200:
        raise EndpointError(f"{endpoint.address} refuses the prompt (HTTP {status}): {_words(answer, endpoint.key)}")
    return _parsed(answer)


def _parsed(answer: requests.Response) -> dict[str, Any] | tuple[str, float]:
    try:
        found = answer.json()
        text = found["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return "its answer is not that of the chat interface", 0.0
    if text is not None and not isinstance(text, str):
        return "its answer has no text", 0.0
    usage = found.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    numbers = {name: counts[name] for name in names if isinstance(counts.get(name), int)}
    return {"answer": text or "", "usage": numbers}


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:  # a date
        return 0.0


def _words(answer: requests.Response, key: str | None) -> str:
    text = one_line(answer.text)[:_SHOWN]
    return text.replace(key, "***") if key else text
