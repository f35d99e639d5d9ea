"""The verb ``serve``: recommendations over HTTP."""

import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from recbole_llm.cli.arguments import Given, Parser, flag, whole
from recbole_llm.cli.search_options import add_search, search_of
from recbole_llm.cli.show import show
from recbole_llm.errors import SettingError
from recbole_llm.utils.packages import require_package
from recbole_llm.utils.values import parse_value

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_FLAGS = ("allow_untrained", "cuda_graph")
_HOST, _PORT = "127.0.0.1", 8000
_SEARCH_K = 16
_LONGEST_WINDOW = 1000  # milliseconds; at the end, too, what waits is waited for


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "serve",
        "Answer requests for the best items over HTTP: POST /recommend with a history or a user. Requests that come at "
        "about the same time are answered together. GET /health and GET /metrics tell how it goes.",
        "--run=saved/<run> [--port=8000]",
    )
    group = found.add_argument_group("what is served")
    group.add_argument("--run", metavar="FOLDER", help="the folder of a finished run")
    group.add_argument("--data_path", metavar="FOLDER", help="where the dataset is (default: as in the run)")
    for name, help_text in (
        ("exclude_seen", "leave out the items of a history where a request does not say (default: as the run was "
         "evaluated)"),
        ("allow_untrained", "allow items in a history that no training row has (default: False)"),
        ("cuda_graph", "replay the model's work on a GPU for a request that comes alone (default: False)"),
    ):  # fmt: skip
        group.add_argument(f"--{name}", type=flag(name), nargs="?", const=True, metavar="BOOL", help=help_text)
    group.add_argument(
        "--new_items", metavar="FILE", help="items that the model was never trained on, as for recommend"
    )
    add_search(group)
    group.add_argument(
        "--search_k",
        type=whole("search_k", 1),
        metavar="INT",
        help="for how many items the recall of an approximate search is measured; whoever asks for more is answered "
        f"exactly (default: {_SEARCH_K})",
    )
    group = found.add_argument_group("where")
    group.add_argument(
        "--host", metavar="NAME", help=f"the address to listen on (default: {_HOST}, this machine alone)"
    )
    group.add_argument(
        "--port", type=whole("port", 0, 65535), metavar="INT", help=f"0 for a free one (default: {_PORT})"
    )
    group = found.add_argument_group("how much")
    for name, least, help_text in (
        ("max_batch", 1, "the most requests that are answered together (default: 64)"),
        ("max_waiting", 1, "the most that may wait; more are told to try again (default: 1024)"),
        ("max_k", 1, "the most items that a request may ask for (default: 1000)"),
    ):
        group.add_argument(f"--{name}", type=whole(name, least), metavar="INT", help=help_text)
    group.add_argument(
        "--window_ms",
        type=_milliseconds,
        metavar="FLOAT",
        help="how long the first of a batch waits for others (default: 5)",
    )
    return found


def main(arguments: Given) -> int:
    """Serve until SIGTERM or Ctrl-C, and return 0.

    Raises:
        SettingError: for options that are missing or not understood, packages that are missing, and a port that is
            taken.
        CheckpointError: if the run is broken.
    """
    given = arguments.options
    if "run" not in given:
        raise SettingError("serve needs the folder of a finished run: --run=saved/<run>")
    for package in _PACKAGES:
        require_package(package, "serving", "serve")
    from recbole_llm.runs.folder import require_finished
    from recbole_llm.serving.app import Batching, make_app
    from recbole_llm.serving.server import address, listening, serve

    require_finished(given["run"])
    batching = Batching(**{name: given[name] for name in ("window_ms", "max_batch", "max_waiting") if name in given})
    search = search_of(given, given.get("search_k", _SEARCH_K))
    # It is taken before the minutes in which a large model is loaded.
    with listening(given.get("host", _HOST), given.get("port", _PORT)) as listener:
        service = _service(given, search)
        url = address(listener)

        def ready() -> None:
            if not _is_loopback(listener.getsockname()[0]):
                show("warning: whoever reaches this address may ask: there is no password", file=sys.stderr)
            if service.search_summary:
                show(service.search_summary, file=sys.stderr)
            show(f"{service.model_name} on {service.dataset_name}, {service.items} items: {url}/recommend")
            sys.stdout.flush()

        with suppress(KeyboardInterrupt):  # the signal again, after what was asked has been answered
            serve(make_app(service, batching, ready), listener)
    show("stopped")
    return 0


def _service(given: dict[str, Any], search: Any) -> Any:
    from recbole_llm.inference.new_items import read_new_items
    from recbole_llm.quick_start.run import load
    from recbole_llm.serving.service import Limits, Service

    parts = load(given["run"], {"data_path": given["data_path"]} if "data_path" in given else None)
    new_items = read_new_items(parts, Path(given["new_items"])) if "new_items" in given else None
    limits = Limits(k=given["max_k"]) if "max_k" in given else Limits()
    options = {name: given.get(name, False) for name in _FLAGS}
    return Service(parts, limits, given.get("exclude_seen"), new_items, search, **options)


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback


def _milliseconds(text: str) -> float:
    value = parse_value(text)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LONGEST_WINDOW:
        raise SettingError(f"window_ms={text} must be a number from 0 to {_LONGEST_WINDOW}")
    return float(value)
