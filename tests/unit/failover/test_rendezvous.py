from engine.failover.rendezvous import rank


def test_a_region_that_goes_moves_only_its_own_keys() -> None:
    keys = [b"%d" % n for n in range(300)]
    before = {key: rank(key, "abcd") for key in keys}
    after = {key: rank(key, "abd") for key in keys}
    assert all(after[key] == [r for r in before[key] if r != "c"] for key in keys)
    assert {before[key][0] for key in keys} == set("abcd")
