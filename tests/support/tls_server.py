"""An SMTP server whose STARTTLS does what a test says; otherwise it takes mail as a good server would."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field


@dataclass
class TlsServer:
    """`starttls`: good, absent, declined (454), injected (plaintext behind the 220), closed (after the 220), garbage
    (instead of a handshake). `extensions`: what EHLO offers over TLS besides.
    """

    context: ssl.SSLContext | None
    starttls: str = "good"
    extensions: tuple[str, ...] = ()
    port: int = 0
    messages: list[bytes] = field(default_factory=list)
    plain_commands: list[bytes] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    handshakes: int = 0

    async def __aenter__(self) -> "TlsServer":
        if self.context is not None:
            self.context.sni_callback = lambda _, name, __: self.server_names.append(name)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._converse(reader, writer)
        with contextlib.suppress(OSError):
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = False
        writer.write(b"220 tls.test ESMTP\r\n")
        while line := await reader.readline():
            verb = line.split()[0].upper().partition(b":")[0]
            if not secure:
                self.plain_commands.append(line)
            if verb == b"EHLO":
                offered = list(self.extensions) if secure else []
                if not secure and self.starttls != "absent":
                    offered.append("STARTTLS")
                lines = ["tls.test", *offered]
                text = "".join(f"250-{one}\r\n" for one in lines[:-1]) + f"250 {lines[-1]}\r\n"
                writer.write(text.encode())
            elif verb == b"STARTTLS":
                if not await self._start_tls(writer):
                    return
                secure = secure or self.starttls == "good"
            elif verb == b"DATA":
                writer.write(b"354 go ahead\r\n")
                self.messages.append(await reader.readuntil(b"\r\n.\r\n"))
                writer.write(b"250 2.0.0 Ok\r\n")
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 Bye\r\n")
                return
            else:
                writer.write(b"250 2.0.0 Ok\r\n")
            await writer.drain()

    async def _start_tls(self, writer: asyncio.StreamWriter) -> bool:
        if self.starttls == "declined":
            writer.write(b"454 4.7.0 TLS not available\r\n")
            return True
        behind = {"injected": b"250 injected\r\n", "garbage": b""}.get(self.starttls, b"")
        writer.write(b"220 2.0.0 go ahead\r\n" + behind)
        await writer.drain()
        if self.starttls == "garbage":
            await asyncio.sleep(0.005)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
        if self.starttls != "good" or self.context is None:
            return False
        await writer.start_tls(self.context)
        self.handshakes += 1
        return True
