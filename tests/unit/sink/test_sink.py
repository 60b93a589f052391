"""A running sink, seen by smtplib and by a client that pipelines raw bytes."""

import os
import signal
import smtplib
import socket
import ssl
import subprocess
import time
from email.message import EmailMessage
from pathlib import Path

import pytest

from engine.sink import SinkProcess
from tests.unit.sink.support import RawClient, sink


def test_smtplib_delivers_and_the_log_counts(tmp_path: Path) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.test", "b@example.test", "x"
    message["Message-ID"] = "<one@example.test>"
    message.set_content("hello\n.\n.dots\n")
    with sink(tmp_path, plain={}) as process, smtplib.SMTP(*process.addresses["plain"]) as client:
        assert client.send_message(message, to_addrs=["b@example.test", "c@example.test"]) == {}
        client.send_message(message, to_addrs=["b@example.test"])
    log = process.log()
    assert log.counts() == {
        ("<one@example.test>", "b@example.test"): 2,
        ("<one@example.test>", "c@example.test"): 1,
    }
    assert (log.total, log.unique) == (3, 2)
    assert [len(rows) for rows in log.duplicates().values()] == [2]
    assert log.recipients() == {"b@example.test": 2, "c@example.test": 1}
    assert len(log.timestamps()) == 2  # transactions, not recipients
    assert log.clients() == {("127.0.0.1", "plain")}
    assert log.max_messages_per_connection() == 2
    assert [row.closed_ns is None for row in log.connections()] == [False]


def test_pipelined_transactions_are_answered_in_order_however_they_are_cut(tmp_path: Path) -> None:
    one = (
        b"MAIL FROM:<a@example.test> SIZE=100\r\nRCPT TO:<%d@example.test>\r\nRCPT TO:<bad>\r\nDATA\r\n"
        b"X-Sendfleet-ID: %d\r\n\r\n..dot\r\n.\r\n"
    )
    empty = b"MAIL FROM:<>\r\nRCPT TO:<e@example.test>\r\nDATA\r\n.\r\n"
    stream = b"".join(one % (n, n) for n in range(20)) + empty + b"QUIT\r\n"
    expected = [250, 250, 501, 354, 250] * 20 + [250, 250, 354, 250, 221]
    with sink(tmp_path, plain={}) as process:
        for size in (len(stream), 1, 7, 1000):
            with RawClient(process.addresses["plain"]) as client:
                client.greet()
                client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(stream), size):
                    client.send(stream[start : start + size])
                assert client.codes(len(expected)) == expected
                assert client.reply() == (0, "")
        counts = process.log().counts()
    assert counts[("", "e@example.test")] == 4
    assert all(counts[(str(n), f"{n}@example.test")] == 4 for n in range(20))


def test_bdat_chunks_make_a_message(tmp_path: Path) -> None:
    with sink(tmp_path, plain={}) as process, RawClient(process.addresses["plain"]) as client:
        assert "CHUNKING" in client.greet().split("\n")
        body = b"X-Sendfleet-ID: 5\r\n\r\n.\r\n"
        client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 10\r\n" + body[:10])
        client.send(b"BDAT %d LAST\r\n" % (len(body) - 10) + body[10:])
        client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<bad>\r\nBDAT 3 LAST\r\nxyzBDAT 0 LAST\r\nNOOP\r\n")
        assert client.codes(9) == [250, 250, 250, 250, 250, 501, 554, 503, 250]
        assert process.log().counts() == {("5", "c@d.test"): 1}


def test_ehlo_offers_what_the_personality_says(tmp_path: Path) -> None:
    old = {"pipelining": False, "chunking": False, "smtputf8": False, "eightbitmime": False, "size": "1MiB"}
    with sink(tmp_path, old=old, plain={}) as process:
        with RawClient(process.addresses["plain"]) as client:
            words = client.greet().split("\n")
            assert {"PIPELINING", "CHUNKING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"} <= set(words)
        with RawClient(process.addresses["old"]) as client:
            assert client.greet().split("\n") == ["sink.test", "SIZE 1048576", "ENHANCEDSTATUSCODES"]
            assert client.say("MAIL FROM:<a@b.test> SIZE=2000000")[0] == 552
            assert client.say("MAIL FROM:<a@b.test> BODY=8BITMIME")[0] == 555
            assert client.say("MAIL FROM:<a@b.test> SMTPUTF8")[0] == 555
            assert client.mail() == [250, 250, 354, 250]
            client.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
            assert client.codes(2) == [503, 0]


def test_smtputf8_and_eight_bit_bodies_must_be_declared(tmp_path: Path) -> None:
    with sink(tmp_path, plain={}) as process, RawClient(process.addresses["plain"]) as client:
        client.greet()
        assert client.say("MAIL FROM:<é@b.test>")[0] == 553
        assert client.say("MAIL FROM:<é@b.test> SMTPUTF8")[0] == 250
        assert client.say("RCPT TO:<ü@d.test>")[0] == 250
        assert client.say("DATA")[0] == 354
        assert client.say("Subject: ü\r\n\r\n.")[0] == 250
        assert [client.say(line)[0] for line in ("MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "DATA")][
            -1
        ] == 354
        assert client.say("Subject: ü\r\n\r\n.")[1].startswith("5.6.1 ")
        assert process.log().recipients() == {"ü@d.test": 1}


def test_bare_lf_is_refused(tmp_path: Path) -> None:
    with sink(tmp_path, plain={}) as process, RawClient(process.addresses["plain"]) as client:
        client.greet()
        for line in ("MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "DATA"):
            client.say(line)
        assert client.say("Subject: x\nY: z\r\n\r\nbody\r\n.")[1].startswith("5.6.11 ")
        client.send(b"NOOP\n")
        assert client.reply()[0] == 500
        assert process.log().total == 0


def test_size_is_enforced_without_keeping_the_message(tmp_path: Path) -> None:
    with sink(tmp_path, small={"size": "64KiB"}) as process, RawClient(process.addresses["small"]) as client:
        client.greet()
        for line in ("MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "DATA"):
            client.say(line)
        client.send(b"x" * 70 + b"\r\n")
        for _ in range(200):
            client.send((b"x" * 70 + b"\r\n") * 50)
        assert client.say(".")[0] == 552
        assert client.mail() == [250, 250, 354, 250]


def test_recipients_per_transaction_are_limited(tmp_path: Path) -> None:
    with (
        sink(tmp_path, narrow={"max_recipients": 2}) as process,
        RawClient(process.addresses["narrow"]) as client,
    ):
        client.greet()
        client.say("MAIL FROM:<a@b.test>")
        assert [client.say(f"RCPT TO:<{n}@d.test>")[0] for n in range(3)] == [250, 250, 452]


def test_unknown_users_get_the_reply_and_are_logged(tmp_path: Path) -> None:
    unknown = {"pattern": "^nobody", "reply": "550 5.1.1 No such user here"}
    with sink(tmp_path, site={"unknown": unknown}) as process, RawClient(process.addresses["site"]) as client:
        client.greet()
        assert client.mail("nobody@d.test") == [250, 550]
        assert client.say("DATA")[0] == 554
        client.say("RSET")
        assert client.mail("somebody@d.test") == [250, 250, 354, 250]
        log = process.log()
        assert log.refused() == {("site", "rcpt", 550): 1}
        assert log.recipients() == {"somebody@d.test": 1}


def test_greylisting_accepts_the_second_attempt_after_its_time(tmp_path: Path) -> None:
    with sink(tmp_path, grey={"greylist": {"after": "200ms"}}) as process:
        with RawClient(process.addresses["grey"]) as client:
            client.greet()
            assert client.mail() == [250, 451]
            client.say("RSET")
            deadline = time.monotonic() + 10
            while (codes := client.mail()) == [250, 451] and time.monotonic() < deadline:
                client.say("RSET")
            assert codes == [250, 250, 354, 250]
        log = process.log()
        first, accepted = log.refusals[0].at_ns, log.acceptances[0].at_ns
        assert accepted - first >= 200_000_000


def test_rate_is_limited_per_client_ip(tmp_path: Path) -> None:
    rate = {"limit": "3/min", "reply": "421 4.7.28 unusual rate\n421 4.7.28 from your IP"}
    with sink(tmp_path, limited={"rate": rate}) as process:
        address = process.addresses["limited"]
        with RawClient(address) as client:
            client.greet()
            assert [client.mail(id=str(n))[-1] for n in range(3)] == [250] * 3
            assert client.say("MAIL FROM:<a@b.test>") == (421, "4.7.28 unusual rate\n4.7.28 from your IP")
            assert client.reply() == (0, "")  # 421 ends the session
        with RawClient(address, source="127.0.0.2") as client:
            client.greet()
            assert client.mail()[-1] == 250
        log = process.log()
    assert log.max_in_window(60, client="127.0.0.1", personality="limited") == 3
    assert log.max_in_window(60, client="127.0.0.2") == 1
    assert log.refused() == {("limited", "mail", 421): 1}


def test_too_many_connections_get_421(tmp_path: Path) -> None:
    with sink(
        tmp_path, busy={"connections": {"limit": 2, "reply": "421 4.7.652 too many (S3115)"}}
    ) as process:
        address = process.addresses["busy"]
        with RawClient(address) as one, RawClient(address) as two:
            one.greet()
            two.greet()
            with RawClient(address) as three:
                assert three.reply() == (421, "4.7.652 too many (S3115)")
                assert three.reply() == (0, "")
            with RawClient(address, source="127.0.0.2") as other:
                other.greet()
        log = process.log()
    assert log.max_connections(client="127.0.0.1") == 3
    assert log.refused() == {("busy", "connect", 421): 1}


def test_silent_close_after_n_messages(tmp_path: Path) -> None:
    with sink(tmp_path, yahoo={"messages_per_connection": {"limit": 2}}) as process:
        with RawClient(process.addresses["yahoo"]) as client:
            client.greet()
            assert client.mail()[-1] == 250
            assert client.mail()[-1] == 250
            assert client.reply() == (0, "")
        assert process.log().max_messages_per_connection() == 2


def test_message_limit_with_a_reply(tmp_path: Path) -> None:
    limit = {"limit": 1, "reply": "421 Max message per connection reached, closing transmission channel"}
    with (
        sink(tmp_path, site={"messages_per_connection": limit}) as process,
        RawClient(process.addresses["site"]) as client,
    ):
        client.greet()
        assert client.mail()[-1] == 250
        assert client.mail() == [421]
        assert client.reply() == (0, "")


@pytest.mark.parametrize(
    ("stage", "codes", "accepted"),
    [
        ("rcpt", [250, 0], 0),
        ("data", [250, 250, 0], 0),
        ("body", [250, 250, 354, 0], 0),
        ("accepted", [250, 250, 354, 0], 1),
    ],
)
def test_drop_cuts_at_its_stage_once(tmp_path: Path, stage: str, codes: list[int], accepted: int) -> None:
    with sink(tmp_path, flaky={"drop": {"at": stage}}) as process:
        with RawClient(process.addresses["flaky"]) as client:
            client.greet()
            assert client.mail() == codes
        assert process.log().total == accepted
        with RawClient(process.addresses["flaky"]) as client:
            client.greet()
            assert client.mail() == [250, 250, 354, 250]
        log = process.log()
    assert log.total == accepted + 1
    assert len(log.duplicates()) == accepted
    assert log.refused() == {("flaky", stage, 0): 1}


def test_a_delay_holds_its_reply_and_all_behind_it(tmp_path: Path) -> None:
    with (
        sink(tmp_path, slow={"delay": {"final": "150ms"}}) as process,
        RawClient(process.addresses["slow"]) as client,
    ):
        client.greet()
        start = time.monotonic()
        client.send(
            b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nA: b\r\n\r\n.\r\nNOOP\r\nQUIT\r\n"
        )
        assert client.codes(3) == [250, 250, 354]
        assert time.monotonic() - start < 0.15
        assert client.codes(2) == [250, 250]
        assert time.monotonic() - start >= 0.15
        assert client.codes(2) == [221, 0]


def test_idle_connections_are_ended(tmp_path: Path) -> None:
    with sink(tmp_path, short={"idle": "100ms"}) as process, RawClient(process.addresses["short"]) as client:
        client.greet()
        assert client.codes(2) == [421, 0]


def make_certificate(folder: Path) -> None:
    request = "openssl req -x509 -nodes -days 2 -subj /CN=sink.test"
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    subprocess.run(
        [
            *request.split(),
            *key.split(),
            "-keyout",
            str(folder / "key.pem"),
            "-out",
            str(folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )


def test_starttls(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    tls = {"certificate": "cert.pem", "key": "key.pem", "required": True}
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    context.check_hostname = False
    with sink(tmp_path, secure={"tls": tls}) as process:
        with smtplib.SMTP(*process.addresses["secure"]) as client:
            client.ehlo()
            assert client.has_extn("starttls")
            assert client.mail("a@b.test")[0] == 530
            client.starttls(context=context)
            client.ehlo()
            assert not client.has_extn("starttls")
            assert client.sendmail("a@b.test", "c@d.test", "X-Sendfleet-ID: 1\r\n\r\nx") == {}
        with RawClient(process.addresses["secure"]) as raw:
            raw.greet()
            raw.send(b"STARTTLS\r\nNOOP\r\n")
            assert raw.codes(2) == [503, 0]
        assert process.log().total == 1


@pytest.mark.crash
def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    with sink(tmp_path, plain={}) as process:
        answered: set[str] = set()
        for run in range(3):
            with RawClient(process.addresses["plain"]) as client:
                client.greet()
                envelope = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"
                body = b"X-Sendfleet-ID: %d-%d\r\n\r\n.\r\n"
                burst = b"".join(envelope + body % (run, n) for n in range(2000))
                client.send(burst)
                for n in range(100 + 300 * run):
                    assert client.codes(4) == [250, 250, 354, 250]
                    answered.add(f"{run}-{n}")
                os.kill(process.pid, signal.SIGKILL)
                n = len([key for key in answered if key.startswith(f"{run}-")])
                while (codes := client.codes(4)) == [250, 250, 354, 250]:
                    answered.add(f"{run}-{n}")
                    n += 1
                assert 0 in codes
            process.kill()
            process.restart()
        log = process.log()
    assert answered <= {row.id for row in log.acceptances}
    assert log.duplicates() == {}
    assert log.runs == 4


def test_a_torn_line_is_skipped_and_closed_off(tmp_path: Path) -> None:
    with sink(tmp_path, plain={}) as process:
        with RawClient(process.addresses["plain"]) as client:
            client.greet()
            client.mail(id="1")
        process.kill()
        with process.log_path.open("ab") as file:
            file.write(b'{"k":"a","id":"to')
        process.restart()
        with RawClient(process.addresses["plain"]) as client:
            client.greet()
            client.mail(id="2")
        log = process.log()
    assert {row.id for row in log.acceptances} == {"1", "2"}
    assert log.torn == 1
    assert len({row.session for row in log.acceptances}) == 2


def test_an_unwritable_log_means_no_acceptance(tmp_path: Path) -> None:
    config = tmp_path / "p.yaml"
    config.write_text("personalities: {plain: {}}")
    with (
        SinkProcess(config, Path("/dev/full")) as process,
        RawClient(process.addresses["plain"]) as client,
    ):
        assert client.reply() == (0, "")


def test_refresh_takes_in_only_what_is_new(tmp_path: Path) -> None:
    with sink(tmp_path, plain={}) as process, RawClient(process.addresses["plain"]) as client:
        client.greet()
        log = process.log()
        client.mail(id="1")
        assert log.refresh() == 1
        client.mail(id="2")
        assert log.refresh() == 1
        assert log.refresh() == 0
        assert log.total == 2


def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RuntimeError, match="in use"),
        sink(tmp_path, plain={"port": taken.getsockname()[1]}),
    ):
        pass
