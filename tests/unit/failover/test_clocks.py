"""A clock that is set back between two starts: who counts by it learns what was before, and goes on from there."""

from engine.failover.effects import Effect, Send, Write
from engine.failover.fleet import FleetMachine, first_epoch_above, first_epoch_at, number_above
from engine.failover.messages import (
    NO_ORDERS,
    Ask,
    Beat,
    BeatReply,
    Behind,
    Claim,
    Hello,
    RegionView,
    Standing,
)
from engine.failover.region import RegionMachine
from engine.failover.store import Adopt, Durable, Operation, SaveLife, TakeQueued
from engine.failover.timing import MS, Timing

DAY = 86_400 * 10**9
NOW = 1_900_000_000 * 10**9
LIVE, DEAD, RETURNING = Standing.LIVE, Standing.DEAD, Standing.RETURNING
LIVED = Durable(5, 3, True, "b")
B, C = RegionView("b", LIVE, 4), RegionView("c", LIVE, 3)


def fleet_at(wall_ns: int, names: str = "ab") -> FleetMachine:
    return FleetMachine(
        tuple(names), incarnation=wall_ns, now=0, timing=Timing(), first_epoch=first_epoch_at(wall_ns)
    )


def beats(fleet: FleetMachine, ms: int, *, since: int | None = None) -> dict[str, Beat]:
    """The next ones from then on. `since`: it has looked all the time since then."""
    for earlier in range(ms if since is None else since, ms, 50):
        fleet.tick(earlier * MS)
    return dict(fleet.tick(ms * MS) or fleet.tick((ms + 100) * MS))


def reply(beat: Beat, clock: int, epoch: int, *, known: int = 0, clean: bool = True) -> BeatReply:
    return BeatReply(beat.fleet, 1, clock, epoch, clean, (), True, False, known=known)


def region(name: str = "a", *, life: int = 1, durable: Durable = LIVED) -> RegionMachine:
    peers = tuple(peer for peer in "abc" if peer != name)
    return RegionMachine(
        name, peers, durable=durable, incarnation=life, now=0, timing=Timing(), accept_local=False
    )


def writes(effects: list[Effect]) -> list[Operation]:
    return [effect.operation for effect in effects if isinstance(effect, Write)]


def sent(effects: list[Effect], kind: type) -> list[object]:
    return [
        effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)
    ]


# -- Fleet


def test_a_fleet_that_is_not_obeyed_takes_a_greater_number_and_begins_anew() -> None:
    before = first_epoch_at(NOW)
    fleet = fleet_at(NOW - DAY)
    beat = beats(fleet, 0)["a"]
    fleet.receive("a", Behind(beat.fleet, NOW, before + 7), 10 * MS)
    again = beats(fleet, 50)
    assert again["a"].fleet > NOW
    for name in "ab":
        fleet.receive(name, reply(again[name], 60 * MS, before + 3 + (name == "b")), 60 * MS)
    later = beats(fleet, 200)
    assert all(beat.stamp == 60 * MS and beat.first > before + 7 for beat in later.values())


def test_what_it_was_told_under_the_smaller_number_does_not_count() -> None:
    """Who answered it then may have obeyed another since."""
    fleet = fleet_at(NOW - DAY)
    first = beats(fleet, 0)
    fleet.receive("a", reply(first["a"], 1, 5), 10 * MS)
    fleet.receive("b", Behind(first["b"].fleet, NOW, 7), 10 * MS)
    fleet.receive("a", reply(first["a"], 2, 5), 20 * MS)
    second = beats(fleet, 50)
    fleet.receive("b", reply(second["b"], 3, 6), 60 * MS)
    assert not fleet.ready
    assert beats(fleet, 150)["b"].stamp == -1


def test_two_that_are_told_of_the_same_take_different_numbers() -> None:
    first, second = number_above(NOW, NOW - DAY), number_above(NOW, NOW - DAY + 1)
    assert len({first, second}) == 2
    assert min(first, second) > NOW
    assert max(first, second) - NOW < 10 * 10**9


def test_a_fleet_whose_region_obeys_another_since_has_been_superseded() -> None:
    """As when it was frozen: it does not outbid the one that has taken its place, even if it was not ready."""
    fleet = fleet_at(NOW)
    beat = beats(fleet, 0)["a"]
    fleet.receive("a", reply(beat, 1, 5), 10 * MS)
    fleet.receive("a", Behind(beat.fleet, NOW + DAY, 5), 20 * MS)
    assert fleet.is_superseded
    assert beats(fleet, 200) == {}


def test_so_has_one_that_is_ready_and_hears_it_from_a_region_that_had_not_answered_it() -> None:
    fleet = fleet_at(NOW, "abc")
    first = beats(fleet, 0)
    for name in "ab":
        fleet.receive(name, reply(first[name], 1, 5), 10 * MS)
    later = beats(fleet, 800, since=50)
    assert fleet.ready
    fleet.receive("c", Behind(later["c"].fleet, NOW + DAY, 5), 810 * MS)
    assert fleet.is_superseded


def test_a_fleet_that_was_frozen_begins_anew_and_gives_no_lease_for_what_it_knew() -> None:
    """Another may have given leases meanwhile, even one with a smaller number."""
    fleet = fleet_at(NOW)
    first = beats(fleet, 0)
    for name in "ab":
        fleet.receive(name, reply(first[name], 1, 5), 10 * MS)
    second = beats(fleet, 100)
    assert fleet.ready
    assert second["a"].stamp == 1
    third = beats(fleet, 900)
    assert third["a"].fleet > first["a"].fleet
    assert (third["a"].stamp, third["a"].view, third["a"].first) == (-1, (), NO_ORDERS)
    fleet.receive("a", reply(second["a"], 2, 5), 910 * MS)
    fleet.receive("b", reply(second["b"], 2, 5), 910 * MS)
    assert beats(fleet, 1000)["a"].stamp == -1


def test_what_it_ordered_before_is_no_order_any_more() -> None:
    """It may find the region live: nobody had heard of it."""
    fleet = fleet_at(NOW)
    first = beats(fleet, 0)
    for name in "ab":
        fleet.receive(name, reply(first[name], 1, 5), 10 * MS)
    for ms in range(100, 900, 50):
        fleet.receive("a", reply(beats(fleet, ms).get("a", first["a"]), ms * MS, 5), ms * MS)
    dead = next(view.epoch for view in fleet.view(900 * MS) if view.name == "b")
    assert dead > 5
    again = beats(fleet, 1800)
    for name in "ab":
        fleet.receive(name, reply(again[name], 2000 * MS, 5), 1810 * MS)
    assert beats(fleet, 1900)["a"].first == dead


def test_nor_does_it_outbid_the_one_that_has_taken_its_place() -> None:
    fleet = fleet_at(NOW)
    first = beats(fleet, 0)
    for name in "ab":
        fleet.receive(name, reply(first[name], 1, 5), 10 * MS)
    beat = beats(fleet, 900)["a"]
    fleet.receive("a", Behind(beat.fleet, NOW + 5, 5), 910 * MS)
    assert fleet.is_superseded


def test_a_refusal_of_what_it_was_before_changes_nothing() -> None:
    fleet = fleet_at(NOW - DAY)
    beat = beats(fleet, 0)["a"]
    fleet.receive("a", Behind(beat.fleet, NOW, 5), 10 * MS)
    number = fleet.incarnation
    fleet.receive("b", Behind(beat.fleet, NOW + 1, 5), 20 * MS)
    assert (fleet.incarnation, fleet.is_superseded) == (number, False)


def test_epochs_that_a_region_has_only_heard_of_are_not_given_again() -> None:
    """They were given to one that is away."""
    fleet = fleet_at(NOW - DAY)
    before = first_epoch_at(NOW) + 7
    beat = beats(fleet, 0)["a"]
    assert beat.first == NO_ORDERS
    fleet.receive("a", reply(beat, 1, 5, known=before), 10 * MS)
    beat = beats(fleet, 2500, since=50)["a"]
    assert fleet.ready
    assert beat.first == first_epoch_above(before) > before + (1 << 18)
    assert next(view.epoch for view in beat.view if view.name == "b") > beat.first


def test_nor_are_those_of_which_a_region_tells_that_comes_later() -> None:
    fleet = fleet_at(NOW - DAY)
    beat = beats(fleet, 0)["a"]
    fleet.receive("a", reply(beat, 1, 5), 10 * MS)
    beats(fleet, 2500, since=50)
    before = first_epoch_at(NOW) + 7
    fleet.receive("b", reply(beats(fleet, 2600)["b"], 1, before), 2700 * MS)
    beat = beats(fleet, 2800)["b"]
    assert beat.first > before
    assert beat.epoch > beat.first


def test_its_own_epochs_are_its_own() -> None:
    fleet = fleet_at(NOW, "a")
    beat = beats(fleet, 0)["a"]
    fleet.receive("a", reply(beat, 1, 0, clean=False), 10 * MS)
    beat = beats(fleet, 100)["a"]
    assert beat.epoch == first_epoch_at(NOW) + 1
    fleet.receive("a", reply(beat, 2, beat.epoch, clean=False, known=beat.epoch), 110 * MS)
    assert beats(fleet, 200)["a"].first == first_epoch_at(NOW)


# -- a region


def test_a_region_tells_a_fleet_that_it_does_not_obey_what_it_knows() -> None:
    a = region()
    view = (RegionView("a", LIVE, 5), B, RegionView("c", DEAD, 90))
    a.receive("", Beat(9, 1, 1, 5, 900 * MS, False, view, 80), 1000 * MS)
    effects = a.receive("", Beat(4, 1, 1, 200, -1, False, view, 100), 1010 * MS)
    assert effects == [Send("", Behind(4, 9, 90))]
    assert a.may_dispatch(1100 * MS)


def test_who_was_not_ready_has_no_epochs_to_tell_of() -> None:
    a = region()
    a.receive("", Beat(9, 1, 1, 0, -1, False, (), NO_ORDERS), 1000 * MS)
    assert a.receive("", Beat(4, 1, 1, 0, -1, False, (), 3), 1010 * MS) == [Send("", Behind(4, 9, 5))]


def test_a_beat_that_is_only_late_is_not_answered() -> None:
    a = region()
    a.receive("", Beat(9, 2, 1, 5, -1, False, (B, C), 1), 1000 * MS)
    assert a.receive("", Beat(9, 1, 1, 5, -1, False, (B, C), 1), 1010 * MS) == []


def test_an_order_of_the_fleet_before_is_none_of_one_that_gives_smaller_epochs() -> None:
    a = region()
    a.receive("", Beat(2, 1, 1, 5, 900 * MS, False, (RegionView("c", LIVE, 3), B), 70), 1000 * MS)
    a.receive("", Beat(3, 1, 1, 5, 900 * MS, False, (B, C), 6), 1100 * MS)
    claim = Claim(1, b"k" * 16, dead=(("c", 70),))
    assert a.receive("b", claim, 1200 * MS) == []
    assert writes(a.receive("b", Claim(2, b"k" * 16, dead=(("c", 71),)), 1200 * MS)) == [Adopt("c", 71, 5)]


def test_a_process_that_is_not_heard_takes_a_greater_number() -> None:
    """Fleet has heard one before the disk was lost, when the clock said a later time."""
    a = region(life=4, durable=Durable(epoch=5))
    beat = Beat(1, 1, 900, 5, 950 * MS, True, (B, C))
    (save,) = writes(a.receive("", beat, 1000 * MS))
    assert save == SaveLife(901)
    assert writes(a.receive("", Beat(1, 2, 900, 5, 950 * MS, True, (B, C)), 1100 * MS)) == []
    assert a.committed(save, None, 1110 * MS) == []
    effects = a.receive("", Beat(1, 3, 901, 5, 1100 * MS, True, (B, C)), 1200 * MS)
    (answer,) = sent(effects, BeatReply)
    assert isinstance(answer, BeatReply)
    assert answer.life == 901
    (listing,) = writes(effects)
    assert isinstance(listing, TakeQueued)
    assert listing.tag >> 24 == 901  # nobody takes it for a question of a process before


def test_a_beat_for_an_earlier_process_changes_no_number() -> None:
    a = region(life=4)
    assert writes(a.receive("", Beat(1, 1, 3, 5, 900 * MS, False, (B, C)), 1000 * MS)) == []
    assert a.own.life == 4


def test_with_another_number_it_has_no_slot() -> None:
    """Fleet gives it to another as soon as it hears the number."""
    a = region(life=4, durable=Durable(epoch=5, first=3, standby="b"))
    (listing,) = writes(a.receive("", Beat(1, 1, 4, 5, 900 * MS, True, (B, C)), 1000 * MS))
    assert isinstance(listing, TakeQueued)
    (save,) = writes(a.receive("", Beat(1, 2, 6, 5, 900 * MS, False, (B, C)), 1050 * MS))
    a.committed(save, None, 1060 * MS)
    assert a.returning.slot_until == -1
    assert sent(a.tick(1100 * MS), Ask) == []


def test_a_standby_that_was_greeted_under_a_smaller_number_is_greeted_again() -> None:
    a = region(life=4)
    (hello,) = sent(a.receive("", Beat(1, 1, 4, 5, 900 * MS, False, (B, C)), 1000 * MS), Hello)
    assert isinstance(hello, Hello)
    (save,) = writes(a.receive("", Beat(1, 2, 6, 5, 900 * MS, False, (B, C)), 1050 * MS))
    a.committed(save, None, 1060 * MS)
    (hello,) = sent(a.tick(1250 * MS), Hello)
    assert isinstance(hello, Hello)
    assert hello.session >> 24 == 7
