"""What the sites of a region make of the limits of their sources."""

from engine.config.load import parse_fleet
from engine.providers.profiles import load_profiles
from engine.region.sites import Sites, Terms
from native.scheduler import Scheduler
from tests.support.decisions import decisions, due_keys, packed
from tests.support.fleets import fleet_data


def test_a_cap_that_begins_counts_what_is_outstanding() -> None:
    """A source that goes back into its warm-up has messages under way: they are of the day, too."""
    config = parse_fleet(fleet_data(providers={"default": {"rate": "unlimited"}}))
    scheduler = Scheduler(seed=1)
    sites = Sites(config=config, region="eu", profiles=load_profiles(config.providers), scheduler=scheduler)
    site = sites.open("mx", "default", now_ns=0, day=1, used={}, terms={})
    scheduler.add(scheduler.flow(site.number, 0, 0, 0), due_keys(range(1, 100)))
    under_way = [d.id for d in decisions(scheduler.take(site.pool, 10**9, 6))]
    assert len(under_way) == 6
    sites.change(site, 0, Terms(daily_cap=10, daily_used=2))
    assert scheduler.daily_left(0, site.number) == 2
    scheduler.give_back(packed(under_way[:1]))
    assert scheduler.daily_left(0, site.number) == 3
    assert len(decisions(scheduler.take(site.pool, 2 * 10**9, 50))) == 3
