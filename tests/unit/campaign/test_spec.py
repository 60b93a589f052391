"""campaign.yaml: everything wrong with it at once, each with its path."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.campaign.engagement import DayRule, EngagementRule, NumberRule
from engine.campaign.recipients import RecipientFile
from engine.campaign.spec import SpecError, load_campaign
from engine.values.message import Attachment
from engine.values.stream import Stream

EXAMPLE = Path(__file__).parents[3] / "examples" / "campaign" / "campaign.yaml"
GOOD: dict[str, Any] = {
    "id": "c1",
    "sender": "b@example.com",
    "from": "Shop <s@example.com>",
    "subject": "Hi {{ name }}",
    "text": "Dear {{ name }}",
    "recipients": {"file": "r.csv"},
}


def write(tmp_path: Path, **changes: Any) -> Path:
    (tmp_path / "r.csv").write_text("email,name\na@example.com,Ann\n")
    path = tmp_path / "campaign.yaml"
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


def problems(path: Path) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        load_campaign(path)
    assert str(caught.value).startswith(f"{path}: {len(caught.value.problems)} problem")
    return {problem.path: problem.message for problem in caught.value.problems}


def test_a_good_campaign(tmp_path: Path) -> None:
    campaign = load_campaign(write(tmp_path, stream="notification", tenant="acme"))
    assert campaign.template.campaign == "c1"
    assert campaign.template.tenant == "acme"
    assert campaign.template.stream is Stream.NOTIFICATION
    assert campaign.template.header_from == "Shop <s@example.com>"
    assert campaign.field_names == ("name",)
    assert campaign.recipients_path == tmp_path / "r.csv"


def test_parts_from_files(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text("<p>{{ city }}</p>", encoding="utf-8")
    campaign = load_campaign(write(tmp_path, html_file="b.html"))
    assert campaign.template.html == "<p>{{ city }}</p>"
    assert campaign.field_names == ("city", "name")


def test_the_shipped_example() -> None:
    campaign = load_campaign(EXAMPLE)
    file = RecipientFile(campaign.recipients_path, address_column=campaign.address_column)
    assert len(list(file.rows(campaign.field_names))) == 200


def test_all_problems_at_once(tmp_path: Path) -> None:
    found = problems(
        write(
            tmp_path,
            id="",
            sender="nobody",
            stream="bulk",
            subjct="x",
            text_file="missing.txt",
            recipients={"file": "none.csv", "format": "xls", "delimiter": ",,", "colour": 1},
            **{"from": "a@b.example, c@d.example"},
        )
    )
    assert set(found) == {
        "id",
        "sender",
        "stream",
        "from",
        "subjct",
        "text_file",
        "recipients.file",
        "recipients.format",
        "recipients.delimiter",
        "recipients.colour",
    }
    assert "subject" in found["subjct"]
    assert "transactional" in found["stream"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"subject": None}, "subject"),
        ({"recipients": None}, "recipients"),
        ({"text": None}, "text"),
        ({"text": "{{ name"}, "text"),
        ({"text": "x", "html": "{% for %}"}, "html"),
        ({"headers": {"Bcc": "x@example.com"}}, "headers.Bcc"),
        ({"headers": {"X-N": 5}}, "headers.X-N"),
        ({"reply_to": "nobody"}, "reply_to"),
        ({"subject": 5}, "subject"),
        ({"recipients": {"file": "r.csv", "engagement": 5}}, "recipients.engagement"),
        ({"recipients": {"file": "r.csv", "engagement": ""}}, "recipients.engagement.column"),
    ],
)
def test_one_problem(tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    assert list(problems(write(tmp_path, **changes))) == [path]


@pytest.mark.parametrize("text", ["", "- a\n", "id: [", "id: a\nid: b\n", "\x00"])
def test_no_campaign_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    assert len(problems(path)) == 1
    assert problems(tmp_path / "none.yaml")


def test_text_is_made_from_the_html_unless_there_is_one(tmp_path: Path) -> None:
    html = "<h1>Hi {{ name }}</h1><p><a href='https://e.com/{{ code }}'>Shop</a></p>"
    made = load_campaign(write(tmp_path, text=None, html=html))
    assert made.template.text == "Hi {{ name }}\n\nShop <https://e.com/{{ code }}>\n"
    assert made.field_names == ("code", "name")
    assert load_campaign(write(tmp_path, html=html)).template.text == GOOD["text"]
    assert load_campaign(write(tmp_path, html=html, text="")).template.text == ""


def test_html_of_which_no_text_can_be_made(tmp_path: Path) -> None:
    html = "<head>{% if name %}</head><p>x</p>{% endif %}"
    found = problems(write(tmp_path, text=None, html=html))
    assert "none can be made from the HTML" in found["text"]
    assert problems(write(tmp_path, text=None, html="{% if %}")).keys() == {"html"}


def test_attachments(tmp_path: Path) -> None:
    (tmp_path / "terms.pdf").write_bytes(b"%PDF")
    (tmp_path / "x").write_bytes(b"png")
    entries = [
        {"file": "terms.pdf"},
        {"file": "x", "name": "logo.png", "type": "image/png", "inline": "logo"},
    ]
    campaign = load_campaign(write(tmp_path, html="<img src='cid:logo'>", attachments=entries))
    assert campaign.template.attachments == (
        Attachment("terms.pdf", "application/pdf", b"%PDF"),
        Attachment("logo.png", "image/png", b"png", "logo"),
    )


@pytest.mark.parametrize(
    ("entries", "path", "message"),
    [
        ([{"file": "gone"}], "attachments[0].file", "cannot be read: No such file"),
        ([{"file": "a.txt", "typ": "x"}], "attachments[0].typ", "did you mean 'type'"),
        ([{"file": "a.txt", "type": "text"}], "attachments[0]", "type: 'text': allowed is TYPE/SUBTYPE"),
        ([{"file": "a.txt", "type": "message/rfc822"}], "attachments[0]", "no message"),
        ([{"file": "a.txt"}, {"file": "a.txt", "name": "a\r\nb"}], "attachments[1]", "name: "),
        ([{"file": "a.txt", "inline": "x"}], "attachments[0]", "only together with an HTML part"),
        ("a.txt", "attachments", "allowed is a list"),
    ],
)
def test_attachments_refused(tmp_path: Path, entries: object, path: str, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    found = problems(write(tmp_path, attachments=entries))
    assert list(found) == [path]
    assert message in found[path]


def test_attachments_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(6 << 20))
    (tmp_path / "b").write_bytes(bytes(11 << 20))
    found = problems(write(tmp_path, attachments=[{"file": "a"}, {"file": "a", "name": "c"}]))
    assert "10485760 bytes for all" in found["attachments[1]"]
    assert "larger than all" in problems(write(tmp_path, attachments=[{"file": "b"}]))["attachments[0].file"]


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("last open", NumberRule("last_open", 1.0)),
        ({"column": "opens", "engaged": 5, "unengaged": 0.5}, NumberRule("opens", 5.0, 0.5)),
        (
            {"column": "o", "engaged": date(2026, 9, 1), "unengaged": "2026-03-01"},
            DayRule("o", date(2026, 9, 1), date(2026, 3, 1)),
        ),
    ],
)
def test_engagement(tmp_path: Path, written: object, rule: EngagementRule) -> None:
    path = write(tmp_path, recipients={"file": "r.csv", "engagement": written})
    assert load_campaign(path).engagement == rule


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"column": "o", "engaged": "often"}, "allowed is a number, or a day"),
        ({"column": "o", "engaged": "2026-02-30"}, "no day"),
        ({"column": "o", "engaged": float("nan")}, "finite"),
        ({"column": "o", "engaged": 3, "unengaged": date(2026, 3, 1)}, "two numbers or two days"),
        ({"column": "o", "engaged": 3, "unengaged": 4}, "at most engaged"),
        ({"column": "o", "engaged": True}, "valid"),
    ],
)
def test_engagement_refused(tmp_path: Path, written: object, message: str) -> None:
    path = write(tmp_path, recipients={"file": "r.csv", "engagement": written})
    found = problems(path)
    assert all(name.startswith("recipients.engagement") for name in found)
    assert any(message in text for text in found.values()), found
