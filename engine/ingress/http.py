"""The HTTP listeners: unsubscribe links and metrics. The only importer of fastapi.

The one of the links is for strangers. They speak TLS if they have a certificate; without one a reverse proxy in front
does (RFC 8058 wants https). Bounds: connections at once, the life of a connection, the size of a request's head; no
content is read, because no request needs any.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import h11
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.config.bounces import IngressConfig
from engine.ingress.certificate import Certificate
from engine.ingress.pages import HEADERS, STATUS, page
from engine.ingress.unsubscribe import Answer
from engine.metrics.prometheus import CONTENT_TYPE

log = logging.getLogger(__name__)


def _is_about_us(record: logging.LogRecord) -> bool:
    """Not a client that breaks the protocol while it is answered: anybody could fill the log with that."""
    return record.exc_info is None or not isinstance(record.exc_info[1], h11.LocalProtocolError)


_server_log = logging.getLogger("uvicorn.error")
_server_log.setLevel(logging.ERROR)
_server_log.addFilter(_is_about_us)

MAX_HEAD = 16 << 10
CONNECTION_S = 60.0
HANDSHAKE_S = 10.0
RETRY_AFTER_S = "60"
STOP_S = 5


class Figures(Protocol):
    """Who knows the figures: engine/metrics/serving.py."""

    async def page(self) -> str: ...
    def may_read(self, authorization: str) -> bool: ...


class Desk(Protocol):
    """Who decides: engine/ingress/unsubscribe.py."""

    def look(self, token: str, client: str) -> tuple[Answer, str]: ...
    async def unsubscribe(self, token: str, client: str) -> tuple[Answer, str]: ...


def build_app(desk: Desk, paths: list[str]) -> FastAPI:
    """`paths`: those of the configured links, to which a token is added."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    async def show(token: str, request: Request) -> HTMLResponse:
        return _response(*desk.look(token, _client(request)))

    async def act(token: str, request: Request) -> HTMLResponse:
        return _response(*await desk.unsubscribe(token, _client(request)))

    async def unknown(request: Request, error: Exception) -> HTMLResponse:
        return _response(Answer.UNKNOWN, "")

    for path in dict.fromkeys(paths):
        app.add_api_route(f"{path}/{{token}}", show, methods=["GET", "HEAD"])
        app.add_api_route(f"{path}/{{token}}", act, methods=["POST"])
    app.add_exception_handler(404, unknown)
    return app


def build_metrics_app(figures: Figures) -> FastAPI:
    """`/metrics` in the text format of Prometheus."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    async def show(request: Request) -> Response:
        try:
            may_read = figures.may_read(request.headers.get("Authorization", ""))
        except OSError as error:
            log.error("metrics: the token cannot be read: %s", error)
            return PlainTextResponse("the token cannot be read: see the log\n", 503)
        if not may_read:
            return PlainTextResponse("a token is needed\n", 401, {"WWW-Authenticate": "Bearer"})
        return Response(await figures.page(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})

    app.add_api_route("/metrics", show, methods=["GET", "HEAD"])
    return app


def _client(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _response(answer: Answer, address: str) -> HTMLResponse:
    headers = dict(HEADERS)
    if STATUS[answer] in (429, 503):
        headers["Retry-After"] = RETRY_AFTER_S
    return HTMLResponse(page(answer, address), STATUS[answer], headers)


class _Protocol(H11Protocol):
    """Beyond the limit connections are closed at once, and none lives longer than CONNECTION_S: slow ones cannot take
    all the room for ever."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) + 1 >= (self.config.limit_concurrency or 0):
            transport.abort()
            return
        super().connection_made(transport)
        self._end = asyncio.get_running_loop().call_later(CONNECTION_S, transport.abort)

    def shutdown(self) -> None:
        """An idle connection is not waited for: a client that speaks TLS may take its time to say goodbye."""
        is_idle = self.cycle is None or self.cycle.response_complete
        is_written = not self.transport.get_write_buffer_size()  # a transport that is closed twice cannot say
        super().shutdown()
        if is_idle and is_written:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is None:  # it was not let in
            return
        self._end.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """Leaves the signals to the process that it runs in. A TLS handshake has HANDSHAKE_S: until it is over, the
    connection is not counted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        settings = self.config

        def protocol() -> _Protocol:
            return _Protocol(config=settings, server_state=self.server_state, app_state=self.lifespan.state)

        loop = asyncio.get_running_loop()
        timeout_s = None if settings.ssl is None else HANDSHAKE_S
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener,
                ssl=settings.ssl,
                ssl_handshake_timeout=timeout_s,
                backlog=settings.backlog,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def links_listener(desk: Desk, config: IngressConfig, paths: list[str]) -> "HttpListener":
    """The listener of unsubscribe links. OSError: the certificate cannot be read."""
    return HttpListener(
        build_app(desk, paths),
        max_connections=config.max_connections,
        certificate=config.http_certificate,
        key=config.http_key,
        proxies=config.proxies,
    )


class HttpListener:
    """See the module docstring."""

    def __init__(
        self,
        app: FastAPI,
        *,
        max_connections: int,
        certificate: Path | None,
        key: Path | None,
        proxies: Sequence[str] = (),
    ) -> None:
        """OSError: the certificate cannot be read."""
        settings = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            limit_concurrency=max_connections + 1,  # who reaches it is let in, and answered 503
            timeout_graceful_shutdown=STOP_S,
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        settings.load()
        if certificate is not None and key is not None:
            settings.ssl = Certificate(certificate, key).watching()
        self._server = _Server(settings)
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, for who asked for any. OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
        self._task = asyncio.get_running_loop().create_task(self._server.serve([listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise OSError(f"the HTTP listener at {host} port {port} does not start")
            await asyncio.sleep(0.01)
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
