"""The shell of a gateway: that nobody can watch keeps no mail out."""

import asyncio
import socket
from pathlib import Path
from typing import Any

from actors.gateway import GatewayActor
from engine.bounces.key_files import write_key
from engine.ops.free_port import free_port
from tests.support.region import fleet


class NoActors:
    """Services of a node on which no other actor is."""

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        raise ConnectionError(f"no actor {actor}")


def test_a_taken_metrics_address_keeps_no_bounces_out(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    taken, mail = free_port(), free_port()
    config = fleet(
        tmp_path,
        25,
        tokens={"keys": [{"id": 1, "file": str(tmp_path / "key")}]},
        bounces={"return_paths": [{"domain": "bounce.example.com", "streams": ["marketing"]}]},
        ingress={"mail": {"eu": f"127.0.0.1:{mail}"}},
        metrics={"listen": {"eu": f"127.0.0.1:{taken}"}},
    )

    async def run() -> None:
        with socket.create_server(("127.0.0.1", taken)):
            actor = GatewayActor(config.model_dump_json(), "eu", NoActors())  # type: ignore[arg-type]
            await actor.ping()
            shown = (await actor.snapshot())["metrics"]
            assert isinstance(shown, dict)
            assert "in use" in shown["error"]
            reader, writer = await asyncio.open_connection("127.0.0.1", mail)
            assert (await reader.readline()).startswith(b"220 ")
            writer.close()
            await actor.stop()

    asyncio.run(run())
