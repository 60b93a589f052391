"""Marketing mail carries a signed link that its recipient can unsubscribe by, in one click and over real HTTP."""

import asyncio
import http.client
import re
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import msgpack
import pytest

from engine.bounces.key_files import write_key
from engine.bounces.unsubscribe import UnsubscribeLinks
from engine.ingress.gateway import Gateway
from engine.ops.free_port import free_port
from engine.values.clock import SteadyClock
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from engine.values.suppression import Reason, Suppression, encode_rows
from tests.e2e.test_region_in_process import BODY
from tests.support.host import Host
from tests.support.region import fleet, start_region, until

TEMPLATE = {
    "header_from": "Shop <news@example.com>",
    "subject": "Hello",
    "text": "Hi {{ name }}. {{ unsubscribe_url }}",
    "html": "<a href='{{ unsubscribe_url }}'>no more</a>",
}


def link_of(data: bytes) -> str:
    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    found = re.fullmatch(
        r"<(http://127\.0\.0\.1:[0-9]+/u/[A-Za-z0-9_-]+)>", message["List-Unsubscribe"].strip()
    )
    assert found is not None
    return found[1]


def ask(method: str, url: str, body: str | None = None) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    connection.request(method, parts.path, body)
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_one_click(tmp_path: Path, host: Host) -> None:
    write_key(tmp_path / "key")
    port = free_port()
    config = fleet(
        tmp_path,
        host.port,
        tokens={"keys": [{"id": 1, "file": str(tmp_path / "key")}]},
        unsubscribe={"links": [{"url": f"http://127.0.0.1:{port}/u"}]},
        ingress={"http": {"eu": f"127.0.0.1:{port}"}},
    )

    async def run() -> None:
        region, spool, node = await start_region(config)

        class Regions:
            async def report(self, name: str, signal: bytes) -> str:
                raise AssertionError

            async def accept(self, name: str, header: bytes, blob: bytes, again: bool) -> bytes:
                raise AssertionError

            async def unsubscribe(self, name: str, rows: bytes) -> int:
                return await region.unsubscribe(rows)

        gateway = Gateway(config, "eu", port=Regions(), clock=SteadyClock())
        await gateway.start()
        own = b"List-Unsubscribe: <https://own.example/x>\r\n" + BODY % 3
        batch = [
            Message("a@example.com", ("one@example.org", "two@example.org"), BODY % 1, Stream.MARKETING),
            Message("a@example.com", ("own@example.org",), own, Stream.MARKETING),
            Message("a@example.com", ("order@example.org",), BODY % 2, Stream.TRANSACTIONAL),
        ]
        await region.accept(*encode_submission(batch, bytes(16)))
        number = await region.put_campaign(
            msgpack.packb(
                {
                    "campaign": "spring",
                    "tenant": "default",
                    "stream": int(Stream.MARKETING),
                    "sender": "a@example.com",
                    "field_names": ["name"],
                    "template": TEMPLATE,
                }
            )
        )
        chunk = (number, 0, b"d" * 16, ["name"], ["Camp@example.org"], [["Ann"]])
        await region.accept_chunk(msgpack.packb(chunk))
        await until(lambda: spool.counts()["queued"] == 0)
        sent = host.messages()
        assert b"List-Unsubscribe" not in sent["order@example.org"]
        assert sent["own@example.org"].count(b"List-Unsubscribe") == 1
        links = {
            name: link_of(sent[name]) for name in ("one@example.org", "two@example.org", "Camp@example.org")
        }
        assert len(set(links.values())) == 3
        text = message_from_bytes(sent["Camp@example.org"], policy=policy.default)
        assert isinstance(text, EmailMessage)
        for part in text.iter_parts():
            assert links["Camp@example.org"] in part.get_content()

        status, page = await asyncio.to_thread(ask, "GET", links["one@example.org"])
        assert status == 200
        assert "one@example.org" in page
        assert spool.suppression_rows() == 0
        for name in ("one@example.org", "Camp@example.org"):
            assert (await asyncio.to_thread(ask, "POST", links[name], "List-Unsubscribe=One-Click"))[0] == 200
        rows = {row.address: row for row in spool.suppressions(b"", 10)[1]}
        assert set(rows) == {"one@example.org", "camp@example.org"}
        for row in rows.values():
            assert (row.tenant, row.stream, row.reason) == (
                "default",
                int(Stream.MARKETING),
                Reason.UNSUBSCRIBE,
            )
        events = [e for _, events in spool.read_outbox(100) for e in events if len(e) == 3]
        assert {e[2]["recipient"] for e in events if e[1] == "unsubscribe"} == set(rows)
        # marketing stops, what was ordered still goes
        receipt = decode_receipt(await region.accept(*encode_submission(batch, b"2" * 16)))
        assert receipt.suppressed == (receipt.ids[0][0],)
        orders = [Message("a@example.com", ("one@example.org",), BODY % 4, Stream.TRANSACTIONAL)]
        assert not decode_receipt(await region.accept(*encode_submission(orders, b"3" * 16))).suppressed
        region.check()
        await gateway.stop()
        await node.stop()
        await region.stop()
        spool.close()

    asyncio.run(run())


def test_a_template_with_a_link_needs_one_in_the_configuration(tmp_path: Path) -> None:
    async def run() -> None:
        region, spool, node = await start_region(fleet(tmp_path, 25))
        record = {
            "campaign": "spring",
            "tenant": "default",
            "stream": int(Stream.MARKETING),
            "sender": "a@example.com",
            "field_names": ["name"],
            "template": TEMPLATE,
        }
        with pytest.raises(ValueError, match=r"unsubscribe\.links has no entry for the stream marketing"):
            await region.put_campaign(msgpack.packb(record))
        rows = encode_rows([Suppression("nobody", "", -1, Reason.MANUAL, 1)])
        with pytest.raises(ValueError, match="suppression of 'nobody'"):
            await region.suppress(rows, spread=True)
        await node.stop()
        await region.stop()
        spool.close()

    asyncio.run(run())


def test_every_attempt_has_the_same_link(tmp_path: Path) -> None:
    """The link is part of what is signed; it comes from the record alone."""
    write_key(tmp_path / "key")
    config = fleet(
        tmp_path,
        25,
        tokens={"keys": [{"id": 1, "file": str(tmp_path / "key")}]},
        unsubscribe={"links": [{"url": "https://news.example.com/u"}]},
        ingress={"http": {"eu": "127.0.0.1:1"}},
    )
    queues: Any = SimpleNamespace(queue=lambda number: ("example.org", 2, "default", ""))
    record = SimpleNamespace(
        queue=1, sender="a@example.com", recipient="b@example.org", id=5, accepted_ms=1_800_000_000_000
    )
    links = [UnsubscribeLinks(config.unsubscribe, config.tokens, queues).url(record) for _ in range(2)]
    assert links[0] == links[1] != ""
