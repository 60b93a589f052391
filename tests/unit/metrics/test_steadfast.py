"""Figures are served as soon as their address is free; until then it is said why not, and nothing is raised."""

import asyncio
import logging
import socket
from pathlib import Path

import pytest

from engine.metrics.steadfast import SteadfastServing
from engine.ops.free_port import free_port
from tests.support.region import fleet, until
from tests.unit.metrics.test_serving import Port


def test_a_taken_address_is_tried_again_until_it_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    number = free_port()
    config = fleet(tmp_path, 25, metrics={"listen": {"eu": f"127.0.0.1:{number}"}})

    async def run() -> None:
        serving = SteadfastServing(config, "eu", port=Port(), again_s=0.01)
        with socket.create_server(("127.0.0.1", number)):
            await serving.start()
            status = serving.status()
            assert (status["port"], "in use" in str(status["error"])) == (0, True)
            for _ in range(20):
                await asyncio.sleep(0.01)
        await until(lambda: serving.status() == {"port": number})
        await serving.stop()
        with socket.create_server(("127.0.0.1", number)):
            pass  # it has been given back

    asyncio.run(run())
    said = [record.message for record in caplog.records if "gateway eu: metrics are" in record.message]
    assert [message.split(": ")[1] for message in said] == [
        "metrics are not served; tried again for ever",
        "metrics are served now",
    ]


def test_what_is_tried_is_ended_by_stop(tmp_path: Path) -> None:
    certificate = {"certificate": str(tmp_path / "no.pem"), "key": str(tmp_path / "no.key")}
    config = fleet(tmp_path, 25, metrics={"listen": {"eu": f"127.0.0.1:{free_port()}"}, **certificate})

    async def run() -> None:
        serving = SteadfastServing(config, "eu", port=Port(), again_s=3600)
        await serving.start()
        assert "no.pem" in str(serving.status()["error"])
        await serving.stop()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
