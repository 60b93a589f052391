"""A fleet is started again while the machine of one of its regions is away, and that comes back on an empty disk."""

import asyncio
import shutil
from collections import Counter
from pathlib import Path

import pytest

from actors.names import region_actor, source_actor
from tests.support.ray_fleet import ClusterFleet, messages, prepare_ray, two_regions, until
from tests.support.sinks import accepting_sink

COUNT = 200


def test_the_others_send_what_they_have_copies_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with accepting_sink(tmp_path) as sink:
        config = two_regions(
            tmp_path, sink.addresses["accept"][1], fleet={"replicas": 1, "degraded": "accept_local"}
        )
        prepare_ray(config)
        with ClusterFleet(config) as fleet:
            from actors import deploy
            from actors.client import AsyncClient

            sink.kill()  # so that everything waits

            async def submit() -> Counter[str]:
                taken: Counter[str] = Counter()
                for first in range(0, COUNT, 10):
                    taken[(await fleet.client.submit(messages(10, first=first))).region] += 10
                return taken

            async def all_arrived() -> bool:
                return len(set(sink.log().recipients())) == COUNT

            taken = asyncio.run(submit())
            assert taken["us"], "the other region has accepted nothing"
            asyncio.run(fleet.until_covered())
            fleet.remove_node("us")
            deploy.stop_fleet(config)
            shutil.rmtree(Path(config.spool.directory) / "us")
            monkeypatch.setattr(deploy, "NODE_START_TIMEOUT_S", 1.0)
            with pytest.raises(
                ConnectionError, match="no node carries region:us: on the machine of region us"
            ):
                deploy.start_fleet(config, "")
            with pytest.raises(ConnectionError, match=r"--without eu: .* carries region:eu: stop that node"):
                deploy.start_fleet(config, "", missing=["eu", "us"])
            sink.restart()
            assert deploy.start_fleet(config, "", missing=["us"])
            of_us = {region_actor("us"), source_actor("us-1"), source_actor("us-2")}
            assert not of_us & set(deploy.actor_names()), "they would keep every call until they have a node"
            fleet.client = AsyncClient(config)
            asyncio.run(until(all_arrived, "what the other has copies of does not arrive"))
            monkeypatch.undo()
            fleet.add_node("us")
            asyncio.run(fleet.until_covered())
            assert deploy.start_fleet(config, "")
            asyncio.run(fleet.client.submit(messages(10, first=COUNT)))
            asyncio.run(fleet.until_settled())
        assert max(Counter(sink.log().recipients()).values()) == 1, "nobody was sent to twice"
