"""A collector that does not do what it should: what is logged, and what it may cost."""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.config.metrics import OtlpConfig
from engine.metrics import pushing
from engine.metrics.catalogue import Point
from engine.metrics.otlp import OtlpExport, read_headers
from engine.metrics.pushing import push_for_ever

POINTS = [Point("sendfleet.region.up", (), 1)]
LOG = "engine.metrics.pushing"


async def points() -> list[Point]:
    return POINTS


class Export:
    """Answers with what stands in `answers`, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.pushes = 0
        self.pushed = threading.Semaphore(0)

    def push(self, _: Any) -> bool:
        self.pushes += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.pushed.release()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, threading.Event):
            return answer.wait()
        return bool(answer)


def config_of() -> OtlpConfig:
    config = OtlpConfig.model_validate({"endpoint": "http://127.0.0.1:4318/v1/metrics"})
    return config.model_copy(update={"interval": 0.01, "timeout": 0.01})


async def _until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG]


def test_trouble_is_said_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOG)
    bad = [False, False, KeyError("odd"), KeyError("odd")]
    export = Export(True, *bad, True)

    async def run() -> None:
        task = asyncio.create_task(push_for_ever(config_of(), export, points, "eu"))
        await _until(lambda: export.pushes >= 7)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    first, second, third = texts(caplog)
    assert "does not take them" in first
    assert "has failed" in second
    assert "pushed again" in third


def test_a_collector_that_holds_a_push_holds_one_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "GRACE_S", 0.0)
    held = threading.Event()
    export = Export(held)

    async def run() -> None:
        before = threading.active_count()
        task = asyncio.create_task(push_for_ever(config_of(), export, points, "eu"))
        await _until(lambda: texts(caplog))
        await asyncio.sleep(0.1)
        assert export.pushes == 1
        assert threading.active_count() == before + 1
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == pushing.THREAD)
        held.set()
        await _until(lambda: len(texts(caplog)) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert "no answer" in texts(caplog)[0]
    assert "pushed again" in texts(caplog)[1]


@pytest.mark.parametrize(
    "content",
    [
        b"Authorization: Bearer sesame\xff\n",
        "Authorization: Bearer \u201csesame\u201d\n".encode(),
        b"Authorization: Bearer ses\x00ame\n",
        b"Authorization Bearer sesame\n",
        b"sesame\xc3\xa9: x\n",
    ],
)
def test_headers_that_cannot_be_sent_are_refused_without_a_word_of_them(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "headers"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="headers") as raised:
        read_headers(path)
    shown = repr(raised.value) + str(raised.value) + repr(raised.value.__cause__)
    assert "same" not in shown.replace("headers", "")
    assert raised.value.__context__ is None


@contextmanager
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """Takes one request and answers 200; what came in."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_the_environment_sends_a_secret_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy of the environment nor a password of ~/.netrc has a say."""
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer sesame\n")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with listener() as (port, seen), listener() as (proxy, stolen):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        endpoint = f"http://127.0.0.1:{port}/v1/metrics"
        config = OtlpConfig.model_validate({"endpoint": endpoint, "headers_file": str(headers)})
        assert OtlpExport(config, fleet="f", region="eu").push(POINTS)
    assert stolen == []
    assert b"Bearer sesame" in seen[0]


def test_what_a_shard_pushes_is_of_its_region() -> None:
    export = OtlpExport(config_of(), fleet="f", region="eu-1", shard_of="eu")
    export._points = {POINTS[0].metric: POINTS}
    data = export._reader.get_metrics_data()
    assert data is not None
    found = [
        dict(point.attributes or {})
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    ]
    assert found == [{"region": "eu", "shard": "eu-1"}]
    export.close()
