"""Postfix's smtp-sink in its own process, and how its deliveries are counted.

smtp-sink is fast because it keeps nothing: with `-c` it prints a running number of messages, and it knows
no ids. Three ways of counting follow from that, and benches use the first two together:

1. Every timed run compares smtp-sink's own number with the number accepted (`messages`). The engine's
   audit then says that each of the N ids was delivered, by a 250 that only smtp-sink can have given; as the
   sink counted N messages in all (not recipients: throughput benches send one recipient per transaction),
   none of them came twice. So equal numbers are unique deliveries.
2. The first run of a bench, or a run beside it, has `dump=True`: smtp-sink writes every message to
   memory-backed files, and `unique` counts the different (id, recipient) pairs of the text itself. This
   costs the sink about 40 % of its speed, so such a run is checked and not timed.
3. `python -m engine.sink` counts ids itself at about 30,000 messages of 2 KB per second and is used where
   smtp-sink cannot be (CHUNKING, several recipients per transaction).
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.servers import environment, program, switch_user
from engine.ops.free_port import free_port

BACKLOG = 1000
_COUNT = re.compile(rb"mesg=(\d+)")
_HEADERS = re.compile(
    rb"^(?:X-Rcpt-Args:[ ]*<?(?P<recipient>[^>\r\n]*)"
    rb"|(?P<name>X-Sendfleet-ID|Message-ID):[ ]*(?P<id>[^\r\n]*?)[ ]*\r?$)",
    re.IGNORECASE | re.MULTILINE,
)


class SmtpSink:
    """A running smtp-sink on 127.0.0.1; a context manager."""

    def __init__(self, *, port: int = 0, dump: bool = False, options: tuple[str, ...] = ()) -> None:
        self.port = port or free_port()
        self._dump = dump
        self._options = options
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._before = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Returns when it listens; raises NotInstalled, or RuntimeError with its own words."""
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="smtp-sink-", dir=memory if memory.is_dir() else None))
        self._folder.chmod(0o777)
        command = [program("smtp-sink"), *switch_user(), "-c", *self._options]
        if self._dump:
            command += ["-D", str(self._folder / "dump")]
        with (self._folder / "count").open("wb") as count, (self._folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, self.address, str(BACKLOG)], stdout=count, stderr=errors, env=environment()
            )
        deadline = time.monotonic() + 10
        while not is_listening(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = (self._folder / "errors").read_text().strip()
                self.stop()
                raise RuntimeError(f"smtp-sink did not start: {words}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def total(self) -> int:
        """Messages taken since the start, by smtp-sink's own counter."""
        with (self._folder / "count").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 200))
            counts = _COUNT.findall(file.read())
        return int(counts[-1]) if counts else 0

    def messages(self) -> int:
        """Messages taken since the last `mark`."""
        return self.total() - self._before

    def mark(self) -> None:
        """Begin a run: `messages` counts from here."""
        self._before = self.total()

    def dumped(self) -> bytes:
        """All that came; needs `dump=True`."""
        return (self._folder / "dump").read_bytes()

    def unique(self) -> Counter[tuple[bytes, bytes]]:
        """How often each (id, recipient) came; needs `dump=True`. Call when the sessions have ended."""
        found: Counter[tuple[bytes, bytes]] = Counter()
        recipients: list[bytes] = []
        ids: dict[bytes, bytes] = {}

        def close() -> None:
            id_ = ids.get(b"x-sendfleet-id") or ids.get(b"message-id") or b""
            for recipient in recipients:
                found[(id_, recipient)] += 1
            recipients.clear()
            ids.clear()

        for match in _HEADERS.finditer(self.dumped()):
            if match["name"] is not None:
                ids.setdefault(match["name"].lower(), match["id"])
            else:
                if ids:
                    close()
                recipients.append(match["recipient"])
        close()
        return found


def is_listening(port: int) -> bool:
    """Looks at the kernel's table: a probing connection would be counted as a session."""
    wanted = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == wanted and fields[3] == "0A":
            return True
    return False
