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
BY_ITSELF = b"by itself\n"


class Freeze:
    """Of one process, once; `end` it in any case, also if it was not begun.

    ProcessLookupError: there is no such process. ChildProcessError: the watch does not start.

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
        try:
            status = launcher.wait(START_S)
        except subprocess.TimeoutExpired:
            launcher.kill()
            self._close()
            launcher.wait()
            raise ChildProcessError(
                f"the process that would end the freeze needs over {START_S:g} s"
            ) from None
        said = self._from_watch.readline().split()  # the end of the pipe, if neither lives
        if said[:1] != [b"ready"]:
            self._close()
            raise ChildProcessError(f"the process that would end the freeze does not start (status {status})")
        self.watch_pid = int(said[1])

    def begin(self) -> None:
        """Stop it. ProcessLookupError: it has ended."""
        signal.pidfd_send_signal(self._victim, signal.SIGSTOP)

    def end(self) -> str:
        """Let it go on. Returns what is to be told of it, "" if there is nothing."""
        told = ""
        try:
            signal.pidfd_send_signal(self._victim, signal.SIGCONT)
        except ProcessLookupError:
            told = "the frozen process has ended before it was continued"
        os.close(self._victim)
        self._to_watch.close()
        return self._what_the_watch_did() or told

    def _what_the_watch_did(self) -> str:
        """It says so before it lets the process go on by itself, and its end of the pipe closes in any case."""
        end = select.poll()
        end.register(self._from_watch, select.POLLIN | select.POLLHUP)
        has_ended = bool(end.poll(END_S * 1e3))
        said = self._from_watch.read(len(BY_ITSELF)) if has_ended else b""
        self._from_watch.close()
        if said == BY_ITSELF:
            return f"it was continued before the drill did, at the latest after {self.limit_s:g} s"
        return "" if has_ended else f"process {self.watch_pid}, which watched the freeze, does not end"

    def _close(self) -> None:
        self._to_watch.close()
        self._from_watch.close()


def watch(victim: int, limit_s: float) -> None:
    """Until standard input ends, or the time is over, or a signal comes; then SIGCONT."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    is_told = False
    try:
        print("ready", os.getpid(), flush=True)
        is_told = bool(select.select([sys.stdin], [], [], limit_s)[0])
    finally:
        if not is_told:
            with suppress(OSError):  # nobody may be there to read it
                os.write(sys.stdout.fileno(), BY_ITSELF)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(victim, signal.SIGCONT)


if __name__ == "__main__":
    if os.fork() == 0:  # the parent ends at once
        os.setsid()
        watch(int(sys.argv[1]), float(sys.argv[2]))
