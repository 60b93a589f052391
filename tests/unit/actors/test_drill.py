"""What a drill does to a fleet and what it concludes, with a fleet that the test writes. No process is hit here."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from actors.drill.command import _only_drill
from actors.drill.cuts import Cut
from actors.drill.faults import FAULTS
from actors.drill.freeze import TOKEN_PATH
from actors.drill.machine import DrillMachine
from actors.drill.machines import Machine, Machines
from actors.drill.run import MIN_LIVE_ARRIVALS, _check_traffic, run_live
from actors.environment import TOKEN_FILE, run_directory
from engine.drill.figures import Arrival, Submission
from engine.drill.scenarios import SCENARIOS, DrillOptions, DrillRefused
from tests.support.fleets import fleet as configured

NO_PROCESS = 1 << 22  # Linux has none with such an id: a drill that goes too far here hits nothing
EU, US, HEAD, OTHER = (NO_PROCESS + n for n in (1, 2, 3, 4))


class Running:
    """A fleet whose regions and pools have these process ids."""

    def __init__(self) -> None:
        self.pids = {"eu": EU, "us": US}

    async def region(self, name: str) -> dict[str, int]:
        return {"pid": self.pids[name]}

    async def pools(self, region: str) -> dict[str, int]:
        return {"default.1": self.pids[region] + 20, "default.0": self.pids[region] + 10}


class Processes:
    """A machine that says of every process that it is the fleet's; `called` is what it was asked."""

    def __init__(self, where: str = "", *, behind_s: float = 0.0) -> None:
        self.where = where
        self.called: list[tuple[Any, ...]] = []
        self._behind_s = behind_s

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        self.called.append((method, *args))
        now_s = time.monotonic() - self._behind_s
        answers = {
            "head": HEAD,
            "clock": now_s,
            "freeze": now_s,
            "kill": now_s,
            "settled": (args[0] if args else 0, [], False),
            "audits": [],
            "resume": "",
            "clock_step_s": 0.0,
        }
        return args[0] if method == "own_pid" else answers.get(method)


def some_fleet(**changes: Any) -> Any:
    regions = [SimpleNamespace(name="eu"), SimpleNamespace(name="us")]
    sources = [SimpleNamespace(name=f"{region.name}-1", region=region.name) for region in regions]
    config = SimpleNamespace(regions=regions, sources=sources, fleet=SimpleNamespace(name="acme", replicas=1))
    arrivals = [Arrival(time.monotonic(), str(number), "us-1") for number in range(MIN_LIVE_ARRIVALS)]
    machine = Machine(Processes())

    async def nothing() -> list[str]:
        return []

    plain = {
        "is_live": True,
        "config": config,
        "running": Running(),
        "machines": Machines({"eu": machine, "us": machine}, machine),
        "arrivals": lambda: arrivals,
        "marked": set,
        "begin": nothing,
        "refresh": nothing,
    }
    return SimpleNamespace(**{**plain, **changes})


@pytest.mark.parametrize(
    ("scenario", "region", "target"),
    [
        ("pool-kill", None, f"pool default.0 of region us, process {US + 10}"),
        ("pool-kill", "eu", f"pool default.0 of region eu, process {EU + 10}"),
        ("region-kill", "eu", f"region eu, process {EU}"),
        ("region-freeze", None, f"region us, process {US}"),
        ("dns", "eu", f"region eu, process {EU}"),
        ("partition", "eu", f"region eu, process {EU}"),
        ("partition-in", None, f"region us, process {US}"),
        ("partition-out", "eu", f"region eu, process {EU}"),
        ("head-kill", None, f"the head of Ray, process {HEAD}"),
    ],
)
def test_it_says_what_it_will_hit_before_it_is_allowed_to(
    scenario: str, region: str | None, target: str
) -> None:
    said = []

    def confirm(what: str) -> None:
        said.append(what)
        raise PermissionError("no")

    options = DrillOptions(0.0, 0.0, 0.0, region)
    with pytest.raises(PermissionError):
        run_live(SCENARIOS[scenario], some_fleet(), options, print, confirm)
    assert said == [target]


def test_what_is_not_what_was_confirmed_any_more_is_left_alone() -> None:
    fleet = some_fleet()

    def confirm(_: str) -> None:
        fleet.running.pids["us"] = OTHER

    with pytest.raises(DrillRefused, match=f"region us, process {US} is now region us, process {OTHER}"):
        run_live(SCENARIOS["region-kill"], fleet, DrillOptions(0.0, 0.0, 0.0), print, confirm)


def test_a_live_fleet_with_too_little_traffic_is_refused_untouched() -> None:
    _check_traffic(MIN_LIVE_ARRIVALS, 5.0)
    few = [Arrival(0.0, str(number), "us-1") for number in range(MIN_LIVE_ARRIVALS - 1)]
    processes = Processes()
    machine = Machine(processes)
    fleet = some_fleet(arrivals=lambda: few, machines=Machines({"us": machine}, machine))
    with pytest.raises(DrillRefused, match=f"delivered {MIN_LIVE_ARRIVALS - 1} messages in 0 s"):
        run_live(SCENARIOS["region-kill"], fleet, DrillOptions(0.0, 0.0, 0.0), print, lambda _: None)
    assert processes.called == [("ready",), ("own_pid", US)], "looked up once, to be named"


DEAD_S, END_S = 110.0, 115.0


@pytest.mark.parametrize(
    ("times", "dead_s", "is_silent"),
    [
        ((100.0, 109.0, 110.5, 116.0), DEAD_S, True),
        ((100.0, 112.0), DEAD_S, False),
        ((100.0, 114.9), DEAD_S, False),
        ((100.0,), None, False),
        ((112.0,), DEAD_S, None),
        ((), DEAD_S, None),
    ],
)
def test_a_region_that_is_called_dead_sends_nothing(
    times: tuple[float, ...], dead_s: float | None, is_silent: bool | None
) -> None:
    """It was cut off at 105, called dead at 110 or never, and joined again at 115."""
    seen = [Arrival(at_s, str(at_s), "us-1") for at_s in times]
    others = [Arrival(at_s, "x", "eu-1") for at_s in (100.0, 112.0)]
    fault: Cut = FAULTS["partition"](some_fleet(arrivals=lambda: seen + others), SCENARIOS["partition"])
    fault.made_s = 105.0
    assert fault._is_silent(dead_s, END_S) is is_silent


def test_what_sends_nothing_is_part_of_the_verdict() -> None:
    """The region went on sending while it was called dead; it is back at once."""
    now_s = time.monotonic()
    seen = [Arrival(now_s + after_s, "x", "us-1") for after_s in (-20.0, -6.0)]
    fault: Any = FAULTS["partition"](some_fleet(arrivals=lambda: seen), SCENARIOS["partition"])
    fault.made_s = now_s - 10.0
    row = (now_s - 8.0, "us", "dead")

    async def transitions() -> list[tuple[float, str, str]]:
        return [row]

    async def snapshot() -> dict[str, Any]:
        cover = {"failover": {"standby_complete": True}}
        return {"regions": {"us": cover}, "standing": {"us": {"standing": "live"}}}

    fault.running.transitions, fault.running.snapshot = transitions, snapshot
    asyncio.run(fault.heal())
    assert fault.extra == {
        "a region that is called dead sends nothing": False,
        "it returns": True,
        "it accepts again": None,
    }


def test_what_fleet_does_not_say_is_not_measured_and_the_drill_goes_on() -> None:
    now_s = time.monotonic()
    seen = [Arrival(now_s - 20.0, "x", "us-1")]
    fault: Any = FAULTS["partition"](some_fleet(arrivals=lambda: seen), SCENARIOS["partition"])
    fault.made_s = now_s - 10.0

    async def transitions() -> list[tuple[float, str, str]]:
        raise ConnectionError("Fleet is away")

    async def is_live() -> bool:
        return True

    fault.running.transitions, fault._is_live = transitions, is_live
    asyncio.run(fault.heal())
    assert fault.extra == {
        "a region that is called dead sends nothing": None,
        "it returns": True,
        "it accepts again": None,
    }
    assert fault.notes == ["Fleet did not say when it called the region dead: Fleet is away"]


@pytest.mark.parametrize("scenario", ["region-kill", "region-freeze", "partition"])
def test_with_copies_it_is_detected_when_fleet_calls_the_region_dead(scenario: str) -> None:
    rows = [(90.0, "us", "dead"), (101.0, "eu", "dead"), (101.0, "us", "suspect"), (102.0, "us", "dead")]
    fault: Any = FAULTS[scenario](some_fleet(), SCENARIOS[scenario])
    fault.made_s = 100.0

    async def transitions() -> list[tuple[float, str, str]]:
        return rows

    fault.running.transitions = transitions
    assert asyncio.run(fault.is_detected())
    assert fault.noticed_s(105.0) == 102.0, "not when the drill saw it"
    rows.pop()
    assert not asyncio.run(fault.is_detected())


@pytest.mark.parametrize(
    ("health", "is_answered", "found"),
    [("up", True, (True, True)), ("down", False, (False, False)), ("up", False, (True, False))],
)
def test_a_region_that_was_hit_has_to_come_back(
    monkeypatch: pytest.MonkeyPatch, health: str, is_answered: bool, found: tuple[bool, bool]
) -> None:
    monkeypatch.setattr("actors.drill.fault.RETURN_S", 0.0)
    later_s = 1e9
    taken = [Submission(later_s, later_s, "us", ("a",))] if is_answered else []
    others = [Submission(later_s, later_s, "eu", ("b",)), Submission(0.0, 1.0, "us", ("c",))]

    async def answer() -> dict[str, str]:
        return {"eu": "up", "us": health}

    for scenario in ("region-freeze", "region-kill"):
        fault: Any = FAULTS[scenario](some_fleet(), SCENARIOS[scenario])
        fault.made_s = time.monotonic() - 60.0
        fault.fleet.config.fleet.replicas = 0
        fault.running.health = answer
        fault.load = SimpleNamespace(began_s=0.0, submissions=taken + others)
        asyncio.run(fault.heal())
        assert (fault.extra["the fleet sees it again"], fault.extra["it accepts again"]) == found
        fault.load = None
        asyncio.run(fault.heal())
        assert fault.extra["it accepts again"] is None, "the load is not the drill's own"


def test_a_process_that_is_none_of_the_fleets_is_not_hit(tmp_path: Path) -> None:
    config = configured(spool={"directory": str(tmp_path / "spool")})
    token = str(run_directory(config) / TOKEN_FILE)
    machine = DrillMachine(config.model_dump_json(), ["main"], token)
    program = "import time; print(flush=True); time.sleep(600)"
    started = []
    try:
        for extra in ({TOKEN_PATH: token}, {TOKEN_PATH: f"{token}-of-another"}, {}):
            environment = {k: v for k, v in os.environ.items() if k != TOKEN_PATH} | extra
            process = subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
            )
            started.append(process)
            assert process.stdout is not None
            process.stdout.readline()  # it runs, so its environment can be read
        ours, *others = (process.pid for process in started)
        assert machine.own_pid(ours) == ours
        for pid in (*others, os.getpid(), psutil.Process().ppid()):
            for hit in (machine.own_pid, machine.kill, lambda pid: machine.aim(pid, 1.0)):
                with pytest.raises(DrillRefused, match=f"process {pid} is none of this fleet's"):
                    hit(pid)
        assert all(process.poll() is None for process in started)
        machine.kill(ours)
        assert started[0].wait(60) == -signal.SIGKILL
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_machine_whose_fleet_has_no_token_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_PATH, raising=False)
    machine = DrillMachine(configured().model_dump_json(), ["eu"])
    for ask in (machine.ready, lambda: machine.own_pid(1), machine.head):
        with pytest.raises(DrillRefused, match="runs without RAY_AUTH_TOKEN_PATH"):
            ask()


@pytest.mark.parametrize("scenario", ["pool-kill", "region-kill", "region-freeze", "head-kill"])
def test_what_a_machine_refuses_is_not_healed(scenario: str) -> None:
    class Refusing(Processes):
        async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
            if method in ("kill", "freeze"):
                raise DrillRefused("it is none of this fleet's")
            return await super().call(method, *args, timeout_s=timeout_s)

    machine = Machine(Refusing())
    fleet = some_fleet(machines=Machines({"us": machine}, machine))
    fault: Any = FAULTS[scenario](fleet, SCENARIOS[scenario])

    async def make() -> None:
        await fault.find()
        await fault.make()

    async def snapshot() -> dict[str, Any]:
        return {"pid": 1, "regions": {}}

    fleet.running.snapshot = snapshot
    fleet.config.fleet.replicas = 0
    with pytest.raises(DrillRefused, match="none of this fleet's"):
        asyncio.run(make())
    assert not fault.made_s


@pytest.mark.parametrize("behind_s", [-1000.0, 0.0, 5000.0])
def test_times_of_another_machine_are_told_by_the_clock_of_this_one(behind_s: float) -> None:
    """Fleet's machine and the region's have been up for other times."""
    region = Processes(" on 192.0.2.7", behind_s=behind_s)
    machines = Machines(
        {"us": Machine(region)}, Machine(Processes(" on 192.0.2.1", behind_s=behind_s + 100.0))
    )
    fault: Any = FAULTS["region-kill"](some_fleet(machines=machines), SCENARIOS["region-kill"])

    async def transitions() -> list[tuple[float, str, str]]:
        fleet_s = time.monotonic() - behind_s - 100.0
        return [(fleet_s - 60.0, "us", "dead"), (fleet_s, "us", "dead")]

    async def snapshot() -> dict[str, Any]:
        cover = {"failover": {"standby_complete": True}}
        return {"regions": {"us": cover}, "standing": {"us": {"standing": "live"}}}

    fault.running.transitions, fault.running.snapshot = transitions, snapshot

    async def make() -> tuple[float, float, bool]:
        await machines.ready("us")
        await fault.find()
        before_s = time.monotonic()
        await fault.make()
        after_s = time.monotonic()
        return before_s, after_s, await fault.is_detected()

    before_s, after_s, is_detected = asyncio.run(make())
    assert fault.target == f"region us, process {US} on 192.0.2.7"
    assert ("kill", US) in region.called
    assert before_s <= fault.made_s <= after_s
    assert is_detected
    assert after_s <= fault.noticed_s(float("inf")) <= time.monotonic(), "not the death of a minute before"


class Away(Running):
    async def region(self, name: str) -> dict[str, int]:
        raise ConnectionError(f"no actor region:{name}")


def test_a_region_without_a_node_is_refused() -> None:
    machine = Machine(Processes())
    fleet = some_fleet(machines=Machines({"eu": machine}, machine), running=Away())
    with pytest.raises(DrillRefused, match="region us has no node"):
        run_live(SCENARIOS["region-kill"], fleet, DrillOptions(0.0, 0.0, 0.0), print, lambda _: None)


class Silent(Processes):
    """Answers nothing of this kind; `errors` is what it says instead, one after the other."""

    def __init__(self, method: str, *errors: Exception, **more: Any) -> None:
        super().__init__(" on 192.0.2.8", **more)
        self._method = method
        self._errors = list(errors)

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        if method == self._method and self._errors:
            raise self._errors.pop(0)
        return await super().call(method, *args, timeout_s=timeout_s)


def test_a_machine_that_is_not_needed_and_does_not_answer_is_left_out() -> None:
    def machines() -> Machines:
        return Machines(
            {"eu": Machine(Silent("ready", TimeoutError("no answer"))), "us": Machine(Processes())},
            Machine(Processes()),
        )

    found = machines()
    asyncio.run(found.ready("us"))
    assert found.problems == ["what goes over a machine that does not answer is not seen: no answer"]
    with pytest.raises(DrillRefused, match="region eu has no node"):
        found.of("eu")
    with pytest.raises(TimeoutError):
        asyncio.run(machines().ready("eu"))
    unfit = Machines({"us": Machine(Silent("ready", DrillRefused("without a token")))}, Machine(Processes()))
    with pytest.raises(DrillRefused, match=r"without a token on 192\.0\.2\.8"):
        asyncio.run(unfit.ready("us"))


class Telling(Processes):
    """Tells of events by its own clock, in two answers, one of which is lost at first."""

    def __init__(self, machine: DrillMachine, behind_s: float) -> None:
        super().__init__(" on 192.0.2.7", behind_s=behind_s)
        self._machine = machine
        self._is_lost = True
        self._behind = behind_s

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        if method != "settled":
            return await super().call(method, *args, timeout_s=timeout_s)
        number, rows, is_more = self._machine.settled(*args)
        if number == 2 and self._is_lost:
            self._is_lost = False
            raise ConnectionError("the answer was lost")
        return number, [row._replace(at_s=row.at_s - self._behind) for row in rows], is_more


def test_events_of_another_machine_are_told_by_the_clock_of_this_one_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.drill.machine.EVENT_LINES", 2)
    config = configured(events={"directory": str(tmp_path)})
    machine = DrillMachine(config.model_dump_json(), ["us"], "token")
    machine.begin()
    began_s = time.monotonic()
    ids = [f"{number:x}" for number in range(3)]
    (tmp_path / "us").mkdir()
    with (tmp_path / "us" / "events-000001.jsonl").open("w") as log:
        for seq, message in enumerate(ids):
            event = {"event": "delivered", "seq": seq, "id": message, "recipient": "a@example.com"}
            more = {"at_ms": time.time() * 1000, "source": 0, "possible_duplicate": seq == 1}
            log.write(json.dumps(event | more) + "\n")
    machines = Machines({"us": Machine(Telling(machine, 5000.0))}, Machine(Processes()))

    async def read() -> None:
        await machines.ready("us")
        assert await machines.refresh() == ["the answer was lost"]
        assert await machines.refresh() == []

    asyncio.run(read())
    rows = machines.settled()
    assert [row.message for row in rows] == ids
    assert [row.is_marked for row in rows] == [False, True, False]
    slack_s = 0.1  # of two clocks, and of the conversion by calls
    assert all(began_s - slack_s <= row.at_s <= time.monotonic() + slack_s for row in rows)
    assert machine.clock_step_s() < slack_s


def test_a_frozen_region_is_continued_though_an_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.drill.freezes.AGAIN_S", 0.0)

    def fault_of(machine: Processes) -> Any:
        fleet = some_fleet(machines=Machines({"us": Machine(machine)}, Machine(Processes())))
        fault: Any = FAULTS["region-freeze"](fleet, SCENARIOS["region-freeze"])
        fault.target, fault.made_s, fault._longest_s = "region us", time.monotonic(), 60.0
        return fault

    fault = fault_of(Silent("resume", TimeoutError("no answer"), ConnectionError("away")))
    asyncio.run(fault.resume())
    assert (fault.notes, [text for _, text in fault.marks]) == ([], ["continued"])
    fault = fault_of(Silent("resume", TimeoutError("no answer")))
    fault.made_s -= 60.0
    asyncio.run(fault.resume())
    assert fault.marks == []
    assert "region us was to be continued, but its machine does not answer (no answer)" in fault.notes[0]


def test_a_machine_that_is_lost_during_a_drill_does_not_cost_its_record() -> None:
    away = Silent("settled", *(ConnectionError("away") for _ in range(9)))
    audit = Silent("audits", ConnectionError("away, too"))
    fleet = some_fleet(machines=Machines({"us": Machine(away), "eu": Machine(audit)}, Machine(Processes())))
    real = fleet.machines.refresh

    async def after_the_fault() -> list[str]:
        return await real() if fault_was_made else []

    fault_was_made = False

    async def is_seen() -> None:
        nonlocal fault_was_made
        fault_was_made = True

    async def snapshot() -> dict[str, Any]:
        cover = {"failover": {"standby_complete": True}}
        return {"regions": {"us": cover}, "standing": {"us": {"standing": "live"}}}

    async def transitions() -> list[tuple[float, str, str]]:
        await is_seen()
        return [(time.monotonic(), "us", "dead")]

    async def health() -> dict[str, str]:
        return {"us": "up"}

    fleet.refresh = after_the_fault
    running = fleet.running
    running.snapshot, running.transitions, running.health = snapshot, transitions, health
    options = DrillOptions(0.0, 0.0, 0.0)
    record = run_live(SCENARIOS["region-kill"], fleet, options, print, lambda _: None)
    checks = {check.name: check.is_met for check in record.checks}
    assert [text for _, text in record.marks] == ["region-kill", "detected"]
    assert checks["the events of all machines were read to the end"] is False
    assert checks["the audit accounts for every message"] is None
    assert record.notes == ["away", "not every spool was audited: away, too"]
    assert not record.is_passed


def test_of_two_drills_on_one_machine_the_second_is_refused(tmp_path: Path) -> None:
    config = configured(spool={"directory": str(tmp_path / "spool")})
    run_directory(config).mkdir()
    with _only_drill(config), pytest.raises(DrillRefused, match="another drill is run"), _only_drill(config):
        pass
    with _only_drill(config):
        pass
