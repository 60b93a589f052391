"""A second process beside Fleet's, which kills it if it hangs; then Ray makes Fleet again, as after any other death.

    await Witness().run()  # as a task on the loop that is to be watched

The loop writes into a pipe as long as it goes on; the witness reads it, and kills the process after `SILENT_LOOKS`
looks in a row at an empty one. They are on one machine and need neither Ray nor a network, so nobody is killed for
being cut off. Looks are counted, not seconds: a witness that was frozen, with the machine or alone, has not looked
meanwhile. A process that waits for its disk is left alone. If the process ends, so does the pipe, and the witness; if
the witness ends, another is started, also if it hangs itself and the pipe is full.

Does not import Ray.
"""

import asyncio
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

from engine.ops.own_module import own_module
from engine.ops.process import waits_for_disk

log = logging.getLogger(__name__)

LOOK_S = 0.5
SILENT_LOOKS = 10  # five seconds; Fleet's loop does nothing that takes a tenth of that
SIGNS_PER_LOOK = 2
PIPE_BYTES = 4096  # one page: full after a quarter of an hour
READ_BYTES = 65536
PAUSE_S = 5.0  # before another witness is started
SIGN = b"."


class Witness:
    """See the module docstring. Picklable."""

    def __init__(self, look_s: float = LOOK_S) -> None:
        self._look_s = look_s

    async def run(self) -> None:
        """For ever: have this process watched, and its loop say that it goes on."""
        while True:
            try:
                process = self._start()
            except OSError as error:
                log.error("no witness: if this process hangs, nobody ends it: %s", error)
            else:
                try:
                    await self._sign(process)
                finally:
                    _end(process)
            await asyncio.sleep(PAUSE_S)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [*own_module("actors.witness"), str(os.getpid()), str(self._look_s)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)

    async def _sign(self, process: subprocess.Popen[bytes]) -> None:
        """Returns when the witness is of no use any more."""
        assert process.stdin is not None
        pipe = process.stdin.fileno()
        os.set_blocking(pipe, False)
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        while True:
            try:
                os.write(pipe, SIGN)
            except (BrokenPipeError, BlockingIOError) as error:
                log.warning("witness %d is replaced: %s", process.pid, error)
                return
            await asyncio.sleep(self._look_s / SIGNS_PER_LOOK)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.kill()
    process.stdin.close()
    process.wait()


def watch(pid: int, look_s: float) -> None:
    """Returns when that process, whose child this is, has ended, or was killed because it hangs."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        if os.getppid() != pid:
            return  # it has ended before, and the number is somebody else's
        silent_looks = 0
        while silent_looks < SILENT_LOOKS or waits_for_disk(pid):
            readable, _, _ = select.select([sys.stdin], [], [], look_s)
            if readable and not os.read(sys.stdin.fileno(), READ_BYTES):
                return
            silent_looks = 0 if readable else silent_looks + 1
        seconds = SILENT_LOOKS * look_s
        print(f"process {pid} hangs: no sign of life for {seconds:g} s; it is killed", file=sys.stderr)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
