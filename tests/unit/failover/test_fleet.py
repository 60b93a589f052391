"""Fleet: it calls nobody dead whose lease may run, and a new one begins with what the regions know."""

from engine.failover.fleet import FleetMachine, first_epoch_at
from engine.failover.messages import Beat, BeatReply, Standing
from engine.failover.timing import MS, Timing

T = Timing()


class Regions:
    """Regions that answer each beat at once, except those that are `silent`."""

    def __init__(self, fleet: FleetMachine, names: str, epochs: dict[str, int] | None = None) -> None:
        self.fleet = fleet
        self.epochs = epochs or dict.fromkeys(names, 0)
        self.clean = dict.fromkeys(names, bool(epochs))
        self.fences: dict[str, tuple[tuple[str, int], ...]] = {}
        self.silent: set[str] = set()
        self.stuck: set[str] = set()  # they never finish their return
        self.last: dict[str, Beat] = {}
        self.unbroken: set[str] = set()
        self.fresh: set[str] = set()

    def run(self, start_ms: int, end_ms: int) -> None:
        for now in range(start_ms * MS, end_ms * MS, 50 * MS):
            for name, beat in self.fleet.tick(now):
                if name in self.silent:
                    continue
                self.last[name] = beat
                if beat.epoch > self.epochs[name]:
                    self.epochs[name], self.clean[name] = beat.epoch, False
                elif beat.slot and beat.stamp >= 0 and name not in self.stuck:
                    self.clean[name] = True
                reply = BeatReply(
                    beat.fleet,
                    1,
                    now,
                    self.epochs[name],
                    self.clean[name],
                    self.fences.get(name, ()),
                    name in self.unbroken,
                    name in self.fresh,
                )
                self.fleet.receive(name, reply, now)

    def standing(self, now_ms: int) -> dict[str, Standing]:
        return {view.name: view.standing for view in self.fleet.view(now_ms * MS)}


def fleet_of(names: str, incarnation: int = 1, now_ms: int = 0) -> FleetMachine:
    return FleetMachine(
        tuple(names), incarnation=incarnation, now=now_ms * MS, timing=T, first_epoch=100 * (incarnation - 1)
    )


def test_regions_get_an_epoch_each_and_then_leases() -> None:
    regions = Regions(fleet_of("abc"), "abc")
    regions.run(0, 1500)
    assert sorted(regions.epochs.values()) == [1, 2, 3]
    assert all(beat.stamp >= 0 for beat in regions.last.values())
    assert set(regions.standing(1500).values()) == {Standing.LIVE}


def test_suspect_after_three_misses_dead_when_the_lease_has_run_out() -> None:
    regions = Regions(fleet_of("abc"), "abc")
    regions.run(0, 1000)
    epoch = regions.epochs["b"]
    heard_ms = 900
    regions.silent.add("b")
    regions.run(1000, heard_ms + 300)
    assert regions.standing(1200)["b"] is Standing.LIVE
    regions.run(heard_ms + 300, heard_ms + 750)
    assert regions.standing(1650)["b"] is Standing.SUSPECT
    regions.run(heard_ms + 750, heard_ms + 800)
    assert regions.standing(1700)["b"] is Standing.DEAD
    view = {v.name: v for v in regions.fleet.view(1700 * MS)}
    assert view["b"].epoch > epoch


def test_those_that_return_do_so_one_after_the_other() -> None:
    regions = Regions(fleet_of("abc"), "abc")
    regions.run(0, 2000)
    regions.silent = {"b", "c"}
    regions.run(2000, 3000)
    regions.silent = set()
    at_once = 0
    for now in range(3000, 4500, 50):
        regions.run(now, now + 50)
        at_once = max(at_once, sum(beat.slot for beat in regions.last.values()))
    assert at_once == 1
    assert set(regions.standing(4500).values()) == {Standing.LIVE}


def test_the_next_waits_until_the_one_before_has_said_that_it_did_not_return_in_its_slot() -> None:
    """Old answers that come late do not tell: it may have returned since."""
    fleet = fleet_of("ab")
    regions = Regions(fleet, "ab")
    regions.stuck = {"a"}
    now = 0
    while now < 1000 or regions.last["a"].slot:
        regions.run(now, now + 50)
        now += 50
    assert not regions.last["b"].slot
    regions.silent = {"a"}
    late = BeatReply(1, 1, (now - 50) * MS, regions.epochs["a"], False, (), True, False)
    for later in range(now, now + 1500, 50):
        fleet.receive("a", late, later * MS)
        regions.run(later, later + 50)
        assert not regions.last["b"].slot
    regions.silent = set()
    regions.run(now + 1500, now + 1800)
    assert regions.standing(now + 1800)["b"] is Standing.LIVE


def test_one_that_does_not_get_on_lets_the_next_try_when_its_lease_is_over() -> None:
    regions = Regions(fleet_of("abc"), "abc")
    regions.run(0, 2000)
    regions.silent = {"b", "c"}
    regions.run(2000, 3000)
    regions.silent = set()
    regions.stuck = {"b"}
    regions.run(3000, 8000)
    assert regions.standing(8000) == {"a": Standing.LIVE, "b": Standing.RETURNING, "c": Standing.LIVE}


def test_a_region_that_has_lost_its_disk_gets_a_new_epoch() -> None:
    regions = Regions(fleet_of("abc"), "abc")
    regions.run(0, 2000)
    before = regions.epochs["b"]
    regions.epochs["b"], regions.clean["b"] = 0, False
    regions.run(2000, 3000)
    assert regions.epochs["b"] > before


def test_its_share_of_new_mail_grows_slowly() -> None:
    regions = Regions(fleet_of("ab"), "ab")
    regions.run(0, 12_000)
    assert {v.weight for v in regions.fleet.view(12_000 * MS)} == {100}
    regions.silent = {"b"}
    regions.run(12_000, 13_000)
    regions.silent = set()
    regions.run(13_000, 18_000)
    weight = {v.name: v.weight for v in regions.fleet.view(18_000 * MS)}
    assert weight["a"] == 100
    assert 40 < weight["b"] < 70


def test_a_new_fleet_gives_no_lease_before_the_old_ones_have_run_out() -> None:
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 6})
    regions.unbroken = {"a", "b"}
    regions.silent = {"c"}
    regions.run(10_000, 10_750)
    assert {beat.stamp for beat in regions.last.values()} == {-1}
    regions.run(10_750, 11_200)
    assert regions.standing(11_200)["c"] is Standing.DEAD
    assert regions.last["a"].stamp >= 0
    assert regions.epochs["a"] == 4


def test_a_new_fleet_lets_those_return_that_only_an_absent_region_may_know_to_be_dead() -> None:
    """That one may have adopted and sent what they still have."""
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 6})
    regions.unbroken = {"b"}
    regions.silent = {"c"}
    regions.run(10_000, 11_500)
    assert regions.epochs["a"] > 6
    assert regions.epochs["b"] == 5
    assert regions.standing(11_500) == {"a": Standing.LIVE, "b": Standing.LIVE, "c": Standing.DEAD}


def test_a_region_with_a_new_disk_has_forgotten_whom_it_knew_to_be_dead() -> None:
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 7})
    regions.clean["c"], regions.fresh = False, {"c"}
    regions.unbroken = {"b"}
    regions.run(10_000, 10_500)
    assert regions.epochs["a"] > 7
    assert (regions.epochs["b"], regions.epochs["c"]) == (5, 7)


def test_a_new_fleet_waits_for_those_that_come_late_while_nobody_has_its_lease() -> None:
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 6})
    regions.silent = {"c"}
    regions.run(10_000, 10_000 + T.gather // MS - 100)
    assert {beat.stamp for beat in regions.last.values()} == {-1}
    regions.silent = set()
    regions.run(10_000 + T.gather // MS - 100, 12_500)
    assert regions.epochs == {"a": 4, "b": 5, "c": 6}
    assert set(regions.standing(12_500).values()) == {Standing.LIVE}


def test_a_new_fleet_gives_epochs_that_no_fleet_before_it_can_have_given() -> None:
    """The only region it hears has a new disk, and knows of no epoch; the others come later with theirs."""
    regions = Regions(fleet_of("ab", 2, 10_000), "ab", {"a": 0, "b": 5})
    regions.clean["a"] = False
    regions.silent = {"b"}
    regions.run(10_000, 12_500)
    assert regions.epochs["a"] > 100
    regions.silent = set()
    regions.run(12_500, 12_800)
    assert regions.epochs["b"] > 100


def test_epochs_grow_with_the_time_and_are_exact_in_json() -> None:
    second = 10**9
    year_2078 = 3_408_000_000 * second
    assert first_epoch_at(2 * second) - first_epoch_at(second) == 10 << 18
    assert float(first_epoch_at(year_2078) + 1) != float(first_epoch_at(year_2078))


def test_a_fence_that_becomes_known_late_supersedes_a_live_region() -> None:
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 6})
    regions.silent = {"c"}
    regions.run(10_000, 11_200)
    regions.silent = set()
    regions.fences["c"] = (("a", 20),)
    regions.run(11_200, 11_500)
    assert regions.epochs["a"] > 20
    assert regions.standing(11_500)["a"] is Standing.LIVE


def test_a_new_fleet_that_hears_everybody_goes_on_with_their_epochs() -> None:
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 6})
    regions.run(10_000, 10_300)
    assert regions.epochs == {"a": 4, "b": 5, "c": 6}
    assert regions.last["a"].stamp >= 0


def test_a_new_fleet_believes_the_fence_that_a_region_has_on_disk() -> None:
    regions = Regions(fleet_of("abc", 2, 10_000), "abc", {"a": 4, "b": 5, "c": 6})
    regions.fences["b"] = (("a", 9),)
    regions.run(10_000, 10_300)
    assert regions.epochs["a"] > 9
    assert regions.epochs["b"] == 5


def test_answers_to_another_fleet_do_not_count() -> None:
    fleet = fleet_of("a", 2)
    fleet.receive("a", BeatReply(1, 1, 5, 3, True, (), True, False), 0)
    fleet.tick(900 * MS)
    assert fleet.view(900 * MS)[0].standing is Standing.DEAD


def test_a_restarted_process_counts_its_clock_from_zero_and_is_heard() -> None:
    fleet = fleet_of("a", 2)
    fleet.tick(0)
    fleet.receive("a", BeatReply(2, 1, 10**15, 3, True, (), True, False), 0)
    fleet.receive("a", BeatReply(2, 2, 5, 3, True, (), True, False), 10 * MS)
    ((_, beat),) = fleet.tick(100 * MS)
    assert (beat.life, beat.stamp) == (2, 5)
