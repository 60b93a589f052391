from collections import Counter

from engine.failover.rendezvous import keep_together, rank
from engine.failover.standby_choice import preferred

REGION_OF = {"eu-1": "eu", "eu-2": "eu", "eu-3": "eu", "us-1": "us", "us-2": "us", "asia": "asia"}


def test_a_region_that_goes_moves_only_its_own_keys() -> None:
    keys = [b"%d" % n for n in range(300)]
    before = {key: rank(key, "abcd") for key in keys}
    after = {key: rank(key, "abd") for key in keys}
    assert all(after[key] == [r for r in before[key] if r != "c"] for key in keys)
    assert {before[key][0] for key in keys} == set("abcd")


def test_each_region_is_preferred_in_proportion_to_its_weight() -> None:
    keys = [b"%d" % n for n in range(6000)]
    assert all(rank(key, "abcd", dict.fromkeys("abcd", 40)) == rank(key, "abcd") for key in keys[:300])
    before = {key: rank(key, "abc")[0] for key in keys}
    after = {key: rank(key, "abc", {"b": 10})[0] for key in keys}
    share = Counter(after.values())
    assert 1 / 21 * 0.8 < share["b"] / len(keys) < 1 / 21 * 1.25
    assert {before[key] for key in keys if before[key] != after[key]} == {"b"}, "only its own keys move"
    assert all(rank(key, "abc", {"a": 0, "c": 0})[0] == "b" for key in keys[:300])


def test_shards_of_one_region_are_asked_behind_each_other() -> None:
    firsts: Counter[str] = Counter()
    for number in range(600):
        order = rank(b"%d" % number, REGION_OF)
        kept = keep_together(order, REGION_OF)
        assert (kept[0], sorted(kept)) == (order[0], sorted(order))
        groups = [REGION_OF[name] for name in kept]
        assert groups == sorted(groups, key=groups.index), kept
        firsts[kept[0]] += 1
        eu = keep_together(order, REGION_OF, ("eu-1", "eu-2", "eu-3"))
        assert {REGION_OF[name] for name in eu[:3]} == {"eu"}
        shard = keep_together(order, REGION_OF, ("us-2",))
        assert shard[:2] == ["us-2", "us-1"]
    assert min(firsts.values()) > 60, "every shard has its share of new mail"
    assert keep_together(rank(b"1", "abcd"), {name: name for name in "abcd"}) == rank(b"1", "abcd")


def test_a_shards_copies_stay_in_its_region_while_a_sibling_lives_and_each_holds_those_of_one() -> None:
    def choices(live: set[str]) -> dict[str, str]:
        return {
            name: preferred(
                name,
                [other for other in REGION_OF if REGION_OF[other] == REGION_OF[name] and other != name],
                sorted(live - {name}),
            )
            for name in sorted(live)
            if live - {name}
        }

    names = sorted(REGION_OF)
    for bits in range(1 << len(names)):
        live = {name for index, name in enumerate(names) if bits >> index & 1}
        for name, standby in choices(live).items():
            assert standby in live - {name}
            siblings = {other for other in live - {name} if REGION_OF[other] == REGION_OF[name]}
            assert standby in (siblings or live)
    chosen = choices(set(names))
    for region in ("eu", "us"):
        shards = [name for name in names if REGION_OF[name] == region]
        assert sorted(chosen[name] for name in shards) == shards


def test_regions_are_a_ring_and_whoever_dies_is_the_standby_of_one() -> None:
    for count in range(2, 9):
        names = [f"region-{n}" for n in range(count)]
        next_of = {name: preferred(name, (), [other for other in names if other != name]) for name in names}
        assert sorted(next_of.values()) == names
        for dead in names:
            left = {name: to for name, to in next_of.items() if to != dead and name != dead}
            (alone,) = (name for name, to in next_of.items() if to == dead)
            live = [name for name in names if name not in (alone, dead)]
            if live:
                assert preferred(alone, (), live) == next_of[dead], "the ring closes"
                assert all(
                    preferred(name, (), [n for n in names if n not in (name, dead)]) == to
                    for name, to in left.items()
                )
    assert preferred("a", ("b",), ["c"]) == "c"
