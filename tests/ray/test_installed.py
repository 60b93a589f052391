"""What somebody meets who installs the wheel: commands from an empty directory, a service, an upgrade."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from tests.support.installed import COMMAND_TIMEOUT_S, ROOT, Installed, build_wheel, environment
from tests.support.sinks import accepting_sink

pytestmark = pytest.mark.ray

NEWER = "99.0.0"
RECIPIENTS = 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture
def home(installed: Installed, sink: SinkProcess) -> Iterator["Home"]:
    """Short, because Ray puts sockets below it, whose paths have at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    home = Home(directory, installed, sink.addresses["accept"][1])
    yield home
    if home.processes():
        home.sendfleet("down")
    shutil.rmtree(directory)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with accepting_sink(tmp_path) as process:
        yield process


class Home:
    """A directory with a fleet.yaml and a campaign of one's own, as the documents say."""

    def __init__(self, directory: Path, installed: Installed, port: int) -> None:
        self.directory = directory
        self._installed = installed
        fleet = {
            "fleet": {"name": "shop"},
            "spool": {"directory": str(directory / "spool"), "map_size": "1GiB", "min_free": "1MiB"},
            "events": {"directory": str(directory / "events")},
            "regions": [{"name": "eu", "number": 1}],
            "sources": [
                {
                    "name": "eu-1",
                    "region": "eu",
                    "ip": "127.0.0.11",
                    "ehlo": "mta1.example.com",
                    "streams": ["transactional", "notification", "marketing"],
                }
            ],
            "routes": [{"domains": ["*"], "hosts": [f"127.0.0.1:{port}"]}],
            "providers": {"default": {"rate": "unlimited"}},
            "tls": {
                "exceptions": [{"provider": "default", "mode": "disabled", "reason": "sink on loopback"}]
            },
            "retry": {"marketing": {"first": "2s", "factor": 1, "max": "2s", "jitter": 0.1, "expire": "10m"}},
        }
        (directory / "fleet.yaml").write_text(yaml.safe_dump(fleet))

    def campaign(self, name: str) -> list[str]:
        """Write a campaign; returns its recipients."""
        recipients = [f"{name}-{n}@example.org" for n in range(RECIPIENTS)]
        (self.directory / "recipients.csv").write_text("\n".join(["email", *recipients, ""]))
        campaign = {
            "id": name,
            "sender": "bounces@news.example.com",
            "from": "Shop <news@example.com>",
            "subject": "Hello",
            "text": "Dear {{ recipient }}",
            "recipients": {"file": "recipients.csv"},
        }
        (self.directory / "campaign.yaml").write_text(yaml.safe_dump(campaign))
        return recipients

    def sendfleet(self, *arguments: str, status: int = 0) -> str:
        return self._installed.run(*arguments, cwd=self.directory, status=status).stdout

    def start_service(self) -> subprocess.Popen[str]:
        """`up --foreground`, as systemd runs it; returns when it says that it is up."""
        process = subprocess.Popen(
            [self._installed.sendfleet, "up", "--foreground"],
            cwd=self.directory,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "is up" in line:
                return process
        raise AssertionError("".join(said))

    def processes(self) -> list[psutil.Process]:
        """Those of the fleet: its token is in their environment."""
        from actors.local_cluster import processes_with

        token = self.directory / "run" / "ray-token"
        return list(processes_with("RAY_AUTH_TOKEN_PATH", str(token)))

    def drained(self) -> dict[str, int]:
        """The counts of the audit, when nothing is queued any more."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while time.monotonic() < deadline:
            report = audit(self.directory / "spool" / "eu")
            assert report.is_clean, report.problems
            if report.counts["queued"] == 0:
                return report.counts
            time.sleep(0.2)
        raise AssertionError(f"the queue does not drain: {report}")


def test_the_commands_of_a_first_day_and_an_upgrade_with_mail_in_the_queue(
    tmp_path_factory: pytest.TempPathFactory, home: Home, installed: Installed, sink: SinkProcess
) -> None:
    where = subprocess.run(
        [installed.python, "-c", "import actors, engine, native; print(engine.__file__, actors.__file__)"],
        cwd=home.directory,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert str(ROOT) not in where.stdout
    assert str(installed.directory) in where.stdout
    first = home.campaign("first")
    assert "good" in home.sendfleet("config", "check")
    try:
        home.sendfleet("up")
        assert f"{RECIPIENTS} recipients accepted" in home.sendfleet("send", "campaign.yaml")
        assert home.drained()["delivered"] == RECIPIENTS
        assert "eu" in home.sendfleet("status")
        events = [json.loads(line) for line in home.sendfleet("events", "--event", "delivered").splitlines()]
        assert {event["recipient"] for event in events} == set(first)
        assert (home.directory / "run" / "ray" / "session_latest" / "logs").is_dir(), (
            "as docs/operations.md says"
        )

        sink.kill()
        second = home.campaign("second")
        home.sendfleet("send", "campaign.yaml")
        home.sendfleet("down")
        assert home.processes() == []
        assert "queued 20" in home.sendfleet("audit")
        installed.install(build_wheel(tmp_path_factory.mktemp("newer"), version=NEWER))
        assert NEWER in home.sendfleet("--version")
        sink.restart()
        home.sendfleet("up")
        assert home.drained()["delivered"] == 2 * RECIPIENTS
        assert "20 accepted before" in home.sendfleet("send", "campaign.yaml")
    finally:
        home.sendfleet("down")
    assert sink.log().recipients() == dict.fromkeys([*first, *second], 1)
    assert home.processes() == []


def test_a_service_stops_in_order_and_goes_on_after_it_was_killed(home: Home, sink: SinkProcess) -> None:
    sink.kill()
    recipients = home.campaign("first")
    service = home.start_service()
    try:
        home.sendfleet("send", "campaign.yaml")
        service.kill()
        for process in home.processes():  # as systemd does with what is left of a service (KillMode=mixed)
            process.kill()
        service.wait()
        sink.restart()
        service = home.start_service()
        assert home.drained()["delivered"] == RECIPIENTS
        service.send_signal(signal.SIGTERM)
        said, _ = service.communicate(timeout=COMMAND_TIMEOUT_S)
        assert service.returncode == 0, said
        assert "is down" in said
        assert home.processes() == []
        assert not (home.directory / "run" / "cluster.json").exists()
    finally:
        service.kill()
        service.wait()
    twice = {r for r, count in sink.log().recipients().items() if count > 1}
    marked = {
        event["recipient"]
        for line in home.sendfleet("events", "--event", "delivered").splitlines()
        if (event := json.loads(line))["possible_duplicate"]
    }
    assert set(sink.log().recipients()) == set(recipients)
    assert twice <= marked


def test_a_service_whose_node_ends_fails_so_that_it_is_started_again(home: Home) -> None:
    service = home.start_service()
    try:
        nodes = json.loads((home.directory / "run" / "cluster.json").read_text())["nodes"]
        os.kill(nodes["eu"][0], signal.SIGKILL)
        said, _ = service.communicate(timeout=COMMAND_TIMEOUT_S)
        assert service.returncode == 1
        assert "the Ray node of region eu has ended" in said
        assert home.processes() == []
    finally:
        service.kill()
        service.wait()
