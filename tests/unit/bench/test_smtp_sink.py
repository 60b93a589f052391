"""smtp-sink's count and its dump agree, and a duplicate shows in both."""

import pytest

from bench.servers import NotInstalled, program
from bench.smtp_sink import SmtpSink
from tests.unit.sink.support import RawClient

try:
    program("smtp-sink")
except NotInstalled as missing:
    pytest.skip(str(missing), allow_module_level=True)


def test_count_and_unique_deliveries() -> None:
    with SmtpSink(dump=True) as sink:
        with RawClient(("127.0.0.1", sink.port)) as client:
            client.greet()
            for number in (1, 2, 2, 3):
                assert client.mail(f"u{number}@example.test", id=str(number))[-1] == 250
            client.say("QUIT")
        assert sink.messages() == 4
        unique = sink.unique()
        sink.mark()
        assert sink.messages() == 0
    assert unique == {
        (b"1", b"u1@example.test"): 1,
        (b"2", b"u2@example.test"): 2,
        (b"3", b"u3@example.test"): 1,
    }
