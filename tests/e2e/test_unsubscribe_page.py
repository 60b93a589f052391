"""The unsubscribe page as a person sees it: a real Chromium, over TLS, with and without JavaScript."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.bounces.tokens import TokenKeys
from engine.bounces.unsubscribe import make_token
from engine.config.bounces import IngressConfig
from engine.config.suppression import SuppressionConfig
from engine.config.unsubscribe import UnsubscribeConfig
from engine.ingress.http import links_listener
from engine.ingress.unsubscribe import UnsubscribeDesk
from engine.values.clock import SteadyClock
from engine.values.suppression import decode_rows
from tests.support.browser import Browser
from tests.support.certificates import make, write_pair

KEYS = TokenKeys([(1, b"k" * 32)])
BUTTON = "button[type=submit]"
PHONE = {"width": 500, "height": 700}  # the narrowest window that Chromium makes


@dataclass
class Running:
    """A listener, and whom it has unsubscribed."""

    port: int
    listed: list[str] = field(default_factory=list)
    is_away: bool = False

    async def unsubscribe(self, region: str, rows: bytes) -> int:
        if self.is_away:
            raise ConnectionError("away")
        known = len(self.listed)
        self.listed += [row.address for row in decode_rows(rows) if row.address not in self.listed]
        return len(self.listed) - known

    def link(self, address: str, keys: TokenKeys = KEYS) -> str:
        now_ms = SteadyClock().wall_ms()
        token = make_token(
            keys, tenant="default", stream=2, address=address, message_id=1, accepted_ms=now_ms
        )
        return f"https://127.0.0.1:{self.port}/u/{token}"


@pytest.fixture(scope="module", params=[True, False], ids=["script", "no-script"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with Browser(javascript=request.param, **PHONE) as it:
        yield it


@pytest.fixture
def see(tmp_path: Path) -> Callable[[Callable[[Running], Any]], Any]:
    """Run something that blocks while the listener runs."""
    write_pair(make("127.0.0.1"), tmp_path / "pem", tmp_path / "key")
    ingress = IngressConfig(http_certificate=tmp_path / "pem", http_key=tmp_path / "key")

    def run(work: Callable[[Running], Any]) -> Any:
        async def go() -> Any:
            it = Running(0)
            desk = UnsubscribeDesk(
                UnsubscribeConfig(),
                SuppressionConfig(),
                KEYS,
                regions=["eu"],
                port=it,
                clock=SteadyClock(),
            )
            listener = links_listener(desk, ingress, ["/u"])
            it.port = await listener.start("127.0.0.1", 0)
            try:
                return await asyncio.to_thread(work, it)
            finally:
                await listener.stop()

        return asyncio.run(go())

    return run


def test_whether_scripts_run_at_all(browser: Browser, request: pytest.FixtureRequest) -> None:
    browser.open("data:text/html,<title>no</title><script>document.title='yes'</script>")
    assert browser.title() == ("yes" if "no-script" not in request.node.name else "no")


def test_looking_unsubscribes_nobody_and_the_button_does(
    browser: Browser, see: Callable[[Any], Any], tmp_path: Path
) -> None:
    def work(it: Running) -> None:
        browser.open(it.link("Ann@example.org"))
        browser.reload()
        assert browser.title() == "Unsubscribe"
        assert browser.text("p") == "Ann@example.org will get no more mail of this kind."
        assert browser.count("script") == 0
        (tmp_path / "ask.png").write_bytes(browser.screenshot())
        assert it.listed == []
        browser.leave(BUTTON)
        assert browser.text("h1") == "Unsubscribed"
        assert browser.count(BUTTON) == 0
        (tmp_path / "done.png").write_bytes(browser.screenshot())
        assert it.listed == ["ann@example.org"]
        browser.reload()  # the form is sent again
        assert (browser.text("h1"), it.listed) == ("Unsubscribed", ["ann@example.org"])

    see(work)


def test_what_did_not_work_can_be_tried_again(browser: Browser, see: Callable[[Any], Any]) -> None:
    def work(it: Running) -> None:
        browser.open(it.link("ann@example.org"))
        it.is_away = True
        browser.leave(BUTTON)
        assert (browser.text("h1"), it.listed) == ("Not stored", [])
        it.is_away = False
        browser.leave(BUTTON)
        assert (browser.text("h1"), it.listed) == ("Unsubscribed", ["ann@example.org"])

    see(work)


@pytest.mark.parametrize("token", ["x", "%3Cscript%3Ealert(1)%3C/script%3E", "%00", "..%2f..", "forged"])
def test_a_token_that_is_none_of_ours(browser: Browser, see: Callable[[Any], Any], token: str) -> None:
    def work(it: Running) -> None:
        strange = it.link("ann@example.org", TokenKeys([(1, b"x" * 32)]))
        browser.open(strange if token == "forged" else f"https://127.0.0.1:{it.port}/u/{token}")
        assert browser.text("h1") == "Not found"
        assert (browser.count(BUTTON), browser.count("script"), it.listed) == (0, 0, [])

    see(work)


@pytest.mark.parametrize(
    "address",
    [
        '"<script>document.title=1</script>"@example.org',
        "\"<img src=x onerror='document.title=1'>\"@example.org",
        "مرحبا@مثال.إختبار",
        "\N{RIGHT-TO-LEFT OVERRIDE}gro.elpmaxe@ann@example.org",
        "a" * 64 + "@" + ".".join(["b" * 60] * 3) + ".example",
        "pelé@bücher.example",
        "a&lt;b&amp;c@example.org",
    ],
    ids=["script", "image", "arabic", "override", "long", "latin", "entities"],
)
def test_an_address_is_text_wherever_it_comes_from(
    browser: Browser, see: Callable[[Any], Any], tmp_path: Path, address: str
) -> None:
    def work(it: Running) -> None:
        browser.open(it.link(address))
        assert browser.title() == "Unsubscribe"
        assert browser.text("bdi") == address
        assert browser.text("p").endswith(" will get no more mail of this kind.")
        assert (browser.count("script"), browser.count("img")) == (0, 0)
        wide = browser.value("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert wide is False, "the page has to be scrolled sideways"
        (tmp_path / "address.png").write_bytes(browser.screenshot())
        browser.leave(BUTTON)
        assert browser.text("h1") == "Unsubscribed"
        assert len(it.listed) == 1

    see(work)
