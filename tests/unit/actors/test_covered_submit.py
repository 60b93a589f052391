"""Where a client turns when regions are silent or refuse: how often, and to whom."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actors import submitting
from actors.calls import Calls
from actors.region_calls import RegionCalls
from actors.shares import Shares
from actors.submitting import Submitting
from engine.config.load import parse_fleet
from engine.region.ports import RegionAway, RegionDraining
from engine.spool.errors import SpoolError, SpoolFailed, SpoolFull
from engine.values.message import Message, Receipt
from engine.values.options import Options
from engine.values.submission import MalformedBatch, batch_key_of, encode_receipt
from tests.support.fleets import fleet_data

REGIONS = ("eu", "us", "asia")
MAIL = [Message("a@example.com", ("b@example.org",), b"Subject: x\r\n\r\nx\r\n")]


RECEIPT = encode_receipt(Receipt("eu", ((1,),)))
REFUSALS = {
    "away": RegionAway("not now"),
    "draining": RegionDraining("it is being drained"),
    "full": SpoolFull("disk", 1, 2),
    "unwritten": SpoolError("spool /x: not written: Input/output error"),
    "failed": SpoolFailed("the outcome is unknown"),
    "unopened": PermissionError("spool /x: permission denied"),
    "wrong": MalformedBatch("it stands for another batch"),
}


class Region:
    """Its answers, in order; the last one goes on. "silent": none comes. One of REFUSALS; or a receipt."""

    def __init__(self, *answers: str) -> None:
        self.asked = asyncio.Event()
        self._answers = list(answers)
        self.again: list[bool] = []  # of each call
        self.open = 0
        self.most_open = 0

    async def call(self, method: str, header: bytes, blob: bytes, again: bool, *, timeout_s: float) -> bytes:
        assert method == "accept"
        self.again.append(again)
        self.asked.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if answer == "silent":
                await asyncio.Event().wait()
            if answer in REFUSALS:
                raise REFUSALS[answer]
            return RECEIPT
        finally:
            self.open -= 1


def client_of(**regions: Region) -> Any:
    first = fleet_data()["sources"][0]
    config = parse_fleet(
        fleet_data(
            fleet={"replicas": 1},
            regions=[{"name": name, "number": n} for n, name in enumerate(REGIONS, 1)],
            sources=[
                {**first, "name": f"{name}-1", "region": name, "ip": f"127.0.0.{20 + n}"}
                for n, name in enumerate(REGIONS)
            ],
        )
    )
    calls: Any = regions
    return Submitting(config, RegionCalls(config, calls, fleet=calls))


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "SILENCE_S", 0.001)
    monkeypatch.setattr(submitting, "AGAIN_S", 0.001)
    monkeypatch.setattr(submitting, "SLOWER", 1.0)


def test_a_region_that_has_the_batch_in_hand_is_not_asked_once_more() -> None:
    async def go() -> None:
        regions = {
            "eu": Region("silent"),
            "us": Region("silent"),
            "asia": Region(*["away"] * 40, "accepts"),
        }
        client = client_of(**regions)
        assert await client._submit_covered(bytes(16), b"header", b"blob", ()) == RECEIPT
        assert [len(region.again) for region in regions.values()] == [1, 1, 41]
        assert all(region.open == 0 for region in regions.values())

    asyncio.run(go())


def test_only_the_first_region_is_told_that_nobody_else_may_have_it() -> None:
    async def go() -> None:
        regions = {name: Region("away", "away", "accepts") for name in REGIONS}
        await client_of(**regions)._submit_covered(bytes(16), b"header", b"blob", ())
        first, *others = sorted((region for region in regions.values()), key=lambda region: all(region.again))
        assert first.again[0] is False
        assert all(first.again[1:])
        assert all(all(region.again) for region in others)

    asyncio.run(go())


def test_a_region_that_refused_and_is_asked_once_more_may_have_it() -> None:
    """All are being drained, and then none is any more: the first takes the batch and is slow, so the next must ask."""

    async def go() -> None:
        probe = client_of(**{name: Region("accepts") for name in REGIONS})
        first, second, third = probe._regions.ranked(bytes(16), ())
        regions = {
            first: Region("draining", "silent"),
            second: Region("draining", "accepts"),
            third: Region("draining"),
        }
        assert await client_of(**regions)._submit_covered(bytes(16), b"header", b"blob", ()) == RECEIPT
        assert regions[first].again == [False, False]
        assert regions[second].again == [False, True]

    asyncio.run(go())


@pytest.mark.parametrize("trouble", ["full", "unwritten", "failed", "unopened"])
def test_a_region_whose_disk_is_in_trouble_is_passed_over(trouble: str) -> None:
    async def go() -> None:
        probe = client_of(**{name: Region("accepts") for name in REGIONS})
        first, second, _ = probe._regions.ranked(bytes(16), ())
        regions = {name: Region("accepts") for name in REGIONS} | {first: Region(trouble)}
        client = client_of(**regions)
        for _ in range(3):
            assert await client._submit_covered(bytes(16), b"header", b"blob", ()) == RECEIPT
        assert len(regions[first].again) == 1
        assert regions[second].again == [True, False, False]

    asyncio.run(go())


def test_a_region_that_is_full_does_not_speak_for_the_one_that_has_it_in_hand() -> None:
    """SpoolFull says that nothing was accepted; the first region may accept it yet."""

    async def go() -> None:
        probe = client_of(**{name: Region("accepts") for name in REGIONS})
        first, second, third = probe._regions.ranked(bytes(16), ())
        regions = {
            first: Region("silent"),
            second: Region("full"),
            third: Region("full", "full", "accepts"),
        }
        assert await client_of(**regions)._submit_covered(bytes(16), b"header", b"blob", ()) == RECEIPT
        assert len(regions[third].again) == 3

    asyncio.run(go())


@pytest.mark.parametrize("others", ["full", "draining"])
def test_when_no_region_has_room_the_client_says_so_at_once(others: str) -> None:
    async def go() -> None:
        regions = {"eu": Region("full"), "us": Region(others), "asia": Region(others)}
        with pytest.raises(SpoolFull):
            await client_of(**regions).submit(MAIL)
        assert all(len(region.again) == 1 for region in regions.values())

    asyncio.run(go())


@pytest.mark.parametrize("doubt", ["away", "failed", "unwritten"])
def test_one_that_may_have_it_is_asked_until_the_client_gives_up(
    doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it has been asked before it may have accepted something, also if it is full in the end."""
    monkeypatch.setattr(submitting, "GIVE_UP_S", 0.05)

    async def go() -> None:
        regions = {"eu": Region("full"), "us": Region("full"), "asia": Region(doubt, "full")}
        with pytest.raises(ConnectionError, match="the outcome is unknown: spool full"):
            await client_of(**regions).submit(MAIL)

    asyncio.run(go())


def test_a_receipt_counts_more_than_what_another_region_says_in_the_same_moment() -> None:
    async def go() -> None:
        for name in REGIONS:
            client = client_of()
            calls = Calls()
            for other in REGIONS:
                region = Region("accepts" if other == name else "wrong")
                calls.begin(other, region.call("accept", b"", b"", False, timeout_s=1))
            for _ in range(3):  # all are done when the client looks
                await asyncio.sleep(0)
            assert await client._hear(calls, 60.0) == (RECEIPT, False)

    asyncio.run(go())


def test_what_is_wrong_with_the_batch_is_said_at_once() -> None:
    async def go() -> None:
        regions = {name: Region("wrong") for name in REGIONS}
        with pytest.raises(MalformedBatch):
            await client_of(**regions).submit(MAIL)
        assert sum(len(region.again) for region in regions.values()) == 1

    asyncio.run(go())


def test_when_a_part_of_a_batch_is_accepted_the_others_do_not_say_that_nothing_was_changed() -> None:
    """The disks are full in the moment between its parts."""

    class Filling(Region):
        async def call(self, method: str, header: bytes, *args: Any, timeout_s: float) -> bytes:
            self._answers = ["full" if own in header else "accepts"]
            return await super().call(method, header, *args, timeout_s=timeout_s)

    own = batch_key_of("key", MAIL[0].tenant, "order 7")

    async def go() -> None:
        client = client_of(**{name: Filling() for name in REGIONS})
        with pytest.raises(ConnectionError, match="1 messages of the batch are accepted, others are not"):
            await client.submit([MAIL[0], replace(MAIL[0], key="order 7")])
        with pytest.raises(SpoolFull):
            await client.submit([replace(MAIL[0], key="order 7")] * 2)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sender": "\ud800@example.com"}, r"sender: '\\ud800@example.com': allowed is text without lone"),
        ({"recipients": "b@example.org"}, r"recipients: 'b@example.org': allowed is a tuple of addresses"),
        ({"recipients": ("b@example.org", 5)}, r"recipients\[1\]: 5: allowed is text"),
        ({"stream": [0]}, r"stream: \[0\]: allowed are <Stream"),
        ({"tenant": None}, r"tenant: None: allowed is text"),
        ({"campaign": b"x" * 99}, r"campaign: b'x{78}\.\.\.: allowed is text"),
        ({"send_at_ms": 1 << 70}, r"send_at_ms: 1180591620717411303424: allowed are unix milliseconds"),
        ({"send_at_ms": "now"}, r"send_at_ms: 'now': allowed are unix milliseconds"),
        ({"key": 5}, r"key: 5: allowed is text"),
        ({"options": None}, r"options: None: allowed is a tuple of Options"),
        ({"options": ("never",)}, r"options\[0\]: 'never': allowed are Options"),
        ({"options": (Options(flags=1 << 70),)}, r"options\[0\]: Options\(flags=1180"),
    ],
)
def test_of_a_batch_of_which_a_part_cannot_travel_nothing_is_accepted(
    change: dict[str, Any], words: str
) -> None:
    """Who mends it and submits it again would have the others sent twice: they have no key."""

    async def go() -> None:
        regions = {name: Region("accepts") for name in REGIONS}
        batch = [MAIL[0], replace(MAIL[0], **({"key": "k"} | change))]
        with pytest.raises((TypeError, ValueError), match=r"batch\[1\]\." + words):
            await client_of(**regions).submit(batch)
        assert [region.again for region in regions.values()] == [[], [], []]

    asyncio.run(go())


@pytest.mark.parametrize("key", ["text", b"", b"short", 7, bytes(17)])
def test_a_batch_key_is_16_bytes(key: Any) -> None:
    """An empty one would stand for another batch with every call."""

    async def go() -> None:
        regions = {name: Region("accepts") for name in REGIONS}
        with pytest.raises((TypeError, ValueError), match=r"key: .*: allowed are 16"):
            await client_of(**regions).submit(MAIL, key=key)
        assert [region.again for region in regions.values()] == [[], [], []]

    asyncio.run(go())


def test_all_parts_of_a_call_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages that wait until others have been given up are asked for once more, not for as long again."""
    monkeypatch.setattr(submitting, "GIVE_UP_S", 0.2)
    asked = Counter[bytes]()

    class Away(Region):
        async def call(self, method: str, header: bytes, *args: Any, timeout_s: float) -> bytes:
            asked[header] += 1
            return await super().call(method, header, *args, timeout_s=timeout_s)

    async def go() -> None:
        batch = [replace(MAIL[0], key=f"order {n}") for n in range(2 * submitting.KEYED_AT_ONCE)]
        with pytest.raises(ConnectionError):
            await client_of(**{name: Away("away") for name in REGIONS}).submit(batch)
        assert list(asked.values())[submitting.KEYED_AT_ONCE :] == [1] * submitting.KEYED_AT_ONCE

    asyncio.run(go())


def test_regions_that_are_all_slow_are_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(**{name: Region("accepts") for name in REGIONS})
    assert client._silence_s() == 0.001
    client._usual_s = 0.2
    assert client._silence_s() == 0.8
    client._usual_s = 60.0
    assert client._silence_s() == submitting.MAX_DELAY_S


def test_what_is_usual_is_learnt_from_answers() -> None:
    async def go() -> None:
        client = client_of(**{name: Region("accepts") for name in REGIONS})
        client._usual_s = 1.0
        for _ in range(100):
            await client._submit_covered(bytes(16), b"header", b"blob", ())
        assert client._usual_s < 0.1

    asyncio.run(go())


@pytest.mark.parametrize("is_quiet", [True, False])
def test_what_comes_next_is_not_given_to_a_region_that_answers_nobody(
    is_quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait until that region is known to be dead."""
    monkeypatch.setattr(submitting, "SILENCE_S", 60.0)
    monkeypatch.setattr(submitting, "QUIET_S", 0.0 if is_quiet else 60.0)

    async def go() -> None:
        probe = client_of(**{name: Region("accepts") for name in REGIONS})
        first, *_ = probe._regions.ranked(bytes(16), ())
        regions = {name: Region("silent" if name == first else "accepts") for name in REGIONS}
        client = client_of(**regions)
        waiting = asyncio.create_task(client._submit_covered(bytes(16), b"header", b"blob", ()))
        await regions[first].asked.wait()
        later = asyncio.create_task(client._submit_covered(bytes(16), b"header", b"blob", ()))
        if is_quiet:
            assert await later == RECEIPT
        else:
            while len(regions[first].again) < 2:
                await asyncio.sleep(0)
        assert len(regions[first].again) == (1 if is_quiet else 2)
        waiting.cancel()
        later.cancel()
        await asyncio.gather(waiting, later, return_exceptions=True)
        assert regions[first].open == 0

    asyncio.run(go())


def test_a_region_that_answers_some_is_not_quiet() -> None:
    async def go() -> None:
        regions = {name: Region("accepts") for name in REGIONS}
        calls = client_of(**regions)._regions
        held = asyncio.create_task(
            calls.watched("eu", Region("silent").call("accept", b"", b"", False, timeout_s=1))
        )
        await asyncio.sleep(0)
        assert calls.silent_last(REGIONS, quiet_s=-1.0)[-1] == "eu"
        await calls.watched("eu", regions["eu"].call("accept", b"", b"", False, timeout_s=1))
        assert calls.silent_last(REGIONS, quiet_s=60.0) == list(REGIONS)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert calls.silent_last(REGIONS, quiet_s=-1.0) == list(REGIONS)

    asyncio.run(go())


class FleetOf:
    """Fleet, as a client asks it."""

    def __init__(self, **shares: int) -> None:
        self.shares = shares
        self.asked = 0

    async def ask(self, method: str, *, timeout_s: float) -> dict[str, int]:
        assert method == "shares"
        self.asked += 1
        return self.shares


def test_a_region_that_has_just_returned_is_given_its_share_of_new_mail() -> None:
    async def go() -> None:
        regions = {name: Region("accepts") for name in REGIONS}
        client = client_of(**regions)
        fleet = FleetOf(eu=0, us=10, asia=100)
        client._shares = Shares(fleet)  # type: ignore[arg-type]
        await client.submit(MAIL)  # nothing is known yet, and nothing is waited for
        await asyncio.sleep(0)
        counts = {name: len(region.again) for name, region in regions.items()}
        for _ in range(400):
            await client.submit(MAIL)
        given = {name: len(region.again) - counts[name] for name, region in regions.items()}
        assert given["eu"] == 0
        assert 10 < given["us"] < 70
        assert fleet.asked == 1
        await client.end()

    asyncio.run(go())


def test_a_region_that_is_slower_than_another_gets_less() -> None:
    async def go() -> None:
        regions = {name: Region("accepts") for name in REGIONS}
        calls = client_of(**regions)._regions
        assert calls.idle_first(["eu", "us", "asia"]) == ["eu", "us", "asia"]
        held = [
            asyncio.create_task(
                calls.watched("eu", Region("silent").call("accept", b"", b"", False, timeout_s=1))
            )
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        assert calls.idle_first(["eu", "us", "asia"]) == ["us", "eu", "asia"]
        assert calls.idle_first(["us", "eu", "asia"]) == ["us", "eu", "asia"]
        for call in held:
            call.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    asyncio.run(go())


@pytest.mark.parametrize("mail", [MAIL, [replace(MAIL[0], key="order 7")]], ids=["batch key", "own key"])
def test_a_key_that_another_process_may_have_used_is_asked_for_at_once(mail: list[Message]) -> None:
    async def go() -> None:
        regions = {name: Region("accepts") for name in REGIONS}
        await client_of(**regions).submit(mail, key=bytes(16))
        assert [again for region in regions.values() for again in region.again] == [True]

    asyncio.run(go())
