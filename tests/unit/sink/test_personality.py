"""The personalities file: what is shipped is valid, and what is wrong is named."""

from pathlib import Path

import pytest

from engine.sink.personality import SHIPPED, PersonalityError, load_personalities


def load(folder: Path, text: str) -> object:
    path = folder / "p.yaml"
    path.write_text(text)
    return load_personalities(path)


def test_the_shipped_file_is_valid_and_has_real_reply_strings() -> None:
    config = load_personalities(SHIPPED)
    assert {"accept", "google", "yahoo", "outlook", "greylist", "flaky", "lockstep"} <= set(
        config.personalities
    )
    google = config.personalities["google"].rate
    assert google is not None
    assert google.reply.startswith("421-4.7.28 Gmail has detected an unusual rate")
    assert google.reply.split("\r\n")[-1].startswith("421 4.7.28 ")
    outlook = config.personalities["outlook"].rate
    assert outlook is not None
    assert "(S775)" in outlook.reply


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "localhost", "10.0.0.1"])
def test_other_addresses_than_loopback_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(PersonalityError) as caught:
        load(tmp_path, f"host: '{host}'\npersonalities: {{a: {{}}}}")
    assert "loopback" in str(caught.value)


def test_all_problems_are_reported_at_once_with_their_paths(tmp_path: Path) -> None:
    with pytest.raises(PersonalityError) as caught:
        load(
            tmp_path,
            "personalities:\n"
            "  a: {port: 70000, greylist: {after: 5}}\n"
            "  b: {unknown: {ratio: 2, reply: nonsense}, surprise: 1}\n",
        )
    text = "\n".join(caught.value.problems)
    for path in (
        "personalities.a.port",
        "personalities.a.greylist.after",
        "personalities.b.unknown.ratio",
        "personalities.b.unknown.reply",
        "personalities.b.surprise",
    ):
        assert path in text
    assert len(caught.value.problems) == 5


def test_a_port_used_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersonalityError, match="2525"):
        load(tmp_path, "personalities: {a: {port: 2525}, b: {port: 2525}}")


def test_a_reply_over_several_lines_must_have_one_code(tmp_path: Path) -> None:
    with pytest.raises(PersonalityError, match="reply"):
        load(tmp_path, 'personalities: {a: {unknown: {reply: "550 one\\n551 two"}}}')


@pytest.mark.parametrize("text", ["", "- a", "personalities: {}", "{"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PersonalityError):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PersonalityError, match=r"absent\.yaml"):
        load_personalities(tmp_path / "absent.yaml")
