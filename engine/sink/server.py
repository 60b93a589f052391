"""`sendfleet sink`: listen for every personality, until SIGTERM or SIGINT.

One process, one uvloop event loop, one log. Only loopback addresses are listened on (the configuration
is validated so, and the bound address is checked once more). Nothing is relayed: what is accepted is
logged and thrown away.
"""

import asyncio
import ipaddress
import itertools
import signal
import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import uvloop

from engine.sink.connection import SinkConnection
from engine.sink.journal import Journal
from engine.sink.personality import (
    SHIPPED,
    Personality,
    PersonalityError,
    SinkConfig,
    Tls,
    load_personalities,
)
from engine.sink.state import ProviderState

LINGER_S = 0.05  # at a stop: what has already arrived, such as a client's close, is still read and logged
BACKLOG = 1024

Addresses = Mapping[str, tuple[str, int]]


def run(
    config_path: Path | None = None,
    *,
    log_path: Path | None = None,
    only: Collection[str] = (),
    ports: Mapping[str, int] | None = None,
    ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; blocks.

    `config_path` is a personalities file (the shipped one by default), `log_path` replaces its `log`,
    `only` names the personalities to serve (all by default), `ports` replaces their ports (0 keeps the
    file's). `ready` is called once with the address of each, when all listen. Raises PersonalityError
    for a bad file or an unknown name in `only`, OSError if a port is taken.
    """
    config = load_personalities(config_path)
    chosen = dict(config.personalities)
    if only:
        unknown = sorted(set(only) - set(chosen))
        if unknown:
            raise PersonalityError(str(config_path or SHIPPED), (f"no personality {', '.join(unknown)}",))
        chosen = {name: chosen[name] for name in only}
    for name, port in (ports or {}).items():
        if port:
            chosen[name] = chosen[name].model_copy(update={"port": port})
    uvloop.run(_serve(config, chosen, log_path or config.log, ready))


async def _serve(
    config: SinkConfig,
    personalities: Mapping[str, Personality],
    log_path: Path,
    ready: Callable[[Addresses], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    journal = Journal(log_path, loop)
    servers: list[asyncio.Server] = []
    try:
        addresses: dict[str, tuple[str, int]] = {}
        sessions = itertools.count(1)
        for name, personality in personalities.items():
            try:
                server = await _listen(config.host, name, personality, journal, sessions)
            except OSError as error:
                raise OSError(
                    f"port {personality.port} of the personality {name} on {config.host}: {error.strerror}; "
                    f"another sink may run, and --only {name}=PORT takes another port"
                ) from error
            servers.append(server)
            host, port = server.sockets[0].getsockname()[:2]
            if not ipaddress.ip_address(host).is_loopback:
                raise OSError(f"refusing to listen on {host}: not a loopback address")
            addresses[name] = (host, port)
        if ready is not None:
            ready(addresses)
        await stop.wait()
    finally:
        for server in servers:
            server.close()
        await asyncio.sleep(LINGER_S)
        journal.close()


async def _listen(
    host: str, name: str, personality: Personality, journal: Journal, sessions: "itertools.count[int]"
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    state = ProviderState(personality)
    context = _tls_context(personality.tls) if personality.tls is not None else None

    def connect() -> SinkConnection:
        return SinkConnection(
            name=name,
            personality=personality,
            state=state,
            journal=journal,
            loop=loop,
            session=next(sessions),
            tls=context,
        )

    return await loop.create_server(connect, host, personality.port, backlog=BACKLOG)


def _tls_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    return context
