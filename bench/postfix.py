"""Postfix as the comparison: relaying what smtp-source gives it to smtp-sink, on loopback, beside the engine.

    python -m bench.postfix [--messages 5000] [--sessions 20] [--repeats 3] [--directory DIR]

The unpacked Debian package is run with a configuration and queue of its own in a temporary folder,
started as a plain child process and ended after the run; the machine's own Postfix, if it has one, is
not touched. Its queue files are synced to disk as Postfix always does, so these figures are durable: put
`--directory` on the disk that the engine's spool is on. Logging goes to the machine's syslog socket, so
to nowhere if there is none, which favours Postfix.

`PostfixRelay` is for other benches that want the comparison in the same interleaved run. Needs root, as
Postfix does.
"""

import argparse
import grp
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.harness import (
    Measurement,
    Meter,
    Miscounted,
    await_count,
    by_pid,
    compare,
    print_results,
    write_result,
)
from bench.servers import TOOLS, environment, program
from bench.smtp_sink import SmtpSink, is_listening
from bench.smtp_source import end_source, start_source
from engine.ops.free_port import free_port

SIZES = (2048, 10240)
TIMEOUT_S = 300.0

# Accounts of every Debian system: Postfix wants a queue owner and a group that nothing else here uses.
OWNER, GROUP = "mail", "daemon"

_PRIVATE = (
    "active",
    "bounce",
    "corrupt",
    "defer",
    "deferred",
    "flush",
    "hold",
    "incoming",
    "private",
    "saved",
    "trace",
)

_MASTER = """\
127.0.0.1:{port} inet n - n - 100 smtpd
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
error     unix - - n - - error
retry     unix - - n - - error
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
"""

# What is not a default favours throughput: parallel deliveries from the start, and no slowing of the input
# while the queue grows.
_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {libexec}
command_directory = {sbin}
shlib_directory = {libraries}
import_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ LANG=C
mail_owner = {owner}
setgid_group = {group}
default_privs = nobody
myhostname = mta.example.com
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{sink}
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
initial_destination_concurrency = 20
in_flow_delay = 0
"""


def make_folders(folder: Path) -> None:
    """`etc`, `queue` and `data` of an instance, with the owners and modes that Postfix demands. Only root can."""
    etc, queue, data = (folder / name for name in ("etc", "queue", "data"))
    owner, group = pwd.getpwnam(OWNER).pw_uid, grp.getgrnam(GROUP).gr_gid
    for each in (etc, queue, data):
        each.mkdir(mode=0o755)
    os.chown(data, owner, -1)
    for name in _PRIVATE:
        (queue / name).mkdir(mode=0o700)
        os.chown(queue / name, owner, -1)
    for name, mode in (("public", 0o710), ("maildrop", 0o730)):
        (queue / name).mkdir()
        os.chown(queue / name, owner, group)
        (queue / name).chmod(mode)
    (queue / "pid").mkdir(mode=0o755)


class PostfixRelay:
    """A running Postfix that relays everything to a port on loopback; a context manager."""

    def __init__(self, sink_port: int, *, directory: Path | None = None) -> None:
        self.port = free_port()
        self._sink_port = sink_port
        self._parent = directory
        self._folder = Path()
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Postfix's master: all its processes are its children."""
        assert self._master is not None
        return self._master.pid

    def start(self) -> Self:
        """Returns when smtpd listens; raises NotInstalled, or RuntimeError with Postfix's own words."""
        if os.geteuid() != 0:
            raise RuntimeError("Postfix can only be started by root")
        master = program("master")
        self._folder = Path(tempfile.mkdtemp(prefix="postfix-", dir=self._parent or "/var/tmp"))
        self._folder.chmod(0o755)
        self._write_files()
        errors = (self._folder / "errors").open("wb")
        with errors:
            self._master = subprocess.Popen(
                [master, "-d", "-c", str(self._folder / "etc")],
                stdout=errors,
                stderr=errors,
                env=environment() | {"MAIL_CONFIG": str(self._folder / "etc")},
                start_new_session=True,
            )
        deadline = time.monotonic() + 10
        while not is_listening(self.port):
            if self._master.poll() is not None or time.monotonic() > deadline:
                words = (self._folder / "errors").read_text().strip()
                self.stop()
                raise RuntimeError(f"Postfix did not start: {words}")
            time.sleep(0.02)
        return self

    def _write_files(self) -> None:
        make_folders(self._folder)
        etc = self._folder / "etc"
        (etc / "master.cf").write_text(_MASTER.format(port=self.port))
        (etc / "main.cf").write_text(
            _MAIN.format(
                folder=self._folder,
                libexec=TOOLS / "usr/lib/postfix/sbin",
                sbin=TOOLS / "usr/sbin",
                libraries=TOOLS / "usr/lib/postfix",
                owner=OWNER,
                group=GROUP,
                sink=self._sink_port,
            )
        )

    def stop(self) -> None:
        if self._master is not None:
            self._master.send_signal(signal.SIGTERM)
            try:
                self._master.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._master.pid, signal.SIGKILL)
                self._master.wait()
            self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def run(relay: PostfixRelay, sink: SmtpSink, *, messages: int, size: int, sessions: int) -> Measurement:
    """From the first message offered to the last one at the sink; CPU is Postfix's alone."""
    sink.mark()
    begin = time.monotonic()
    with Meter(by_pid(relay.pid)) as meter:
        source = start_source(relay.port, messages=messages, size=size, sessions=sessions)
        end_source(source, timeout_s=TIMEOUT_S)
        accepted = time.monotonic()
        end = await_count(sink.messages, messages, timeout_s=TIMEOUT_S)
    return Measurement(messages, end - begin, meter.usage, {"accepted_per_s": messages / (accepted - begin)})


def verify(*, messages: int, sessions: int, directory: Path | None) -> None:
    """An untimed run with the messages kept: as many different ones as were sent, or Miscounted."""
    with SmtpSink(dump=True) as sink, PostfixRelay(sink.port, directory=directory) as relay:
        source = start_source(relay.port, messages=messages, size=2048, sessions=sessions)
        end_source(source, timeout_s=TIMEOUT_S)
        await_count(sink.messages, messages, timeout_s=TIMEOUT_S)
        unique = sink.unique()
    if len(unique) != messages or unique.total() != messages:
        raise Miscounted(messages, unique.total(), len(unique))


def main() -> None:
    parser = argparse.ArgumentParser(description="Postfix relaying to smtp-sink")
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    verify(messages=500, sessions=options.sessions, directory=options.directory)
    with SmtpSink() as sink, PostfixRelay(sink.port, directory=options.directory) as relay:
        runs = {
            f"postfix {size} B": lambda size=size: run(
                relay, sink, messages=options.messages, size=size, sessions=options.sessions
            )
            for size in SIZES
        }
        results = compare(runs, repeats=options.repeats)
    print_results("Postfix relaying to smtp-sink", results)
    settings = {name: value for name, value in vars(options).items() if name != "directory"}
    write_result("postfix", results, settings=settings, is_durable=True)


if __name__ == "__main__":
    main()
