"""A web server, for MTA-STS policies and TLS reports, that answers what a test has written; TLS on loopback."""

import asyncio
import re
import ssl

PATH = "/.well-known/mta-sts.txt"


def page(body: bytes, *, status: str = "200 OK", kind: str = "text/plain", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


class PolicyServer:
    """Listens on 127.0.0.1; use as an async context manager. `answer` may be changed; None: never answers."""

    def __init__(self, context: ssl.SSLContext, answer: bytes | None, *, keeps_open: bool = False) -> None:
        self._context = context
        self._keeps_open = keeps_open
        self.answer = answer
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.port = 0

    async def __aenter__(self) -> "PolicyServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            length = re.search(r"(?i)^Content-Length: ([0-9]+)", head, re.MULTILINE)
            self.bodies.append(await reader.readexactly(int(length[1]) if length else 0))
            if self.answer is None:
                await asyncio.sleep(3600)
                return
            writer.write(self.answer)
            await writer.drain()
            if self._keeps_open:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
