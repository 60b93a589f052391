"""The message that a recipient gets: structure, encodings, the same bytes each time, and nothing injected."""

from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.campaign.attachments import RenderError
from engine.campaign.headers import has_short_lines
from engine.campaign.render import LineEncoder, Renderer, template_variables
from engine.values.message import CampaignTemplate
from engine.values.stream import Stream
from native.mime import canonicalise

AT_MS = 1_700_000_000_123
ID = 1 << 48 | 7
TEMPLATE = CampaignTemplate(
    campaign="c",
    tenant="t",
    stream=Stream.MARKETING,
    sender="bounce@news.example.com",
    header_from="Shop <shop@example.com>",
    subject="Hello {{ name }}",
    text="Dear {{ name }},\nyour code: {{ code }}\n",
    html="<p>Dear {{ name }}, <b>{{ code }}</b></p>\n",
    reply_to="help@example.com",
    headers={"List-Unsubscribe": "<https://example.com/u/{{ code }}>"},
)
FIELDS = {"name": "Ann", "code": "x1"}


def render(template: CampaignTemplate = TEMPLATE, recipient: str = "ann@example.org", **fields: str) -> bytes:
    return Renderer(template).render({**FIELDS, **fields}, recipient, ID, AT_MS)


def parse(data: bytes) -> EmailMessage:
    message = message_from_bytes(data, policy=default)
    assert isinstance(message, EmailMessage)
    defects = [d for part in message.walk() for d in part.defects]
    assert not defects
    return message


def part(message: EmailMessage, kind: str) -> str:
    body: Any = message.get_body((kind,))
    return str(body.get_content()).replace("\r\n", "\n")


def test_a_complete_message() -> None:
    message = parse(render())
    assert message["From"] == "Shop <shop@example.com>"
    assert message["To"] == "ann@example.org"
    assert message["Subject"] == "Hello Ann"
    assert message["Reply-To"] == "help@example.com"
    assert message["Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert message["Message-ID"] == f"<0001000000000007.{AT_MS:x}@example.com>"
    assert message["MIME-Version"] == "1.0"
    assert message["List-Unsubscribe"] == "<https://example.com/u/x1>"
    assert message.get_content_type() == "multipart/alternative"
    assert [p.get_content_type() for p in message.iter_parts()] == ["text/plain", "text/html"]
    assert part(message, "plain") == "Dear Ann,\nyour code: x1\n"
    assert part(message, "html") == "<p>Dear Ann, <b>x1</b></p>\n"


def test_the_same_bytes_each_time_and_other_bytes_for_another_message() -> None:
    assert render() == render()
    renderer = Renderer(TEMPLATE)
    seen = {
        renderer.render(FIELDS, "a@example.org", id_, at)
        for id_ in (ID, ID + 1)
        for at in (AT_MS, AT_MS + 1, AT_MS + 1000)
    }
    assert len(seen) == 6
    assert len({data.partition(b"Message-ID: ")[2].split(b"\r\n")[0] for data in seen}) == 6


@pytest.mark.parametrize(
    ("text", "html", "kind"), [("t\n", "", "text/plain"), ("", "<p>h</p>\n", "text/html")]
)
def test_one_part_is_no_multipart(text: str, html: str, kind: str) -> None:
    message = parse(render(replace(TEMPLATE, text=text, html=html)))
    assert message.get_content_type() == kind
    assert message.get_content().replace("\r\n", "\n") == text + html


def test_only_html_is_escaped() -> None:
    message = parse(render(name="<i>&"))
    assert "Dear <i>&," in part(message, "plain")
    assert "Dear &lt;i&gt;&amp;," in part(message, "html")
    assert message["Subject"] == "Hello <i>&"


@pytest.mark.parametrize("field", ["name", "code"])
def test_a_field_cannot_add_headers_or_parts(field: str) -> None:
    boundary = f"=_{ID:016x}.{AT_MS:x}"
    evil = f"x\r\nBcc: victim@example.com\r\n\r\n--{boundary}\r\nContent-Type: text/html\r\n\r\nevil\r\n--{boundary}--"
    message = parse(render(**{field: evil}))
    assert "Bcc" not in message
    parts = list(message.iter_parts())
    assert [p.get_content_type() for p in parts] == ["text/plain", "text/html"]
    assert "victim@example.com" in part(message, "plain")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=80)


@given(st.one_of(WORDS, WORDS.map(lambda w: w * 30), st.text("aé\n \t.=", max_size=400)))
@settings(deadline=None)
def test_any_text_arrives_whole_in_safe_lines(text: str) -> None:
    template = replace(
        TEMPLATE, subject="s", text="[{{ code }}]", html="<pre>{{ code|safe }}</pre>", headers={}
    )
    data = render(template, code=text)
    assert data.isascii()
    assert canonicalise(data, False) is data
    assert max(len(line) for line in data.split(b"\r\n")) <= 998
    message = message_from_bytes(data)
    sent = text.replace("\r\n", "\n").replace("\r", "\n")
    parts: Any = message.get_payload()
    contents = [p.get_payload(decode=True).decode().replace("\r\n", "\n").rstrip("\n") for p in parts]
    assert contents == [f"[{sent}]", f"<pre>{sent}</pre>"]
    for p in parts:
        if p["Content-Transfer-Encoding"]:
            assert max(len(line) for line in p.get_payload().split("\n")) <= 77  # 76 and a CR


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain\n", None),
        ("a line of 998 " + "x" * 984 + "\n", None),
        ("a line of 999 " + "x" * 985 + "\n", "quoted-printable"),
        ("Grüße aus der Stadt, in der wir wohnen\n", "quoted-printable"),
        ("съешь ещё этих мягких французских булок\n", "base64"),
    ],
)
def test_the_smallest_safe_encoding(text: str, encoding: str | None) -> None:
    message = parse(render(replace(TEMPLATE, text=text, html="")))
    assert message["Content-Transfer-Encoding"] == encoding
    assert message.get_content().replace("\r\n", "\n") == text


def test_an_address_in_utf8_stands_in_to_as_it_is() -> None:
    assert "To: bjørn@example.org\r\n".encode() in render(recipient="bjørn@example.org")


def test_what_the_sandbox_is_for() -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ name.__init__.__globals__ }}", "{% include 'x' %}"):
        with pytest.raises(RenderError):
            render(replace(TEMPLATE, text=source))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in name * 9000 %}{% for b in name * 9000 %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for a in range(90000) %}{{ name * 1000 }}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * 'x' }}",
        "{{ [name] * 1000000000 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'|center(1000000000) }}",
        "{{ 'x'|center(width=1000000000) }}",
        "{{ '%01000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ [1]|batch(1000000000, 'x')|list }}",
        "{{ range(1000000000)|list }}",
    ],
)
def test_a_template_comes_to_an_end(source: str) -> None:
    with pytest.raises(RenderError, match="text"):
        render(replace(TEMPLATE, text=source))


def test_what_a_template_may_do() -> None:
    source = (
        "{% for n in range(3) %}{{ loop.index }}/{{ loop.length }}{% if not loop.last %},{% endif %}{% endfor %} "
        "{% for x in [] %}{% else %}none{% endfor %} {{ name.split()|join('-') }} {{ '-' * 20 }} {{ 2 ** 10 }} "
        "{{ 'x'|center(5) }}|{{ '%05d'|format(7) }} {{ '{:>4}'.format(1) }} {{ name|upper|replace('A', 'b') }} "
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }} {% set ns = namespace(n=0) %}"
        "{% for i in range(1000) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
    )
    text = parse(render(replace(TEMPLATE, text=source, html=""), name="Ada B")).get_content()
    assert text.rstrip("\r\n") == (
        "1/3,2/3,3/3 none Ada-B -------------------- 1024   x  |00007    1 bDb B <1> 499500"
    )


def test_each_message_has_all_its_steps() -> None:
    renderer = Renderer(replace(TEMPLATE, text="{% for n in range(60000) %}{% endfor %}x", html=""))
    for number in range(3):
        renderer.render({"name": "x", "code": "y"}, "a@example.org", ID + number, AT_MS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"subject": "{{ name"}, "subject"),
        ({"html": "{% if %}"}, "html"),
        ({"text": "{% for x in y recursive %}{{ loop(x) }}{% endfor %}"}, "text"),
        ({"text": "{% include '/etc/passwd' %}"}, "text"),
        ({"text": "{% from 'x' import y %}"}, "text"),
        ({"html": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"}, "html"),
        ({"header_from": "nobody"}, "from"),
        ({"reply_to": "a@b.example, c@d.example"}, "reply_to"),
        ({"headers": {"Bcc": "x@example.com"}}, "headers.Bcc"),
        ({"headers": {"Content-Type": "text/x"}}, "headers.Content-Type"),
        ({"headers": {"X\r\nBcc": "x"}}, "headers.X\r\nBcc"),
        ({"text": "", "html": ""}, "text"),
    ],
)
def test_a_template_that_can_never_work_is_refused_at_once(change: dict[str, Any], named: str) -> None:
    with pytest.raises(RenderError) as caught:
        Renderer(replace(TEMPLATE, **change))
    assert caught.value.part == named


def test_a_missing_field_is_an_error_that_names_part_and_field() -> None:
    with pytest.raises(RenderError, match=r"subject: .*'name' is undefined"):
        Renderer(TEMPLATE).render({"code": "1"}, "a@example.org", ID, AT_MS)


def test_parts_do_not_share_what_a_template_sets() -> None:
    template = replace(TEMPLATE, text="{% set city = 'Rome' %}{{ city }}", html="{{ city }}")
    with pytest.raises(RenderError, match="html"):
        render(template)


def test_the_fields_that_a_template_wants() -> None:
    template = replace(TEMPLATE, html="{% for n in range(2) %}{{ n }}{{ city }}{{ recipient }}{% endfor %}")
    assert template_variables(template) == {"name", "code", "city"}


def test_a_field_may_have_the_name_of_a_function() -> None:
    template = replace(TEMPLATE, html="{{ range }}{% for n in namespace(a=[1]).a %}{% endfor %}")
    assert template_variables(template) == {"name", "code", "range"}
    assert "5-10" in part(parse(render(template, name="x", code="y", range="5-10")), "html")
    with pytest.raises(RenderError, match="nested too deep"):
        template_variables(replace(TEMPLATE, html="{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"))


def test_from_can_depend_on_the_recipient() -> None:
    template = replace(TEMPLATE, header_from="{{ name }} <{{ code }}@example.com>")
    message = parse(render(template, name="Jörg", code="j"))
    assert message["From"] == "Jörg <j@example.com>"
    assert message["Message-ID"].endswith("@news.example.com>")
    with pytest.raises(RenderError, match="from"):
        render(template, code="a b")


@given(st.lists(st.integers(0, 2100), max_size=6))
def test_short_lines(lengths: list[int]) -> None:
    data = b"".join(b"x" * length + b"\r\n" for length in lengths)
    assert has_short_lines(data) is all(length <= 998 for length in lengths)


def test_kept_lines_are_bounded() -> None:
    encoder = LineEncoder()
    for number in range(10_000):
        encoder.encode(b"line %d \xc3\xa9\r\n" % number)
    assert len(encoder._kept) <= 4096
