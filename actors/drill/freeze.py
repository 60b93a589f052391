"""A process that is stopped (SIGSTOP) and goes on, whatever becomes of the command that stopped it.

    freeze = Freeze(pid, limit_s=15)
    freeze.begin()
    ...
    freeze.end()

A second process, the watch, in a session of its own, so that no signal of a terminal reaches it, is there before the
first is stopped. It sends SIGCONT when the pipe from the command closes (the command has ended, was killed, lost its
terminal), when it is told to end itself, and at the latest `limit_s` after it began, for a command that is stopped or
hangs. Both hold a file descriptor of the process (pidfd): should the process end, no other that gets its number is
met. Only SIGKILL of both command and watch leaves the process stopped. The watch is nobody's child: a worker of Ray
that ends kills its own children first.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

from actors.undertaker import MARK
from engine.ops.own_module import own_module

TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # who has it is a process of the fleet; the watch is none
START_S = 60.0
END_S = 10.0


class Freeze:
    """Of one process, once. OSError: there is no such process (ProcessLookupError), or the watch does not start.

    `watch_pid`: the process id of the watch.
    """

    def __init__(self, pid: int, limit_s: float) -> None:
        self.limit_s = limit_s
        self._victim = os.pidfd_open(pid)
        try:
            self._start()
        except BaseException:
            os.close(self._victim)
            raise

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in (MARK, TOKEN_PATH)}
        launcher = subprocess.Popen(
            [*own_module("actors.drill.freeze"), str(self._victim), f"{self.limit_s}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._victim,),
            start_new_session=True,
            env=environment,
        )
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        self._to_watch, self._from_watch = launcher.stdin, launcher.stdout
        status = launcher.wait(START_S)
        said = self._from_watch.readline().split()  # the end of the pipe, if neither lives
        if said[:1] != [b"ready"]:
            self._close()
            raise ChildProcessError(f"the process that would end the freeze does not start (status {status})")
        self.watch_pid = int(said[1])

    def begin(self) -> None:
        """Stop it. ProcessLookupError: it has ended."""
        signal.pidfd_send_signal(self._victim, signal.SIGSTOP)

    def has_ended(self) -> bool:
        """Whether the watch has ended it: the time was over, or it was told to."""
        return self._from_watch.closed or self._watch_ends_within(0.0)

    def _watch_ends_within(self, seconds: float) -> bool:
        """Its end of the pipe closes; it says nothing more before."""
        readable, _, _ = select.select([self._from_watch], [], [], seconds)
        return bool(readable)

    def end(self) -> None:
        """Let it go on. ProcessLookupError: it has ended meanwhile. TimeoutError: the watch does not end."""
        try:
            signal.pidfd_send_signal(self._victim, signal.SIGCONT)
        finally:
            os.close(self._victim)
            self._to_watch.close()
            has_ended = self._watch_ends_within(END_S)
            self._from_watch.close()
        if not has_ended:
            raise TimeoutError(f"the process {self.watch_pid}, which watched the freeze, does not end")

    def _close(self) -> None:
        self._to_watch.close()
        self._from_watch.close()


def watch(victim: int, limit_s: float) -> None:
    """Until standard input ends, or the time is over, or a signal comes; then SIGCONT."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        print("ready", os.getpid(), flush=True)
        select.select([sys.stdin], [], [], limit_s)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(victim, signal.SIGCONT)


if __name__ == "__main__":
    if os.fork() == 0:  # the parent ends at once
        os.setsid()
        watch(int(sys.argv[1]), float(sys.argv[2]))
