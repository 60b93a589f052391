"""Who may read the figures, and what is shown when somebody does not answer."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from engine.config.load import ConfigError
from engine.config.schema import FleetConfig
from engine.metrics import gather as gathering
from engine.metrics import serving
from engine.metrics.catalogue import Point
from engine.metrics.gather import Gatherer
from engine.metrics.serving import MetricsServing, serves_metrics
from engine.ops.free_port import free_port
from engine.spool.errors import SpoolFailed
from tests.support.certificates import authority, make, write_authorities, write_pair
from tests.support.prometheus import Scrape, read
from tests.support.region import fleet


class Port:
    """Actors that answer, or raise what is in `away`."""

    def __init__(self, **away: Exception) -> None:
        self.away = away
        self.looks = 0

    async def region_figures(self, region: str) -> list[Point]:
        self.looks += 1
        if "region" in self.away:
            raise self.away["region"]
        return [Point("sendfleet.region.up", (), 1), Point("sendfleet.messages.queued", (), 7)]

    async def pool_figures(self, region: str) -> dict[str, list[Point]]:
        if "pools" in self.away:
            raise self.away["pools"]
        return {"default.0": [Point("sendfleet.sessions.open", ("default", "eu-1"), 2)]}

    async def source_figures(self, source: str) -> list[Point]:
        if source in self.away:
            raise self.away[source]
        return [Point("sendfleet.source.score", ("all", source), 100)]


def config_of(folder: Path, **metrics: Any) -> FleetConfig:
    return fleet(folder, 25, metrics=metrics)


def shown(config: FleetConfig, port: Port, *tokens: str, **reading: Any) -> list[tuple[int, str]]:
    async def run() -> list[tuple[int, str]]:
        served = MetricsServing(config, "eu", port=port)
        await served.start()
        try:
            return [
                await asyncio.to_thread(read, "127.0.0.1", served.port, token, **reading)
                for token in tokens or ("",)
            ]
        finally:
            await served.stop()

    return asyncio.run(run())


def test_on_loopback_whoever_is_there_may_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, listen={"eu": f"127.0.0.1:{free_port()}"})
    ((status, text),) = shown(config, Port())
    assert status == 200
    found = Scrape(text)
    assert found.total("sendfleet_messages_queued", region="eu") == 7
    assert found.total("sendfleet_source_score", source="eu-2") == 100
    assert found.total("process_cpu_time_seconds_total", actor="gateway") > 0


def test_a_shard_shows_of_which_region_it_is(tmp_path: Path) -> None:
    regions = [{"name": "eu", "number": 1, "shard_of": "europe"}]
    config = fleet(tmp_path, 25, regions=regions, metrics={"listen": {"eu": f"127.0.0.1:{free_port()}"}})
    ((_, text),) = shown(config, Port())
    assert Scrape(text).total("sendfleet_messages_queued", region="europe", shard="eu") == 7


def test_with_a_token_only_who_shows_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame\n")
    config = config_of(tmp_path, listen={"eu": f"127.0.0.1:{free_port()}"}, token_file=str(token))
    answers = shown(config, Port(), "open sesame", "", "opensesame", "open sesame!")
    assert [status for status, _ in answers] == [200, 401, 401, 401]
    assert all("sendfleet" not in text for _, text in answers[1:])


def test_readers_close_behind_each_other_get_the_same_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Any] = []
    monkeypatch.setattr(gathering, "FRESH_S", 3600.0)
    monkeypatch.setattr(serving, "render", lambda found, *_: rendered.append(found) or "a page\n")
    config = config_of(tmp_path, listen={"eu": f"127.0.0.1:{free_port()}"})
    assert shown(config, Port(), "", "", "") == [(200, "a page\n")] * 3
    assert len(rendered) == 1


@pytest.mark.parametrize("content", [None, b"", b"\n", b"sesame\xff"])
def test_without_its_token_nobody_may(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    config = config_of(tmp_path, listen={"eu": f"127.0.0.1:{free_port()}"}, token_file=str(token))
    answers = shown(config, Port(), "", "x")
    assert {status for status, _ in answers} == {401 if content in (b"", b"\n") else 503}
    assert "sesame" not in caplog.text


def test_one_connection_is_enough(tmp_path: Path) -> None:
    config = config_of(tmp_path, listen={"eu": f"127.0.0.1:{free_port()}"}, max_connections=1)
    assert [status for status, _ in shown(config, Port())] == [200]


def test_over_tls(tmp_path: Path) -> None:
    write_pair(make("m", issuer=authority(), addresses=["127.0.0.1"]), tmp_path / "pem", tmp_path / "key")
    write_authorities(tmp_path / "ca", authority())
    config = config_of(
        tmp_path,
        listen={"eu": f"127.0.0.1:{free_port()}"},
        certificate=str(tmp_path / "pem"),
        key=str(tmp_path / "key"),
    )
    context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    ((status, _),) = shown(config, Port(), context=context)
    assert status == 200


@pytest.mark.parametrize(
    ("away", "is_up"),
    [
        ({}, 1),
        ({"region": ConnectionError("gone")}, 0),
        ({"region": TimeoutError("late")}, 0),
        ({"region": SpoolFailed("disk")}, 0),
        ({"eu-1": AttributeError("a bug")}, 1),
        ({"pools": ConnectionError("gone"), "eu-1": TimeoutError("late")}, 1),
    ],
)
def test_who_does_not_answer_is_left_out(tmp_path: Path, away: dict[str, Exception], is_up: int) -> None:
    points = asyncio.run(_gathered(config_of(tmp_path), Port(**away)))
    found = {(point.metric, point.labels): point.value for point in points}
    assert found["sendfleet.region.up", ()] == is_up
    assert found["sendfleet.source.score", ("all", "eu-2")] == 100
    assert (("sendfleet.source.score", ("all", "eu-1")) in found) == ("eu-1" not in away)
    assert (("sendfleet.sessions.open", ("default", "eu-1")) in found) == ("pools" not in away)


async def _gathered(config: FleetConfig, port: Port) -> list[Point]:
    return await Gatherer(config, "eu", port).gather()


def test_readers_close_behind_each_other_get_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> int:
        port = Port()
        gatherer = Gatherer(config_of(tmp_path), "eu", port)
        await asyncio.gather(*(gatherer.gather() for _ in range(20)))
        return port.looks

    monkeypatch.setattr(gathering, "FRESH_S", 3600.0)
    assert asyncio.run(run()) == 1
    monkeypatch.setattr(gathering, "FRESH_S", 0.0)
    assert asyncio.run(run()) == 20


def test_a_source_that_is_away_or_begins_anew_lets_no_counter_fall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "FRESH_S", 0.0)
    used = {"eu-1": 100.0, "eu-2": 50.0}

    class Sources(Port):
        async def source_figures(self, source: str) -> list[Point]:
            if source in self.away:
                raise self.away[source]
            return [Point("process.cpu.time", ("sources",), used[source])]

    async def run() -> list[float]:
        port = Sources()
        gatherer = Gatherer(config_of(tmp_path), "eu", port)

        async def look() -> float:
            points = await gatherer.gather()
            return next(p.value for p in points if p.metric == "process.cpu.time")

        seen = [await look()]
        used.update({"eu-1": 103.0, "eu-2": 51.0})
        seen.append(await look())
        port.away = {"eu-1": TimeoutError("late")}
        seen.append(await look())
        port.away = {}
        used.update({"eu-1": 2.0})
        seen.append(await look())
        return seen

    assert asyncio.run(run()) == [0.0, 4.0, 4.0, 6.0]


def test_of_several_pools_of_a_provider_one_may_be_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "FRESH_S", 0.0)
    refused = {"default.0": 1000.0, "default.1": 500.0}

    class Pools(Port):
        async def pool_figures(self, region: str) -> dict[str, list[Point]]:
            place = "default", "eu-1"
            return {
                name: [
                    Point("sendfleet.sessions.refused", place, count),
                    Point("process.cpu.time", (f"pool:{name}",), 7.0),
                ]
                for name, count in refused.items()
            }

    async def run() -> list[dict[tuple[str, ...], float]]:
        gatherer = Gatherer(config_of(tmp_path), "eu", Pools())
        seen = []
        for change in ({}, {"default.0": 1004.0}, {"default.1": 3.0}):
            refused.update(change)
            if change == {"default.0": 1004.0}:
                refused.pop("default.1")
            seen.append({p.labels: p.value for p in await gatherer.gather() if p.metric in gathering.SHARED})
        return seen

    seen = asyncio.run(run())
    assert [found["default", "eu-1"] for found in seen] == [0.0, 4.0, 7.0]
    assert [found.get(("pool:default.1",)) for found in seen] == [7.0, None, 7.0]


def test_when_sources_hang_the_others_are_not_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "AT_ONCE", 1)
    monkeypatch.setattr(gathering, "ASKING_S", 0.0)
    points = asyncio.run(_gathered(config_of(tmp_path), Port()))
    assert not [point for point in points if point.metric == "sendfleet.source.score"]
    assert Point("sendfleet.region.up", (), 1) in points


def test_a_source_that_is_not_told_apart(tmp_path: Path) -> None:
    points = asyncio.run(_gathered(config_of(tmp_path, max_sources=1), Port()))
    assert {p.labels[1] for p in points if p.metric == "sendfleet.source.score"} == {"eu-1", "other"}


def test_a_region_without_listener_or_push_has_none(tmp_path: Path) -> None:
    assert not serves_metrics(config_of(tmp_path), "eu")
    assert serves_metrics(config_of(tmp_path, otlp={"endpoint": "http://127.0.0.1:4318/v1/metrics"}), "eu")


ENDPOINT = "http://127.0.0.1:4318/v1/metrics"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"listen": {"eu": "0.0.0.0:9464"}}, "allowed is a loopback address"),
        ({"listen": {"eu": "metrics.example.com:9464"}, "token_file": "t"}, "allowed is a loopback address"),
        ({"listen": {"mars": "127.0.0.1:9464"}}, "metrics.listen.mars"),
        ({"listen": {"eu": "127.0.0.1:0"}}, "port"),
        ({"certificate": "pem"}, "allowed only together with key"),
        ({"otlp": {"endpoint": "127.0.0.1:4318"}}, "whole URL"),
        ({"otlp": {"endpoint": "http://127.0.0.1:4318"}}, "whole URL"),
        ({"otlp": {"endpoint": "http://127.0.0.1:99999/v1/metrics"}}, "URL"),
        ({"otlp": {"endpoint": "https://user:secret@c.example.com/v1/metrics"}}, "without a password"),
        ({"otlp": {"endpoint": "http://c.example.com:4318/v1/metrics", "headers_file": "h"}}, "https"),
        ({"otlp": {"endpoint": ENDPOINT, "interval": "10ms"}}, "at least 1s"),
        ({"max_sources": 0}, "greater than or equal to 1"),
    ],
)
def test_a_configuration_that_is_refused(tmp_path: Path, metrics: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, **metrics)


def test_an_address_for_others_with_token_and_certificate(tmp_path: Path) -> None:
    listen = {"eu": "0.0.0.0:9464"}
    config = config_of(tmp_path, listen=listen, token_file="t", certificate="c", key="k")
    assert config.metrics.listen == listen
