"""A raw SMTP client and a sink process for the tests of the sink."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from engine.sink import SinkProcess


@contextmanager
def sink(folder: Path, **personalities: object) -> Iterator[SinkProcess]:
    """A running sink with these personalities (mappings as in the YAML file), its log in `folder`."""
    config = folder / "personalities.yaml"
    config.write_text(yaml.safe_dump({"personalities": personalities}))
    with SinkProcess(config, folder / "log.jsonl") as process:
        yield process


class RawClient:
    """Sends bytes, reads replies: [(code, text)], multi-line replies joined with newlines."""

    def __init__(self, address: tuple[str, int], *, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(address, timeout=10, source_address=(source, 0))
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> tuple[int, str]:
        """The next reply; (0, "") when the server has closed."""
        lines = []
        while True:
            try:
                line = self._file.readline().decode()
            except ConnectionResetError:
                line = ""
            if not line:
                return 0, ""
            lines.append(line[4:].rstrip("\r\n"))
            if line[3] == " ":
                return int(line[:3]), "\n".join(lines)

    def codes(self, count: int) -> list[int]:
        return [self.reply()[0] for _ in range(count)]

    def say(self, text: str) -> tuple[int, str]:
        self.send(text.encode() + b"\r\n")
        return self.reply()

    def greet(self) -> str:
        """Greeting and EHLO; returns the EHLO reply."""
        assert self.reply()[0] == 220
        code, text = self.say("EHLO client.test")
        assert code == 250
        return text

    def mail(
        self, recipient: str = "b@example.test", *, id: str = "1", sender: str = "a@example.test"
    ) -> list[int]:
        """One message, one command at a time, until the first that is refused; its codes."""
        codes = []
        for line in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA"):
            codes.append(self.say(line)[0])
            if codes[-1] not in (250, 354):
                return codes
        codes.append(self.say(f"X-Sendfleet-ID: {id}\r\nSubject: x\r\n\r\nbody\r\n.")[0])
        return codes

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
