"""Plain text from HTML: what is said, what is not seen, and Jinja2 that stays Jinja2."""

import jinja2
import pytest

from engine.campaign.plain_text import html_to_text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Hello   <b>Ann</b>,\n welcome.</p><p>Bye</p>", "Hello Ann, welcome.\n\nBye\n"),
        ("a<br>b<br/>c", "a\nb\nc\n"),
        ("<h1>Title</h1><div>one</div><div>two</div>", "Title\n\none\ntwo\n"),
        ("<ul><li>a<li>b</ul><ol start=3><li>c</li><li>d</li></ol>end", "- a\n- b\n\n3. c\n4. d\n\nend\n"),
        ("<head><title>t</title><style>p {}</style></head><body>x<script>y()</script></body>", "x\n"),
        ('<div style="display: none">preheader<br><b>more</b></div>seen', "seen\n"),
        ('<div style="DISPLAY:none"><div>a</div>b</p></div>seen', "seen\n"),
        ('<p style="display:none">a<p>seen', "seen\n"),
        ("<!-- comment -->x", "x\n"),
        ('<a href="https://example.com/x?a=1&amp;b=2">shop</a>', "shop <https://example.com/x?a=1&b=2>\n"),
        ('<a href="https://example.com/">example.com</a> <a href="#top">up</a>', "example.com up\n"),
        ('<a href="mailto:a@example.com">a@example.com</a>', "a@example.com\n"),
        ('<a href="https://e.com/u"><img src=x alt="Our shop"></a>', "Our shop <https://e.com/u>\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n"),
        ("<pre>  two\n   spaces</pre>", "  two\n   spaces\n"),
        ("5 &lt; 6 &amp; &euro;&nbsp;7", "5 < 6 & € 7\n"),
        ("x<hr>y", "x\n\n----\n\ny\n"),
        ("<p>unclosed <b>tags <i>everywhere", "unclosed tags everywhere\n"),
        ("</ul></div></a></pre>stray", "stray\n"),
        ("<ol start=²><li>a</ol>", "1. a\n"),
    ],
)
def test_html(html: str, text: str) -> None:
    assert html_to_text(html) == text


@pytest.mark.parametrize(
    ("html", "fields", "text"),
    [
        ("<p>Dear {{ name }},</p>", {"name": "Ann & Bob"}, "Dear Ann & Bob,\n"),
        ('<a href="https://e.com/{{ code }}">go</a>', {"code": "7"}, "go <https://e.com/7>\n"),
        (
            "<ul>{% for x in items.split(',') %}<li>{{ x }}</li>{% endfor %}</ul>",
            {"items": "a,b"},
            "- a\n- b\n",
        ),
        ("{# <p>note</p> #}{% if a == '<b>' %}yes{% else %}no{% endif %}", {"a": "<b>"}, "yes\n"),
        ("<p>{{ offer|safe }}</p>", {"offer": "<b>Buy</b> &amp; go"}, "Buy & go\n"),
        ("<p>&#123;&#123; name }} &#123;% if %}</p>", {}, "{{ name }} {% if %}\n"),
        ("<p title='{{ \"x\" }}'>y</p>", {}, "y\n"),
    ],
)
def test_templates(html: str, fields: dict[str, str], text: str) -> None:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    rendered = environment.from_string(html_to_text(html)).render(**fields)
    assert "\n".join(line for line in rendered.split("\n") if line) == text.rstrip("\n")


def test_what_a_line_may_not_hold_is_not_made_up() -> None:
    assert html_to_text("") == "\n"
    assert "\ue000" not in html_to_text("a\ue0000\ue001b")
