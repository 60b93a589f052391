"""A sink in a process of its own, as demos, tests, benches and drills use it.

`python -m engine.sink` prints one JSON line, {personality: [host, port]}, when every port listens;
`SinkProcess` starts it, waits for that line, and stops or kills it. `restart()` after `kill()` takes the
same ports and goes on with the same log.
"""

import json
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.ops.own_module import own_module
from engine.sink.log import SinkLog

START_TIMEOUT_S = 20.0


class SinkProcess:
    """Use as a context manager, or call `start` and `stop`."""

    def __init__(self, config_path: Path | None, log_path: Path, *, only: Sequence[str] = ()) -> None:
        self._config_path = config_path
        self.log_path = log_path
        self._only = only
        self._process: subprocess.Popen[str] | None = None
        self.addresses: dict[str, tuple[str, int]] = {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Returns when every port listens; raises RuntimeError with the sink's own words if it does not
        start.
        """
        command = [*own_module("engine.sink"), "--log", str(self.log_path)]
        if self._config_path is not None:
            command += ["--config", str(self._config_path)]
        for name in self._only:
            port = self.addresses.get(name, ("", 0))[1]
            command += ["--only", name if not port else f"{name}={port}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        line = ""
        if select.select([process.stdout], [], [], START_TIMEOUT_S)[0]:
            line = process.stdout.readline()
        if not line:
            process.kill()
            raise RuntimeError(f"the sink did not start: {process.stderr.read().strip()}")
        self.addresses = {name: (host, port) for name, (host, port) in json.loads(line).items()}
        return self

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Start again on the ports of before."""
        self._only = tuple(self.addresses)
        return self.start()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def log(self) -> SinkLog:
        return SinkLog(self.log_path)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
