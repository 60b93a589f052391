"""Tenants: what makes them poor, what does not, and how they return."""

import random

import msgpack
import pytest

from engine.config.quality import QualityConfig
from engine.reputation.tenant import Change, TenantStanding
from engine.values.quality import Quality

CONFIG = QualityConfig()
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


class Life:
    """A tenant and its clock."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.standing = TenantStanding(CONFIG, "acme", 0)
        self.changes: list[Change] = []

    def send(
        self, after_ms: int, delivered: int, *, bounced: int = 0, refused: int = 0, complaints: int = 0
    ) -> Quality:
        self.now_ms += after_ms
        self.standing.observe(self.now_ms, (delivered, bounced, refused, complaints))
        change = self.standing.advance(self.now_ms)
        if change is not None:
            self.changes.append(change)
        return self.standing.quality


def test_a_new_tenant_proves_itself_by_mail_and_time() -> None:
    life = Life()
    assert life.send(HOUR_MS, 5000) is Quality.NEW
    assert life.send(22 * HOUR_MS, 100) is Quality.NEW
    assert life.send(HOUR_MS, 100) is Quality.GOOD
    assert "5200 attempts" in life.changes[0].reason


def test_time_alone_proves_nothing() -> None:
    life = Life()
    assert life.send(10 * DAY_MS, 900) is Quality.NEW


@pytest.mark.parametrize(
    ("counts", "quality"),
    [
        ({"delivered": 75, "bounced": 25}, Quality.POOR),
        ({"delivered": 60, "bounced": 30}, Quality.NEW),  # too few to judge
        ({"delivered": 970, "bounced": 30}, Quality.NEW),
        ({"delivered": 190, "refused": 30}, Quality.POOR),
        ({"delivered": 10_000, "complaints": 40}, Quality.POOR),
        ({"delivered": 10_000, "complaints": 8}, Quality.NEW),
        ({"delivered": 400, "complaints": 1}, Quality.NEW),  # one may be chance
    ],
)
def test_what_makes_a_tenant_poor(counts: dict[str, int], quality: Quality) -> None:
    assert Life().send(0, **counts) is quality


def test_complaints_that_come_hours_later_are_compared_with_the_mail_they_are_about() -> None:
    life = Life()
    life.send(0, 20_000)
    for _ in range(20):
        assert life.send(10 * MINUTE_MS, 10, complaints=1) is Quality.NEW


def test_a_good_list_is_hardly_ever_called_bad() -> None:
    rng = random.Random(5)
    for _ in range(50):
        life = Life()
        for _ in range(60):
            bounced = sum(rng.random() < 0.03 for _ in range(50))
            assert life.send(MINUTE_MS, 50 - bounced, bounced=bounced) is not Quality.POOR


def test_a_poor_tenant_returns_by_good_mail_not_by_silence() -> None:
    life = Life()
    assert life.send(0, 700, bounced=300) is Quality.POOR
    assert life.send(DAY_MS - 1, 0) is Quality.POOR
    assert life.send(60 * DAY_MS, 0) is Quality.POOR  # all is forgotten, nothing is proved
    assert life.send(0, 150) is Quality.POOR
    assert life.send(MINUTE_MS, 60) is Quality.NEW
    assert life.send(DAY_MS, 2000) is Quality.GOOD
    assert [str(change.after) for change in life.changes] == ["poor", "new", "good"]


def test_a_poor_tenant_stays_so_long_as_its_mail_is_bad() -> None:
    life = Life()
    life.send(0, 700, bounced=300)
    for _ in range(48):
        assert life.send(HOUR_MS, 70, bounced=30) is Quality.POOR


def test_stays_double_and_are_forgiven() -> None:
    life = Life()
    stays = []
    for _ in range(3):
        assert life.send(0, 70_000, bounced=30_000) is Quality.POOR
        stays.append(life.standing.stay_ms)
        assert life.send(life.standing.stay_ms + 30 * DAY_MS, 10_000) is Quality.NEW
    assert stays == [DAY_MS, 2 * DAY_MS, 4 * DAY_MS]
    assert life.send(DAY_MS, 10_000) is Quality.GOOD
    for _ in range(3):
        life.send(7 * DAY_MS, 10_000)
    assert life.standing.strikes == 0


def test_a_clock_that_is_set_back_keeps_no_tenant_poor_for_ever() -> None:
    life = Life()
    assert life.send(400 * DAY_MS, 700, bounced=300) is Quality.POOR
    assert life.send(-399 * DAY_MS, 1) is Quality.POOR
    assert life.send(DAY_MS, 10_000) is Quality.NEW


def test_no_flapping_whatever_it_sends() -> None:
    rng = random.Random(9)
    for _ in range(20):
        life = Life()
        for _ in range(400):
            bad = rng.random() * rng.choice([0, 0.1, 0.9])
            count = rng.choice([0, 20, 2000])
            life.send(rng.randrange(3 * HOUR_MS), round(count * (1 - bad)), bounced=round(count * bad))
        falls = [c.at_ms for c in life.changes if c.after is Quality.POOR]
        rises = [c.at_ms for c in life.changes if c.before is Quality.POOR]
        for fall, rise in zip(falls, rises, strict=False):
            assert rise - fall >= DAY_MS


def test_it_is_condemned_once() -> None:
    life = Life()
    assert life.standing.condemn(1, "its source was removed") is not None
    assert life.standing.condemn(2, "again") is None
    assert life.standing.reason == "its source was removed"


def test_an_operator_may_overrule() -> None:
    life = Life()
    life.send(0, 700, bounced=300)
    change = life.standing.order(1, Quality.GOOD, "by an operator")
    assert change is not None
    assert life.standing.order(2, Quality.GOOD, "by an operator") is None
    assert life.send(HOUR_MS, 1) is Quality.GOOD  # what it was moved for is forgotten
    assert life.send(HOUR_MS, 700, bounced=300) is Quality.POOR


def test_it_survives_a_restart() -> None:
    life = Life()
    life.send(0, 700, bounced=300)
    life.send(HOUR_MS, 10)
    state = msgpack.unpackb(msgpack.packb(life.standing.to_state()))
    again = TenantStanding.from_state(CONFIG, "acme", state)
    assert again.to_state() == life.standing.to_state()
    assert again.judge(life.now_ms) == life.standing.judge(life.now_ms)
