"""Stages: thirty days that equal the table, and every reason to hold, step back, decay, pause."""

import msgpack
import pytest
from pydantic import ValidationError

from engine.config.warmup import WarmupConfig, WarmupTable
from engine.warmup.plan import DAY_MS, HOUR_MS, Phase, Plan
from engine.warmup.tables import load_tables, shipped
from engine.warmup.warmup import Warmup
from tests.support.fleets import fleet_data

CONFIG = WarmupConfig()
TABLE = WarmupTable.model_validate({"stages": [100, 200, 400], "providers": {"yahoo": [50, 100]}})
START_MS = 20_000 * DAY_MS


def plan(stages: tuple[int, ...] = (100, 200, 400)) -> Plan:
    table = WarmupTable.model_validate({"stages": list(stages)})
    return Plan(CONFIG, table.stages, "google", START_MS)


def close_day(subject: Plan, day: int, *, attempts: int, delivered: int, score: int = 100) -> list[str]:
    """Use a day and see what its end makes of it."""
    subject.observe(START_MS + (day + 1) * DAY_MS - 1, attempts, delivered)
    return [change.kind for change in subject.advance(START_MS + (day + 1) * DAY_MS, score)]


@pytest.mark.parametrize("name", ["conservative", "standard"])
def test_days_that_use_the_cap_equal_the_table_to_the_message(name: str) -> None:
    """Always more mail than the cap: what is sent each day is what the table says; then there is no cap."""
    table = shipped()[name]
    warmup = Warmup(CONFIG, table)
    sent = []
    for day in range(30):
        today = 0
        for hour in range(24):
            now_ms = START_MS + day * DAY_MS + hour * HOUR_MS
            warmup.advance(now_ms, lambda _: 100)
            cap = warmup.cap(now_ms, "google")
            if cap is None:
                break
            count = min(cap.hour, cap.day - today)
            today += count
            warmup.observe(now_ms, "google", attempts=count, delivered=count, score=100)
        sent.append(today)
    expected = [stage.day for stage in table.stages]
    assert sent == expected + [0] * (30 - len(expected))
    assert warmup.cap(START_MS + 30 * DAY_MS, "google") is None


def test_a_day_below_the_delivered_share_is_held() -> None:
    subject = plan()
    assert close_day(subject, 0, attempts=100, delivered=89) == ["held"]
    assert subject.stage == 0
    assert close_day(subject, 1, attempts=100, delivered=90) == ["advanced"]
    assert subject.stage == 1


def test_a_day_that_did_not_use_the_cap_is_held() -> None:
    assert close_day(plan(), 0, attempts=80, delivered=80) == ["held"]


def test_a_low_score_holds() -> None:
    subject = plan()
    assert close_day(subject, 0, attempts=100, delivered=100, score=79) == ["held"]
    assert close_day(subject, 1, attempts=100, delivered=100, score=80) == ["advanced"]


def test_the_last_stage_finishes() -> None:
    subject = plan((100,))
    assert close_day(subject, 0, attempts=100, delivered=100) == ["finished"]
    assert subject.cap(START_MS + DAY_MS) is None
    assert subject.days_left() == 0


def test_days_without_progress_are_an_alert_once() -> None:
    subject = plan()
    kinds = [close_day(subject, day, attempts=10, delivered=10) for day in range(12)]
    assert kinds[9] == ["held", "stalled"]
    assert sum("stalled" in day for day in kinds) == 1


def test_idle_days_do_not_advance_and_long_idleness_decays() -> None:
    subject = plan()
    close_day(subject, 0, attempts=100, delivered=100)
    close_day(subject, 1, attempts=200, delivered=200)
    assert subject.advance(START_MS + 30 * DAY_MS, 100) == []
    assert subject.stage == 2
    (change,) = subject.advance(START_MS + 40 * DAY_MS, 100)
    assert (change.kind, subject.stage) == ("decayed", 1)
    assert [c.kind for c in subject.advance(START_MS + 100 * DAY_MS, 100)] == ["decayed"]
    assert subject.stage == 0


def test_a_finished_warm_up_decays_too() -> None:
    subject = plan((100, 200))
    close_day(subject, 0, attempts=100, delivered=100)
    close_day(subject, 1, attempts=200, delivered=200)
    assert subject.phase is Phase.FINISHED
    subject.advance(START_MS + (2 + 37) * DAY_MS, 100)
    assert (subject.phase, subject.stage) == (Phase.RUNNING, 1)


def test_a_rate_limit_costs_one_stage_a_day_and_that_day_does_not_advance() -> None:
    subject = plan()
    close_day(subject, 0, attempts=100, delivered=100)
    now_ms = START_MS + DAY_MS + HOUR_MS
    change = subject.step_back(now_ms, "421 4.7.28")
    assert change is not None
    assert (change.kind, subject.stage) == ("stepped back", 0)
    assert subject.step_back(now_ms, "421 4.7.28") is None
    cap = subject.cap(now_ms)
    assert cap is not None
    assert cap.day == 100
    assert close_day(subject, 1, attempts=100, delivered=100) == ["held"]
    assert close_day(subject, 2, attempts=100, delivered=100) == ["advanced"]


def test_a_skip_after_a_step_back_is_a_new_beginning() -> None:
    subject = plan()
    subject.skip(START_MS, 1)
    assert subject.step_back(START_MS, "421 4.7.28") is not None
    subject.skip(START_MS, 2)
    change = subject.step_back(START_MS + HOUR_MS, "421 4.7.28")
    assert change is not None
    assert (change.kind, subject.stage) == ("stepped back", 1)
    subject.skip(START_MS, 0)
    assert close_day(subject, 0, attempts=100, delivered=100) == ["advanced"]


def test_a_pause_does_not_keep_a_stage_that_a_provider_complains_about() -> None:
    subject = plan()
    subject.skip(START_MS, 2)
    assert subject.pause(START_MS) is not None
    assert subject.step_back(START_MS, "421 4.7.28") is not None
    assert (subject.phase, subject.stage) == (Phase.PAUSED, 1)
    assert subject.step_back(START_MS + HOUR_MS, "421 4.7.28") is None
    assert (subject.phase, subject.stage) == (Phase.PAUSED, 1)
    assert close_day(subject, 0, attempts=200, delivered=200) == []
    assert (subject.phase, subject.stage) == (Phase.PAUSED, 1)


def test_pause_holds_the_stage_and_skip_goes_to_any() -> None:
    subject = plan()
    assert subject.pause(START_MS) is not None
    assert subject.pause(START_MS) is None
    assert close_day(subject, 0, attempts=100, delivered=100) == []
    assert subject.stage == 0
    assert subject.resume(START_MS) is not None
    subject.skip(START_MS, 2)
    cap = subject.cap(START_MS + DAY_MS)
    assert cap is not None
    assert cap.day == 400
    with pytest.raises(ValueError, match="stage 4: allowed are 0 to 3"):
        subject.skip(START_MS, 4)
    subject.skip(START_MS, 3)
    assert subject.phase is Phase.FINISHED


@pytest.mark.parametrize("days", [1, 2, 400])
def test_a_clock_that_is_set_back_delays_the_next_stage_by_a_day_at_most(days: int) -> None:
    subject = plan()
    subject.advance(START_MS + days * DAY_MS, 100)
    subject.observe(START_MS + days * DAY_MS, 100, 100)
    subject = Plan.from_state(CONFIG, subject._stages, "google", subject.to_state())
    assert subject.advance(START_MS, 100) == []
    assert subject.advance(START_MS + DAY_MS, 100) == []
    assert [change.kind for change in subject.advance(START_MS + 2 * DAY_MS, 100)] == ["advanced"]


def test_the_rest_of_the_cap_is_spread_over_the_rest_of_the_day() -> None:
    subject = plan((230, 460))
    cap = subject.cap(START_MS)
    assert cap is not None
    assert cap.interval_us == 23 * HOUR_MS * 1000 // 230
    subject.observe(START_MS + 17 * HOUR_MS, 130, 130)
    cap = subject.cap(START_MS + 18 * HOUR_MS)
    assert cap is not None
    assert cap.interval_us == 5 * HOUR_MS * 1000 // 100
    late = subject.cap(START_MS + 22 * HOUR_MS + HOUR_MS // 2)
    assert late is not None
    assert late.interval_us == -(-HOUR_MS * 1000 // 46), "never faster than the hourly cap"


def test_the_forecast_is_a_day_for_each_stage_that_is_left() -> None:
    warmup = Warmup(CONFIG, TABLE)
    warmup.observe(START_MS, "google", attempts=40, delivered=39, score=100)
    (view,) = warmup.views(START_MS)
    assert (view.day_cap, view.hour_cap, view.attempts, view.remaining) == (100, 20, 40, 60)
    assert view.end_day == START_MS // DAY_MS + 3


def test_a_provider_may_have_stages_of_its_own_and_the_long_tail_has_the_common_ones() -> None:
    warmup = Warmup(CONFIG, TABLE)
    caps = {site: warmup.cap(START_MS, site) for site in ("yahoo", "google", "mx:example.org")}
    assert {site: cap.day for site, cap in caps.items() if cap} == {
        "yahoo": 50,
        "google": 100,
        "mx:example.org": 100,
    }


def test_a_warm_source_has_no_caps_and_no_plans() -> None:
    warmup = Warmup(CONFIG, None)
    assert warmup.observe(START_MS, "google", attempts=5, delivered=5, score=100) == []
    assert warmup.cap(START_MS, "google") is None
    assert warmup.plans == {}


def test_everything_survives_a_restart() -> None:
    warmup = Warmup(CONFIG, TABLE)
    for site in ("google", "yahoo"):
        warmup.observe(START_MS, site, attempts=100, delivered=100, score=100)
    warmup.advance(START_MS + DAY_MS, lambda _: 100)
    warmup.step_back(START_MS + DAY_MS, "yahoo", "TSS04")
    state = msgpack.unpackb(msgpack.packb(warmup.to_state()))
    again = Warmup.from_state(CONFIG, TABLE, state)
    assert again.to_state() == warmup.to_state()
    assert again.step_back(START_MS + DAY_MS, "yahoo", "TSS04") is None
    with pytest.raises(ValueError, match="version 7; allowed is 1"):
        Warmup.from_state(CONFIG, TABLE, state | {"version": 7})


def spread_us(subject: Plan, day: int, hour: float) -> int:
    cap = subject.cap(START_MS + day * DAY_MS + round(hour * HOUR_MS))
    assert cap is not None
    return cap.interval_us


def test_mail_that_ends_in_the_afternoon_is_spread_over_less_of_the_next_day() -> None:
    """So its cap is used, although warm sources take all that there is no allowance for yet."""
    subject = plan()
    subject.observe(START_MS + 6 * HOUR_MS, 40, 40)
    subject.observe(START_MS + 19 * HOUR_MS, 35, 35)
    assert [c.kind for c in subject.advance(START_MS + DAY_MS, 100)] == ["held"]
    assert spread_us(subject, 1, 6) == 12 * HOUR_MS * 1000 // 100
    assert spread_us(subject, 1, 17.9) == HOUR_MS * 1000 // 20, "never faster than the hourly cap"
    assert spread_us(subject, 1, 20) == HOUR_MS * 1000 // 20
    state = msgpack.unpackb(msgpack.packb(subject.to_state()))
    again = Plan.from_state(CONFIG, subject._stages, "google", state)
    assert spread_us(again, 1, 6) == spread_us(subject, 1, 6)
    # each day that it is used, a little more of the next
    subject.observe(START_MS + DAY_MS + 18 * HOUR_MS, 100, 100)
    assert [c.kind for c in subject.advance(START_MS + 2 * DAY_MS, 100)] == ["advanced"]
    assert spread_us(subject, 2, 6) == round(12.25 * HOUR_MS * 1000) // 200


def test_mail_that_lasts_longer_than_was_thought_is_spread_over_more_of_the_next_day() -> None:
    subject = plan()
    subject.observe(START_MS + 10 * HOUR_MS, 60, 60)
    subject.advance(START_MS + DAY_MS, 100)
    assert spread_us(subject, 1, 2) == 7 * HOUR_MS * 1000 // 100
    subject.observe(START_MS + DAY_MS + 20 * HOUR_MS, 100, 100)
    subject.advance(START_MS + 2 * DAY_MS, 100)
    assert spread_us(subject, 2, 2) == 18 * HOUR_MS * 1000 // 200


def test_a_day_with_hardly_any_mail_says_nothing_about_its_hours() -> None:
    subject = plan()
    subject.observe(START_MS + 100, 24, 24)  # what was on the way at midnight, and nothing else
    subject.advance(START_MS + DAY_MS, 100)
    assert spread_us(subject, 1, 0) == 23 * HOUR_MS * 1000 // 100


def test_a_day_that_the_provider_cut_short_says_nothing_about_the_mail() -> None:
    subject = plan()
    subject.observe(START_MS + 3 * HOUR_MS, 10, 9)
    subject.skip(START_MS, 1)
    subject.step_back(START_MS + 3 * HOUR_MS, "421 4.7.28")
    subject.advance(START_MS + DAY_MS, 100)
    assert spread_us(subject, 1, 6) == 17 * HOUR_MS * 1000 // 100


@pytest.mark.parametrize(
    ("stages", "cap"),
    [
        ((100, 200, 400), 200),
        ((50, 100, 150, 1000, 5000), 150),
        ((10, 5000), 10),
        ((500, 5000), 500),
        ((1, 2), 2),
        ((100, 200, 200, 200), 200),
    ],
)
def test_another_table_goes_on_with_the_volume_that_the_provider_knows(
    stages: tuple[int, ...], cap: int
) -> None:
    subject = plan()
    subject.skip(START_MS, 1)
    other = WarmupTable.model_validate({"stages": list(stages)}).stages
    again = Plan.from_state(CONFIG, other, "google", msgpack.unpackb(msgpack.packb(subject.to_state())))
    now = again.cap(START_MS)
    assert now is not None
    assert now.day == cap


def test_a_finished_warm_up_stays_finished_in_another_table() -> None:
    subject = plan()
    subject.skip(START_MS, 3)
    other = WarmupTable.model_validate({"stages": [1, 2, 3, 4, 5]}).stages
    again = Plan.from_state(CONFIG, other, "google", subject.to_state())
    assert again.cap(START_MS) is None
    assert again.stage == 5


def test_a_state_of_the_first_release_is_spread_over_the_whole_day() -> None:
    old = plan().to_state()[:8]
    assert (
        spread_us(Plan.from_state(CONFIG, plan()._stages, "google", old), 0, 0) == 23 * HOUR_MS * 1000 // 100
    )


def test_tables_are_data_with_their_source() -> None:
    assert set(shipped()) == {"conservative", "standard"}
    for table in shipped().values():
        assert "undated" in table.source or any(year in table.source for year in ("2025", "2026"))
    assert load_tables({"own": TABLE})["own"] is TABLE
    assert shipped()["standard"].stages[-1].day == 10_000_000


def test_stages_that_shrink_are_refused() -> None:
    with pytest.raises(ValidationError, match="do not shrink"):
        WarmupTable.model_validate({"stages": [100, 50]})
    with pytest.raises(ValidationError, match="at most day"):
        WarmupTable.model_validate({"stages": [{"day": 5, "hour": 6}]})


def test_a_source_names_a_table_that_exists() -> None:
    from engine.config.load import ConfigError, parse_fleet

    data = fleet_data(warmup={"tables": {"own": {"stages": [10, {"day": 20, "hour": 10}]}}})
    data["sources"][0]["warmup"] = "own"
    config = parse_fleet(data)
    assert config.warmup.tables["own"].stages[1].hour == 10
    assert type(config).model_validate_json(config.model_dump_json()) == config
    data["sources"][0]["warmup"] = "fast"
    with pytest.raises(ConfigError, match=r"sources\[0\].warmup.*allowed are the tables conservative, own"):
        parse_fleet(data)


def test_excused_attempts_are_not_asked_for_but_never_more_than_half_of_the_cap() -> None:
    for excused, delivered, kind in (
        (50, 45, "advanced"),
        (50, 44, "held"),
        (99, 45, "advanced"),
        (99, 1, "held"),
    ):
        subject = plan()
        subject.observe(START_MS, 100, delivered, excused)
        assert [c.kind for c in subject.advance(START_MS + DAY_MS, 100)] == [kind]
        assert subject.excused == 0


def test_a_day_of_greylisting_is_no_idle_day_and_uses_the_cap() -> None:
    subject = plan()
    before = subject.cap(START_MS)
    subject.observe(START_MS, 60, 0, 60)
    after = subject.cap(START_MS)
    assert before is not None
    assert after is not None
    assert after.interval_us > before.interval_us
    state = msgpack.unpackb(msgpack.packb(subject.to_state()))
    table = WarmupTable.model_validate({"stages": [100, 200, 400]})
    again = Plan.from_state(CONFIG, table.stages, "google", state)
    assert again.to_state() == subject.to_state()
    assert Plan.from_state(CONFIG, table.stages, "google", state[:8]).excused == 0
    subject.advance(START_MS + DAY_MS, 100)
    assert subject.idle_days == 0
