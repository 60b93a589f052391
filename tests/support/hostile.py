"""A scripted SMTP server that misbehaves once, at one phase, in one way, and is a good server otherwise.

It keeps its own books, so that a test can hold the client's outcomes against them: `committed` are the recipients whose
message it took (whether or not the client was told), `refused` those it answered with a 5yz. The final reply names the
recipients it is about, so an answer that a client ties to the wrong message can be told.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from dataclasses import dataclass

PHASES = ("greeting", "ehlo", "starttls", "mail", "rcpt", "data", "body", "dot", "rset", "quit")
FAULTS = (
    "close",
    "reset",
    "stall",
    "slow",
    "garbage",
    "nul",
    "endless",
    "huge_line",
    "early",
    "double",
    "unsolicited",
    "missing",
    "mixed_codes",
    "4xx",
    "5xx",
    "421",
    "421_close",
    "2xx",
    "bytewise",
)
# what can happen while the message is on its way, before there is anything to answer; and `trickle`
BODY_FAULTS = (
    "close",
    "reset",
    "stall",
    "early_2xx",
    "early_4xx",
    "early_5xx",
    "early_421",
    "slow",
)
STARTTLS_FAULTS = ("injected", "handshake_close", "handshake_garbage")
LARGEST = 32 * 2**20
ENDLESS_BYTES = 64 * 2**20
GOOD = {
    "greeting": b"220 hostile.test ESMTP\r\n",
    "ehlo": b"",
    "starttls": b"220 2.0.0 go ahead\r\n",
    "mail": b"250 2.1.0 Ok\r\n",
    "rcpt": b"250 2.1.5 Ok\r\n",
    "data": b"354 go ahead\r\n",
    "dot": b"250 2.0.0 Ok: queued",
    "rset": b"250 2.0.0 Ok\r\n",
    "quit": b"221 2.0.0 Bye\r\n",
}
_BEFORE = {
    "ehlo": "greeting",
    "starttls": "ehlo",
    "rcpt": "mail",
    "data": "rcpt",
    "dot": "data",
    "mail": "ehlo",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`: the how many-th time the phase comes (1 is the first). `kind`: of FAULTS, or `split@N`: the answer in two
    pieces, the first of N bytes.
    """

    phase: str
    kind: str
    at: int = 1


class HostileServer:
    """Listens on 127.0.0.1; use as an async context manager. With `tls` it offers STARTTLS and wants it."""

    def __init__(
        self,
        *faults: Fault,
        pipelining: bool = True,
        chunking: bool = False,
        extensions: tuple[str, ...] = ("8BITMIME", "SIZE 1000000"),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._faults = {(fault.phase, fault.at): fault.kind for fault in faults}
        self._counts = dict.fromkeys(PHASES, 0)
        self._pipelining = pipelining
        self._chunking = chunking
        self._others = extensions
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._talks: dict[asyncio.StreamWriter, _Conversation] = {}
        self.port = 0
        self.connections = 0
        self.most_connections = 0
        self.committed: list[str] = []
        self.refused: set[str] = set()
        self.bodies: list[bytes] = []
        self.commands: list[bytes] = []
        self.transactions: list[tuple[int, list[str]]] = []
        self.flooded = 0
        self.after_fault: list[str] = []  # recipients committed on a connection after its fault

    async def __aenter__(self) -> "HostileServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LARGEST)
        if any(phase == "body" for phase, _ in self._faults):
            # a buffer that the kernel does not let grow: a large message is on its way for as long as it is not read
            self._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 << 10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self.most_connections = max(self.most_connections, len(self._writers))
        with contextlib.suppress(OSError, EOFError, _Ended, asyncio.CancelledError):
            self._talks[writer] = _Conversation(self, reader, writer)
            await self._talks[writer].run()
        self._tasks.discard(task)
        self._writers.discard(writer)
        self._talks.pop(writer, None)
        with contextlib.suppress(OSError):
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, phase: str, recipients: list[str]) -> bool:
        """Answer as scripted; whether the answer was the good one. A test may put itself in its place."""
        return await self._talks[writer].answer(phase, recipients)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    def next_fault(self, phase: str) -> str:
        """Count the phase; how to misbehave now, "" for not at all."""
        self._counts[phase] += 1
        return self._faults.get((phase, self._counts[phase]), "")

    def coming_fault(self, phase: str) -> str:
        """What will be the fault the next time the phase comes."""
        return self._faults.get((phase, self._counts.get(phase, 0) + 1), "")

    def hello(self, *, secure: bool) -> bytes:
        lines = ["hostile.test", *self._others]
        if self._pipelining:
            lines.append("PIPELINING")
        if self._chunking:
            lines.append("CHUNKING")
        if self._tls is not None and not secure:
            lines.append("STARTTLS")
        return "".join(f"250-{line}\r\n" for line in lines[:-1]).encode() + f"250 {lines[-1]}\r\n".encode()


class _Conversation:
    """One connection."""

    def __init__(
        self, server: HostileServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._secure = False
        self._early: set[str] = set()
        self._is_spoilt = False

    async def run(self) -> None:
        server, reader = self._server, self._reader
        await self._server._answer(self._writer, "greeting", [])
        recipients: list[str] | None = None
        while line := await reader.readline():
            verb = line.split()[0].upper().split(b":")[0]
            server.commands.append(line.rstrip(b"\r\n"))
            if verb == b"EHLO":
                await self._server._answer(self._writer, "ehlo", [])
            elif verb == b"STARTTLS":
                await self._start_tls()
            elif verb == b"MAIL":
                if recipients is not None:
                    await self._send(b"503 5.5.1 nested MAIL\r\n")
                elif await self._server._answer(self._writer, "mail", []):
                    recipients = []
            elif verb == b"RCPT":
                name = line[line.index(b"<") + 1 : line.index(b">")].decode()
                if recipients is None:
                    await self._send(b"503 5.5.1 no MAIL\r\n")
                elif await self._server._answer(self._writer, "rcpt", [name]):
                    recipients.append(name)
            elif verb == b"DATA":
                if not recipients:
                    await self._send(b"503 5.5.1 no valid recipients\r\n")
                    continue
                if await self._server._answer(self._writer, "data", recipients):
                    await self._misread(recipients)
                    body = await self._reader.readuntil(b"\r\n.\r\n")
                    await self._dot(recipients, body[:-3])
                    recipients = None
            elif verb == b"BDAT":
                size = int(line.split()[1])
                if recipients:
                    await self._misread(recipients)
                body = await reader.readexactly(size)
                if not recipients:
                    await self._send(b"503 5.5.1 no valid recipients\r\n")
                    continue
                await self._dot(recipients, body)
                recipients = None
            elif verb == b"RSET":
                recipients = None
                await self._server._answer(self._writer, "rset", [])
            elif verb == b"QUIT":
                if await self._server._answer(self._writer, "quit", []):
                    return
            else:
                await self._send(b"500 5.5.2 what?\r\n")

    async def _misread(self, recipients: list[str]) -> None:
        """The faults while the message comes; none of its octets is read before them."""
        kind = self._server.next_fault("body")
        if not kind:
            return
        self._is_spoilt = True
        if kind == "close":
            raise _Ended
        if kind == "reset":
            self._writer.transport.abort()
            raise _Ended
        if kind != "slow":
            self._writer.transport.pause_reading()
        if kind == "stall":
            await asyncio.sleep(3600)
        if kind == "trickle":
            await self._trickle()
        if kind == "slow":
            for _ in range(3):
                await asyncio.sleep(0.02)
            return
        code = {"early_2xx": b"250", "early_4xx": b"451", "early_5xx": b"554", "early_421": b"421"}[kind]
        if kind == "early_5xx":
            self._server.refused.update(recipients)
        await asyncio.sleep(0.05)  # by then it is on its way, and more than the kernel's buffers take
        await self._send(code + b" 2.0.0 before the message has come\r\n")
        await asyncio.sleep(0.2)
        raise _Ended

    async def _trickle(self) -> None:
        """Take a little of the message now and then, for as long as anybody lets us."""
        handle = self._writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(handle.fileno())) as copy:
            copy.setblocking(False)
            while True:
                await asyncio.sleep(0.01)
                with contextlib.suppress(BlockingIOError):
                    if not copy.recv(16384):
                        raise _Ended

    async def _dot(self, recipients: list[str], body: bytes) -> None:
        server = self._server
        server.bodies.append(body)
        server.transactions.append((len(server.bodies), list(recipients)))
        kind = server.coming_fault("dot")
        if kind not in ("4xx", "5xx", "421", "421_close"):
            server.committed += recipients  # the client may never hear of it
            if self._is_spoilt:
                server.after_fault += recipients
        await self._server._answer(self._writer, "dot", recipients)

    async def _start_tls(self) -> None:
        server = self._server
        kind = server.coming_fault("starttls")
        if kind in STARTTLS_FAULTS:
            server.next_fault("starttls")
            await self._send(GOOD["starttls"] + (b"250 injected\r\n" if kind == "injected" else b""))
            if kind == "handshake_garbage":
                await self._reader.read(1)
                await self._send(b"\x15\x03\x01 this is not TLS at all\r\n" * 9)
            if kind != "injected":
                raise _Ended
        elif not await self._server._answer(self._writer, "starttls", []):
            return
        if server._tls is None:
            raise _Ended
        await self._writer.start_tls(server._tls)
        self._secure = True

    async def answer(self, phase: str, recipients: list[str]) -> bool:
        """Answer as scripted; returns whether the answer was the good one."""
        kind = self._server.next_fault(phase)
        if phase in self._early:
            self._early.discard(phase)  # it has been answered already
            return True
        good = self._good(phase, recipients)
        for later, before in _BEFORE.items():
            if before == phase and self._server.coming_fault(later) == "early":
                self._early.add(later)
                self._is_spoilt = True
                good += self._good(later, recipients)
        if kind == "early":
            return await self._misbehave("", good, phase, recipients)
        return await self._misbehave(kind, good, phase, recipients)

    def _good(self, phase: str, recipients: list[str]) -> bytes:
        if phase == "ehlo":
            return self._server.hello(secure=self._secure)
        if phase == "dot":
            return GOOD["dot"] + "".join(f" <{name}>" for name in recipients).encode() + b"\r\n"
        return GOOD[phase]

    async def _misbehave(self, kind: str, good: bytes, phase: str, recipients: list[str]) -> bool:
        if kind == "":
            await self._send(good)
            return True
        if kind not in ("bytewise", "slow", "2xx", "4xx", "5xx") and not kind.startswith("split@"):
            self._is_spoilt = True
        if kind == "close":
            raise _Ended
        elif kind == "reset":
            self._writer.transport.abort()
            raise _Ended
        elif kind == "stall":
            await asyncio.sleep(3600)
        elif kind == "slow":
            for i in range(len(good)):
                await asyncio.sleep(0.002)
                await self._send(good[i : i + 1])
        elif kind == "garbage":
            await self._send(b"\xff\xfe hello\r\n")
        elif kind == "nul":
            await self._send(b"\0" + good)
        elif kind == "endless":
            line = good[:3] + b"-" + b"more " * 20 + b"\r\n"
            while self._server.flooded < ENDLESS_BYTES:
                await self._send(line * 100)
                self._server.flooded += len(line) * 100
        elif kind == "huge_line":
            await self._send(good[:3] + b" " + b"x" * 70_000 + b"\r\n")
        elif kind == "double":
            await self._send(good + good)
        elif kind == "unsolicited":
            await self._send(good + b"250 2.0.0 and one more\r\n")
        elif kind == "missing":
            pass
        elif kind == "mixed_codes":
            await self._send(b"250-yes\r\n550 no\r\n")
        elif kind == "4xx":
            await self._send(b"451 4.3.0 later\r\n")
            return False
        elif kind == "5xx":
            await self._send(b"550 5.0.0 never\r\n")
            self._server.refused.update(recipients or ["*"])
            return False
        elif kind == "421":
            await self._send(b"421 4.3.2 going down\r\n")
            return False
        elif kind == "421_close":
            await self._send(b"421 4.3.2 going down\r\n")
            raise _Ended
        elif kind == "2xx":
            await self._send(b"250 2.0.0 Ok" + good[len(GOOD["dot"]) :] if phase == "dot" else b"250 Ok\r\n")
        elif kind == "bytewise":
            for i in range(len(good)):
                await asyncio.sleep(0)
                await self._send(good[i : i + 1])
        elif kind.startswith("split@"):
            cut = int(kind.partition("@")[2])
            await self._send(good[:cut])
            await asyncio.sleep(0.002)
            await self._send(good[cut:])
        else:
            raise ValueError(kind)
        return True

    async def _send(self, data: bytes) -> None:
        await self._server._send(self._writer, data)


class _Ended(Exception):
    """The conversation is over."""
