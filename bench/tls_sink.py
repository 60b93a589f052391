"""A sink that speaks TLS, in its own process: takes everything, counts messages and recipients, keeps nothing.

    python -m bench.tls_sink CERTIFICATE_AND_KEY.pem

smtp-sink knows no STARTTLS, and engine.sink costs more per message than the engine it is to measure. This one looks for
the end of the message and nothing else. It prints its port, then answers on its standard output each line of its
standard input: `count` with messages and different recipients since the last `mark`.
"""

import asyncio
import json
import ssl
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

END = b"\r\n.\r\n"


class _Counts:
    messages = 0
    recipients: set[bytes]


class _Sink(asyncio.Protocol):
    """One connection."""

    def __init__(self, context: ssl.SSLContext, counts: _Counts) -> None:
        self._context = context
        self._counts = counts
        self._transport: Any = None
        self._held = b""
        self._in_message = False
        self._secure = False
        self._upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(b"220 sink.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        held = self._held + data if self._held else data
        position = 0
        answers: list[bytes] = []
        while True:
            if self._in_message:
                end = held.find(END, position)
                if end < 0:
                    break
                position = end + len(END)
                self._in_message = False
                self._counts.messages += 1
                answers.append(b"250 2.0.0 Ok\r\n")
                continue
            end = held.find(b"\n", position)
            if end < 0:
                break
            line = held[position : end + 1]
            position = end + 1
            if not self._command(line, answers):
                break
        self._held = held[position:]
        if answers:
            self._transport.write(b"".join(answers))

    def _command(self, line: bytes, answers: list[bytes]) -> bool:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self._counts.recipients.add(line)
            answers.append(b"250 2.1.5 Ok\r\n")
        elif verb == b"DATA":
            self._in_message = True
            answers.append(b"354 go ahead\r\n")
        elif verb == b"EHLO":
            offer = b"" if self._secure else b"250-STARTTLS\r\n"
            answers.append(b"250-sink.test\r\n" + offer + b"250-8BITMIME\r\n250 PIPELINING\r\n")
        elif verb == b"STAR":
            self._transport.pause_reading()  # the handshake must not be read as commands
            self._transport.write(b"220 2.0.0 go ahead\r\n")
            self._upgrade = asyncio.get_running_loop().create_task(self._start_tls())
            return False
        elif verb == b"QUIT":
            self._transport.write(b"".join([*answers, b"221 2.0.0 Bye\r\n"]))
            answers.clear()
            self._transport.close()
        else:
            answers.append(b"250 2.0.0 Ok\r\n")
        return True

    async def _start_tls(self) -> None:
        self._secure = True
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, self._context, server_side=True)


async def _serve(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    counts = _Counts()
    counts.recipients = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Sink(context, counts), "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = loop.create_future()

    def asked() -> None:
        line = sys.stdin.readline()
        if not line:
            loop.remove_reader(sys.stdin.fileno())
            ended.set_result(None)
        elif line.strip() == "mark":
            counts.messages, counts.recipients = 0, set()
            print(json.dumps([0, 0]), flush=True)
        else:
            print(json.dumps([counts.messages, len(counts.recipients)]), flush=True)

    loop.add_reader(sys.stdin.fileno(), asked)
    await ended


class TlsSink:
    """The process, seen from a bench; a context manager."""

    def __init__(self, certificate: Path) -> None:
        self._certificate = certificate
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.tls_sink", str(self._certificate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the TLS sink did not start (exit status {self._process.wait()})")
        self.port = int(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(10)

    def _ask(self, what: str) -> tuple[int, int]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        messages, recipients = json.loads(self._process.stdout.readline())
        return messages, recipients

    def mark(self) -> None:
        """Begin a run."""
        self._ask("mark")

    def messages(self) -> int:
        """Messages since the last `mark`."""
        return self._ask("count")[0]

    def recipients(self) -> int:
        """Different recipients since the last `mark`."""
        return self._ask("count")[1]


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
