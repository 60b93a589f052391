"""The opening conversation under watch: every byte that the peer sends before the session is ours.

aiosmtplib drops what it has not asked for, also what stands in the clear behind the 220 to STARTTLS. Dropping is not
enough: somebody on the path has injected it (response injection, the client side of CVE-2011-0411; "NO STARTTLS",
USENIX Security 2021), or the server's replies no longer match our commands. `Watch` stands between the transport and
aiosmtplib's protocol, counts replies against commands, and does the STARTTLS exchange itself: with the 220 complete,
reading stops, and one byte more, here or in the socket, is `Injected`. What arrives later is read by TLS, and fails
the handshake.
"""

import asyncio
import os
import socket
import ssl
from typing import Any

from engine.values.reply import Reply
from native.replies import ReplyParser


class Injected(Exception):
    """The peer sent bytes in the clear behind its answer to STARTTLS."""


class Desynchronised(Exception):
    """The peer has sent a reply to nothing."""


class Watch(asyncio.Protocol):
    """Between a transport and the protocol of an aiosmtplib client whose greeting has been read."""

    def __init__(self, transport: Any, inner: asyncio.Protocol) -> None:
        self._transport = transport
        self._inner = inner
        self._parser = ReplyParser()
        self._awaited = 0
        self._surplus = False
        self._has_rest = False
        self._answer: asyncio.Future[Reply] | None = None
        transport.set_protocol(self)

    def expect(self) -> None:
        """One command will be sent, and one reply may come."""
        self.check()
        self._awaited += 1

    def expect_many(self) -> None:
        """A dialogue whose steps aiosmtplib counts (AUTH)."""
        self._awaited = 1000

    def settled(self) -> None:
        """The dialogue is over."""
        self._awaited = 0
        self.check()

    def check(self) -> None:
        """Raise Desynchronised if more has come than was asked for."""
        if self._surplus or self._has_rest:
            raise Desynchronised("the server sends replies that were not asked for")

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        replies: list[Reply] = []
        for line in data.splitlines(keepends=True):
            try:
                replies += [Reply(*fields) for fields in self._parser.feed(line)]
            except ValueError:
                self._surplus = True
            self._has_rest = not line.endswith(b"\n")
        self._awaited -= len(replies)
        if self._awaited < 0:
            self._surplus = True
        if self._answer is None:
            self._inner.data_received(data)
        elif not self._answer.done():
            if replies:
                self._transport.pause_reading()
                self._answer.set_result(replies[0])
            elif self._surplus:
                self._answer.set_exception(Desynchronised("the answer to STARTTLS is malformed"))

    def eof_received(self) -> bool:
        self._inner.eof_received()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the connection was closed"))
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    # -- STARTTLS

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> Reply | Any:
        """The TLS transport after STARTTLS and the handshake, or the reply that declined.

        Raises Injected, ssl.SSLError, or OSError if the connection is lost. Has no deadline of its own.
        """
        loop = asyncio.get_running_loop()
        self.expect()
        self._answer = loop.create_future()
        self._transport.write(b"STARTTLS\r\n")
        reply = await self._answer
        if reply.code != 220:
            self._answer = None
            self._transport.resume_reading()
            return reply
        if self._surplus or self._has_rest or _has_pending_input(self._transport):
            raise Injected("the server sent plaintext behind its answer to STARTTLS")
        transport = await loop.start_tls(self._transport, self, context, server_hostname=server_name)
        if transport is None:
            raise ConnectionResetError("the connection was closed")
        self._answer = None
        self._transport = transport
        return transport


def _has_pending_input(transport: Any) -> bool:
    """Whether bytes wait in the socket, unread."""
    handle = transport.get_extra_info("socket")
    if handle is None:
        return False
    # a copy of the descriptor: the socket objects of event loops do not allow recv
    with socket.socket(fileno=os.dup(handle.fileno())) as copy:
        copy.setblocking(False)
        try:
            return bool(copy.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
