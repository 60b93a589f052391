"""A scripted SMTP server that misbehaves once, at one phase, in one way, and is a good server otherwise.

It keeps its own books, so that a test can hold the client's outcomes against them: `committed` are the
recipients whose message it took (whether or not the client was told), `refused` those it answered with a 5yz.
"""

import asyncio
import contextlib
from dataclasses import dataclass

PHASES = ("greeting", "ehlo", "mail", "rcpt", "data", "dot")
FAULTS = (
    "close",
    "reset",
    "stall",
    "garbage",
    "nul",
    "endless",
    "huge_line",
    "double",
    "unsolicited",
    "mixed_codes",
    "4xx",
    "5xx",
    "421",
    "421_close",
    "2xx",
    "bytewise",
)
GOOD = {
    "greeting": b"220 hostile.test ESMTP\r\n",
    "ehlo": b"",
    "mail": b"250 2.1.0 Ok\r\n",
    "rcpt": b"250 2.1.5 Ok\r\n",
    "data": b"354 go ahead\r\n",
    "dot": b"250 2.0.0 Ok: queued\r\n",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`: the how many-th time the phase comes (1 is the first)."""

    phase: str
    kind: str
    at: int = 1


class HostileServer:
    """Listens on 127.0.0.1; use as an async context manager."""

    def __init__(
        self,
        *faults: Fault,
        pipelining: bool = True,
        chunking: bool = False,
        extensions: tuple[str, ...] = ("8BITMIME", "SIZE 1000000"),
    ) -> None:
        self._faults = {(fault.phase, fault.at): fault.kind for fault in faults}
        self._counts = dict.fromkeys(PHASES, 0)
        self._pipelining = pipelining
        self._chunking = chunking
        self._others = extensions
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connections = 0
        self.most_connections = 0
        self.committed: list[str] = []
        self.refused: set[str] = set()
        self.bodies: list[bytes] = []
        self.commands: list[bytes] = []
        self.transactions: list[tuple[int, list[str]]] = []

    async def __aenter__(self) -> "HostileServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        self.most_connections = max(self.most_connections, len(self._writers))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, _Ended):
            await self._converse(reader, writer)
        self._writers.discard(writer)
        writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._answer(writer, "greeting", [])
        recipients: list[str] | None = None
        while line := await reader.readline():
            verb = line.split()[0].upper().split(b":")[0]
            self.commands.append(line.rstrip(b"\r\n"))
            if verb == b"EHLO":
                await self._answer(writer, "ehlo", [])
            elif verb == b"MAIL":
                if recipients is not None:
                    await self._send(writer, b"503 5.5.1 nested MAIL\r\n")
                elif await self._answer(writer, "mail", []):
                    recipients = []
            elif verb == b"RCPT":
                name = line[line.index(b"<") + 1 : line.index(b">")].decode()
                if recipients is None:
                    await self._send(writer, b"503 5.5.1 no MAIL\r\n")
                elif await self._answer(writer, "rcpt", [name]):
                    recipients.append(name)
            elif verb == b"DATA":
                if not recipients:
                    await self._send(writer, b"503 5.5.1 no valid recipients\r\n")
                    continue
                if await self._answer(writer, "data", recipients):
                    body = await reader.readuntil(b"\r\n.\r\n")
                    await self._dot(writer, recipients, body[:-3])
                    recipients = None
            elif verb == b"BDAT":
                body = await reader.readexactly(int(line.split()[1]))
                if not recipients:
                    await self._send(writer, b"503 5.5.1 no valid recipients\r\n")
                    continue
                await self._dot(writer, recipients, body)
                recipients = None
            elif verb == b"RSET":
                recipients = None
                await self._send(writer, b"250 2.0.0 Ok\r\n")
            elif verb == b"QUIT":
                await self._send(writer, b"221 2.0.0 Bye\r\n")
                return
            else:
                await self._send(writer, b"500 5.5.2 what?\r\n")

    async def _dot(self, writer: asyncio.StreamWriter, recipients: list[str], body: bytes) -> None:
        self.bodies.append(body)
        self.transactions.append((len(self.bodies), list(recipients)))
        kind = self._faults.get(("dot", self._counts["dot"] + 1), "")
        if kind not in ("4xx", "5xx", "421", "421_close"):
            self.committed += recipients  # the client may never hear of it
        await self._answer(writer, "dot", recipients)

    async def _answer(self, writer: asyncio.StreamWriter, phase: str, recipients: list[str]) -> bool:
        """Answer as scripted; returns whether the answer was the good one."""
        self._counts[phase] += 1
        kind = self._faults.get((phase, self._counts[phase]), "")
        good = GOOD[phase] or self._extensions()
        if kind == "":
            await self._send(writer, good)
        elif kind == "close":
            raise _Ended
        elif kind == "reset":
            writer.transport.abort()
            raise _Ended
        elif kind == "stall":
            await asyncio.sleep(3600)
        elif kind == "garbage":
            await self._send(writer, b"\xff\xfe hello\r\n")
        elif kind == "nul":
            await self._send(writer, b"\0" + good)
        elif kind == "endless":
            for _ in range(2000):
                await self._send(writer, good[:3] + b"-" + b"more " * 20 + b"\r\n")
        elif kind == "huge_line":
            await self._send(writer, good[:3] + b" " + b"x" * 70_000 + b"\r\n")
        elif kind == "double":
            await self._send(writer, good + good)
        elif kind == "unsolicited":
            await self._send(writer, good + b"250 2.0.0 and one more\r\n")
        elif kind == "mixed_codes":
            await self._send(writer, b"250-yes\r\n550 no\r\n")
        elif kind == "4xx":
            await self._send(writer, b"451 4.3.0 later\r\n")
            return False
        elif kind == "5xx":
            await self._send(writer, b"550 5.0.0 never\r\n")
            self.refused.update(recipients or ["*"])
            return False
        elif kind == "421":
            await self._send(writer, b"421 4.3.2 going down\r\n")
            return False
        elif kind == "421_close":
            await self._send(writer, b"421 4.3.2 going down\r\n")
            raise _Ended
        elif kind == "2xx":
            await self._send(writer, b"250 2.0.0 Ok\r\n")
        elif kind == "bytewise":
            for i in range(len(good)):
                await self._send(writer, good[i : i + 1])
                await asyncio.sleep(0)
        else:
            raise ValueError(kind)
        return True

    def _extensions(self) -> bytes:
        lines = ["hostile.test", *self._others]
        if self._pipelining:
            lines.append("PIPELINING")
        if self._chunking:
            lines.append("CHUNKING")
        return "".join(f"250-{line}\r\n" for line in lines[:-1]).encode() + f"250 {lines[-1]}\r\n".encode()

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()


class _Ended(Exception):
    """The conversation is over."""
