"""What every benchmark shares: the use of processes, interleaved repeats, medians, and the JSON result.

A bench file defines `main()`, builds named runs (callables that return a `Measurement`) and gives them
to `compare`, which runs them in turn, round by round, so that a slow minute of the machine falls on all
of them alike. A run that finds another number of unique deliveries at its sink than was accepted raises
`Miscounted`: a wrong run has no speed.

CPU seconds and memory are those of whole process trees, sampled (`Meter`): the roots and all their
descendants, and the processes of a Ray session (`ray_processes`), whose daemons are nobody's children. A
process that lives shorter than the sampling interval and is not waited for by one of the tree escapes;
so does what a process used between its last sample and its death.
"""

import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
SAMPLE_S = 0.25

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Miscounted(Exception):
    """The sink's unique deliveries are not what was accepted."""

    def __init__(self, accepted: int, delivered: int, unique: int) -> None:
        super().__init__(accepted, delivered, unique)
        self.accepted = accepted
        self.delivered = delivered
        self.unique = unique

    def __str__(self) -> str:
        return f"accepted {self.accepted}, delivered {self.delivered}, of these unique {self.unique}"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and peak memory of a set of processes over a run.

    `peak_rss` counts a page shared by two processes twice; `peak_private` (resident less shared) counts
    none that is shared, so neither the pages of a memory-mapped spool. `cpu_of` is by process name,
    largest first.
    """

    cpu_s: float
    peak_rss: int
    peak_private: int
    cpu_of: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run. `figures` are further numbers with their unit in the name, as in `p99_ms`."""

    messages: int
    seconds: float
    usage: Usage | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_per_1000(self) -> float | None:
        return None if self.usage is None else self.usage.cpu_s / self.messages * 1000


@dataclass(slots=True)
class _Seen:
    """CPU of one process and of the children it has waited for, at first and at last."""

    name: str
    parent: int
    own_first_s: float
    waited_first_s: float
    own_s: float
    waited_s: float

    @property
    def own_used_s(self) -> float:
        return self.own_s - self.own_first_s

    @property
    def used_s(self) -> float:
        return self.own_used_s + self.waited_s - self.waited_first_s


class Meter:
    """Samples process trees between `start` and `stop` (or as a context manager, then `usage`).

    `roots` is called at every sample, so processes that start later are found; `exclude` names
    processes, with all their descendants, that are not to be counted (the load, the sink).
    """

    def __init__(
        self,
        roots: Callable[[], Iterable[psutil.Process]],
        *,
        exclude: Collection[int] = (),
        interval_s: float = SAMPLE_S,
    ) -> None:
        self._roots = roots
        self._exclude = frozenset(exclude)
        self._interval_s = interval_s
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._alive: set[tuple[int, int]] = set()
        self._peak_rss = 0
        self._peak_private = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.usage: Usage | None = None

    def start(self) -> Self:
        self._sample(is_first=True)
        self._thread = threading.Thread(target=self._loop, name="meter", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> Usage:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample(is_first=False)
        cpu_of: dict[str, float] = {}
        for seen in self._seen.values():
            cpu_of[seen.name] = cpu_of.get(seen.name, 0.0) + seen.own_used_s
        ordered = dict(sorted(cpu_of.items(), key=lambda item: -item[1]))
        self.usage = Usage(self._cpu_s(), self._peak_rss, self._peak_private, ordered)
        return self.usage

    def _cpu_s(self) -> float:
        """The tree's CPU seconds, each counted once.

        The kernel adds what a child used to its parent when the parent waits for it. That sum is exact where
        the sampling of a child that died is not, so it is taken instead, less what the child had used before
        the run. A parent that ignores its children (SIGCHLD) gets no such sum: then the samples stand.
        """
        dead = {key: seen for key, seen in self._seen.items() if key not in self._alive}
        parents = {key[0]: key for key in self._seen}
        of_children: dict[tuple[int, int], list[_Seen]] = {}
        total = 0.0
        for key, seen in self._seen.items():
            parent = parents.get(seen.parent)
            if key in dead and parent is not None:
                of_children.setdefault(parent, []).append(seen)
            else:
                total += seen.own_used_s
        for key, seen in self._seen.items():
            children = of_children.get(key, ())
            before_s = sum(child.own_first_s + child.waited_first_s for child in children)
            exact_s = seen.waited_s - seen.waited_first_s - before_s
            total += max(exact_s, sum(child.used_s for child in children))
        return total

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample(is_first=False)

    def _sample(self, *, is_first: bool) -> None:
        rss = private = 0
        self._alive = set()
        for process in process_tree((root.pid for root in self._roots()), exclude=self._exclude):
            key = (process.pid, process.started)
            self._alive.add(key)
            seen = self._seen.get(key)
            if seen is None:
                first = (process.own_s, process.waited_s) if is_first else (0.0, 0.0)
                self._seen[key] = _Seen(process.name, process.parent, *first, process.own_s, process.waited_s)
            else:
                seen.own_s, seen.waited_s = process.own_s, process.waited_s
            rss += process.rss
            private += max(0, process.rss - _shared(process.pid))
        self._peak_rss = max(self._peak_rss, rss)
        self._peak_private = max(self._peak_private, private)


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc/PID/stat. `started`, in ticks since boot, and pid name a process for good."""

    pid: int
    name: str
    parent: int
    started: int
    own_s: float
    waited_s: float
    rss: int


def process_tree(roots: Iterable[int], *, exclude: Collection[int] = ()) -> list[Process]:
    """The roots and their descendants, each once, without the excluded ones and what is below them.

    /proc is read directly: psutil takes ten times as long, which would show in what is measured.
    """
    processes = {process.pid: process for process in map(_read_stat, _pids()) if process is not None}
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, Process] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid in processes and pid not in found and pid not in exclude:
            found[pid] = processes[pid]
            waiting.extend(children.get(pid, ()))
    return list(found.values())


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read_stat(pid: int) -> Process | None:
    """proc(5): fields 4 parent, 14 to 17 CPU in ticks, 22 start, 24 resident pages; the name has blanks."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b") ")
    except OSError:
        return None
    fields = tail.split()
    utime, stime, cutime, cstime = map(int, fields[11:15])
    return Process(
        pid,
        head.partition(b"(")[2].decode("utf-8", "replace"),
        int(fields[1]),
        int(fields[19]),
        (utime + stime) / _TICKS,
        (cutime + cstime) / _TICKS,
        int(fields[21]) * _PAGE,
    )


def _shared(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[2]) * _PAGE
    except OSError:
        return 0


def by_pid(*pids: int) -> Callable[[], list[psutil.Process]]:
    """Roots for a Meter: these processes, as long as they live."""
    known = [psutil.Process(pid) for pid in pids]
    return lambda: [process for process in known if process.is_running()]


def ray_processes(session: str) -> list[psutil.Process]:
    """The daemons of a Ray session (`session_...` or its temp directory), whose children are its workers.

    Daemons name their session in their command line; workers rename themselves, but are children of the
    raylet.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if any(session in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def ours(*, sessions: Sequence[str] = (), pids: Sequence[int] = ()) -> Callable[[], list[psutil.Process]]:
    """Roots for a Meter of everything of ours: this process, `pids`, and the daemons of these Ray sessions.

    The daemons are looked for once a second: they are few and long-lived, and the look reads every
    command line.
    """
    fixed = by_pid(os.getpid(), *pids)
    state: dict[str, float] = {"next": 0.0}
    daemons: list[psutil.Process] = []

    def roots() -> list[psutil.Process]:
        if sessions and time.monotonic() >= state["next"]:
            state["next"] = time.monotonic() + 1.0
            daemons[:] = [process for session in sessions for process in ray_processes(session)]
        return fixed() + daemons

    return roots


Run = Callable[[], Measurement]


def compare(runs: Mapping[str, Run], *, repeats: int = 3) -> dict[str, list[Measurement]]:
    """Each run once per round, in the given order, `repeats` rounds."""
    results: dict[str, list[Measurement]] = {name: [] for name in runs}
    console = Console(stderr=True)
    for number in range(1, repeats + 1):
        for name, run in runs.items():
            measurement = run()
            results[name].append(measurement)
            console.print(f"{number}/{repeats} {name}: {measurement.rate:,.0f} messages/s", highlight=False)
    return results


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of the repeats."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(of: Sequence[Measurement], to: Sequence[Measurement]) -> dict[str, object]:
    """How two runs of the same rounds compare: medians and spreads of each round's rate and CPU divided by the other's.

    Rounds, not medians, are divided: what the machine was doing in a round falls on both of its runs.
    """
    found: dict[str, object] = {
        "rate": asdict(spread([one.rate / other.rate for one, other in zip(of, to, strict=True)]))
    }
    costs = [
        one.cpu_per_1000 / other.cpu_per_1000
        for one, other in zip(of, to, strict=True)
        if one.cpu_per_1000 and other.cpu_per_1000
    ]
    if costs:
        found["cpu_per_message"] = asdict(spread(costs))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-share * len(ordered) // 1)
    return ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]


def summary(measurements: Sequence[Measurement]) -> dict[str, object]:
    """The medians and spreads of one run's repeats, and the repeats themselves."""
    result: dict[str, object] = {
        "messages_per_s": asdict(spread([m.rate for m in measurements])),
        "repeats": [asdict(m) for m in measurements],
    }
    used = [m for m in measurements if m.usage is not None]
    if used:
        costs = [m.cpu_per_1000 for m in used if m.cpu_per_1000 is not None]
        result["cpu_s_per_1000"] = asdict(spread(costs))
        result["peak_rss_mib"] = asdict(
            spread([m.usage.peak_rss / 2**20 for m in used if m.usage is not None])
        )
    for name in measurements[0].figures:
        result[name] = asdict(spread([m.figures[name] for m in measurements]))
    return result


def write_result(
    name: str,
    results: Mapping[str, Sequence[Measurement]],
    *,
    settings: Mapping[str, object],
    is_durable: bool,
    further: Mapping[str, object] | None = None,
) -> Path:
    """Write bench/results/<name>.json: settings, summaries, commit, machine, what is `further`. Returns its path.

    Durable and non-durable figures never share a file, but for a yardstick that `settings` name: `is_durable` says
    which these are.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "bench": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "durable": is_durable,
        "settings": dict(settings),
        "results": {run: summary(list(measurements)) for run, measurements in results.items()},
        **(further or {}),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def print_results(title: str, results: Mapping[str, Sequence[Measurement]]) -> None:
    """A table for people: medians, and the spread of the rate."""
    table = Table(title=title)
    for heading in ("run", "messages/s", "least", "most", "CPU s per 1,000", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for name, measurements in results.items():
        rates = spread([m.rate for m in measurements])
        costs = [m.cpu_per_1000 for m in measurements if m.cpu_per_1000 is not None]
        peaks = [m.usage.peak_rss / 2**20 for m in measurements if m.usage is not None]
        table.add_row(
            name,
            f"{rates.median:,.0f}",
            f"{rates.least:,.0f}",
            f"{rates.most:,.0f}",
            f"{spread(costs).median:.3f}" if costs else "",
            f"{spread(peaks).median:,.0f}" if peaks else "",
        )
    Console().print(table)


def commit() -> str:
    """The commit that is measured, "+changes" if tracked files differ; "" outside a repository."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        is_dirty = bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", "engine", "native", "actors")
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if is_dirty else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> dict[str, object]:
    """What the figures depend on; no host name."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def await_count(count: Callable[[], int], expected: int, *, timeout_s: float, still_s: float = 0.2) -> float:
    """Poll until `count()` reaches `expected`; returns the monotonic time at which it was first seen there.

    Then looks once more after `still_s`, so that an excess shows. Raises Miscounted on time-out or excess.
    """
    deadline = time.monotonic() + timeout_s
    while (seen := count()) < expected:
        if time.monotonic() > deadline:
            raise Miscounted(expected, seen, seen)
        time.sleep(0.005)
    reached = time.monotonic()
    time.sleep(still_s)
    seen = count()
    if seen != expected:
        raise Miscounted(expected, seen, expected)
    return reached
