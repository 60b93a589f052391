"""The SMTP listener for bounces and complaints. The only importer of aiosmtpd.

A listener for strangers: bounds on connections (all, and from one address), on the size of a message, on commands,
on the time of a command and of a session. It offers STARTTLS if it has a certificate, never AUTH, and passes nothing
on: the desk (engine/ingress/reports.py) says which addresses there are and what becomes of a message.
"""

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from aiosmtpd.smtp import SMTP, Envelope, Session, TLSSetupException

from engine.config.bounces import IngressConfig
from engine.ingress.certificate import Certificate
from engine.values.reply import Reply

log = logging.getLogger(__name__)
logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd's, which writes down what any client says

MAX_LINE = 64 << 10  # returned messages have longer lines than RFC 5321 allows, and are harmless
MAX_RECIPIENTS = 100
MAX_COMMANDS = 200
BUSY = Reply(421, "4.7.0", "too many connections, try again later")
MANY = Reply(452, "4.5.3", "too many recipients")
BAD_SENDER = Reply(553, "5.1.7", "the sender address is neither ASCII nor UTF-8")
SENDER_OK = Reply(250, "2.1.0", "sender ok")
BROKEN = Reply(451, "4.3.0", "internal error, try again later")


class Desk(Protocol):
    """Who decides: engine/ingress/reports.py."""

    def recipient(self, address: str) -> Reply: ...
    async def message(self, sender: str, recipients: list[str], data: bytes) -> Reply: ...


class MailListener:
    """See the module docstring."""

    def __init__(self, desk: Desk, config: IngressConfig, *, name: str) -> None:
        """`name`: the host name in the greeting. OSError: the certificate cannot be read."""
        self._desk = desk
        self._config = config
        self._name = name
        self._certificate = (
            Certificate(config.certificate, config.key) if config.certificate and config.key else None
        )
        self._clients: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._open: set[_Protocol] = set()
        self.counts: Counter[str] = Counter()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, for who asked for any. OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for protocol in list(self._open):
                protocol.cut_off()
            await self._server.wait_closed()

    def _protocol(self) -> "_Protocol":
        return _Protocol(
            _Hooks(self._desk),
            admit=self._admit,
            leave=self._leave,
            session_timeout_s=self._config.session_timeout,
            data_size_limit=self._config.max_message,
            enable_SMTPUTF8=True,
            hostname=self._name,
            ident="ESMTP",
            timeout=self._config.idle_timeout,
            tls_context=None if self._certificate is None else self._certificate.context(),
            command_call_limit=MAX_COMMANDS,
            loop=asyncio.get_running_loop(),
        )

    def _admit(self, protocol: "_Protocol", client: str) -> bool:
        config = self._config
        if len(self._open) >= config.max_connections or self._clients[client] >= config.max_per_client:
            self.counts["too-many"] += 1
            if not self._clients[client]:
                del self._clients[client]
            return False
        self.counts["connections"] += 1
        self._open.add(protocol)
        self._clients[client] += 1
        return True

    def _leave(self, protocol: "_Protocol", client: str) -> None:
        self._open.discard(protocol)
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]


class _Protocol(SMTP):
    """aiosmtpd's protocol with bounds on connections and on the session's length."""

    line_length_limit = MAX_LINE

    def __init__(
        self,
        hooks: "_Hooks",
        *,
        admit: Callable[["_Protocol", str], bool],
        leave: Callable[["_Protocol", str], None],
        session_timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(hooks, **options)
        del self._smtp_methods["AUTH"]
        self._admit = admit
        self._leave = leave
        self._session_timeout_s = session_timeout_s
        self._client: str | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if self._client is None:  # not the second time, after STARTTLS
            client = client_of(str((transport.get_extra_info("peername") or ("",))[0]))
            if not self._admit(self, client):
                transport.write(f"{BUSY}\r\n".encode())
                transport.close()
                return
            self._client = client
            self._end = self.loop.call_later(self._session_timeout_s, self.cut_off)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._client is None:
            return
        if self._end is not None:
            self._end.cancel()
            self._end = None
            self._leave(self, self._client)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            super().data_received(data)

    def eof_received(self) -> bool | None:
        return super().eof_received() if self._client is not None else False

    def cut_off(self) -> None:
        """End the session at once."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()


class _Hooks:
    """aiosmtpd's handler."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [line for line in responses if not line.startswith("250-AUTH")]

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if not _is_text(address):
            return str(BAD_SENDER)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return str(SENDER_OK)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return str(MANY)
        reply = self._desk.recipient(address)
        if reply.code == 250:
            envelope.rcpt_tos.append(address)
        return str(reply)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        sender = (envelope.mail_from or "").strip("<>")
        return str(await self._desk.message(sender, list(envelope.rcpt_tos), content))

    async def handle_VRFY(self, server: SMTP, session: Session, envelope: Envelope, address: str) -> str:
        return str(Reply(252, "2.5.0", "send some mail"))

    async def handle_exception(self, error: Exception) -> str:
        if not isinstance(error, TLSSetupException):  # anybody can break a handshake off, and fill the log
            log.error("a session of the mail listener failed", exc_info=error)
        return str(BROKEN)


def client_of(address: str) -> str:
    """Whose connections are counted together: an address, or the /64 of an IPv6 one, which any host has for itself."""
    if ":" not in address:
        return address
    inner = ipaddress.IPv6Address(address.partition("%")[0])
    return str(inner.ipv4_mapped or ipaddress.IPv6Network((int(inner) >> 64 << 64, 64)))


def _is_text(address: str) -> bool:
    """Octets that are not UTF-8 stand in it as surrogates."""
    try:
        address.encode()
    except UnicodeEncodeError:
        return False
    return True
