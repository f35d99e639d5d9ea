"""An application on a socket, until a signal ends it."""

import errno
import socket

import uvicorn
from fastapi import FastAPI

from recbole_llm.errors import SettingError

_GRACE = 30  # seconds that requests may take to end after a signal


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that clients can connect to.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        SettingError: if it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"port {port} of {host} is taken: give another --port") from None
        raise SettingError(
            f"the server cannot listen on --host={host} --port={port} ({error.strerror or error})"
        ) from None


def address(listener: socket.socket) -> str:
    """Return the URL of what a socket listens on."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have come by then are answered.

    uvicorn ends in order on a signal, and then raises it again for whoever handled it before.
    """
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="on", timeout_graceful_shutdown=_GRACE, ws="none"
    )
    uvicorn.Server(config).run(sockets=[listener])
