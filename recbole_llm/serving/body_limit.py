"""A bound on the bytes of a request, which the server reads before anything looks at them."""

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Answers a request whose body has more bytes than `limit` with status 413, and reads no further.

    Args:
        app: what answers all others.
        limit: bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await self._refuse(send)
            return
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise ValueError("the body is too large")  # whatever the application makes of this is not sent
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            if begun or read <= self._limit:
                begun = True
                await send(message)

        try:
            await self._app(scope, counted, noted)
        except Exception:
            if begun or read <= self._limit:
                raise
        if not begun and read > self._limit:
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        body = json.dumps({"error": f"the body has more than {self._limit} bytes: send a shorter history"}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
