"""What the doctor's probe sees of real TLS servers on loopback: certificates good and bad, answers good and bad."""

import asyncio
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from engine.doctor.case import Case
from engine.doctor.check_servers import check_mx_tls
from engine.doctor.check_transport import check_mta_sts
from engine.doctor.finding import Level
from engine.doctor.probe import Probe
from engine.doctor.questions import Questions
from engine.ops.free_port import free_port
from engine.tls.sts import MAX_POLICY
from tests.support.fleets import fleet
from tests.support.zones import ZoneResolver

ZONE = """
a.test         MX 10 mx.a.test
mx.a.test      A 127.0.0.1
mta-sts.a.test A 127.0.0.1
_mta-sts.a.test TXT v=STSv1; id=1
"""
POLICY = b"version: STSv1\nmode: enforce\nmx: mx.a.test\nmax_age: 604800\n"


def certificate(folder: Path, host: str, days: float = 90) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a self-signed certificate, and a client's that trusts it."""
    key: EllipticCurvePrivateKey = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=100))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    path = folder / f"{host}.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(built.public_bytes(Encoding.PEM) + secret)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cafile=str(path))
    return server, client


def case() -> Case:
    config = fleet(resolver={"private_addresses": "allow"})
    return Case("a.test", "a.test", config, Questions(ZoneResolver(ZONE)))


def probe(of: Case, context: ssl.SSLContext, port: int, *, allowed: bool = True) -> Probe:
    return Probe(
        of.questions,
        lambda address: allowed,
        helo="doctor.test",
        context=context,
        smtp_port=port,
        https_port=port,
    )


@contextmanager
def smtp_server(context: ssl.SSLContext | None) -> Iterator[int]:
    port = free_port()
    controller = Controller(Sink(), hostname="127.0.0.1", port=port, tls_context=context)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


@pytest.mark.parametrize(
    ("host", "days", "level", "words"),
    [
        ("mx.a.test", 90, Level.PASS, "TLSv1.3, certificate good for"),
        ("mx.a.test", 3, Level.WARN, "the certificate ends in"),
        ("mx.a.test", -1, Level.WARN, "certificate has expired"),
        ("other.test", 90, Level.WARN, "not good for mx.a.test"),
    ],
)
def test_certificates(tmp_path: Path, host: str, days: float, level: Level, words: str) -> None:
    server, client = certificate(tmp_path, host, days)
    with smtp_server(server) as port:
        of = case()
        findings = asyncio.run(check_mx_tls(of, probe(of, client, port)))
    assert [finding.level for finding in findings] == [level]
    assert words in findings[0].why


def test_an_unknown_authority_and_no_tls(tmp_path: Path) -> None:
    server, _ = certificate(tmp_path, "mx.a.test")
    with smtp_server(server) as port:
        of = case()
        (finding,) = asyncio.run(check_mx_tls(of, probe(of, ssl.create_default_context(), port)))
    assert (finding.level, "self-signed" in finding.why) == (Level.WARN, True)
    with smtp_server(None) as port:
        (finding,) = asyncio.run(check_mx_tls(of, probe(of, ssl.create_default_context(), port)))
    assert (finding.level, "offers no STARTTLS" in finding.why) == (Level.WARN, True)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (finding,) = asyncio.run(check_mx_tls(of, probe(of, ssl.create_default_context(), port)))
    assert (finding.level, "no TLS session" in finding.why) == (Level.WARN, True)
    (finding,) = asyncio.run(check_mx_tls(of, None))
    assert finding.level is Level.NOTE


@contextmanager
def web_server(context: ssl.SSLContext, status: int, kind: str, body: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = (self.path, self.headers["Host"]) == ("/.well-known/mta-sts.txt", "mta-sts.a.test")
            self.send_response(status if good else 400)
            self.send_header("Content-Type", kind)
            self.send_header("Location", "https://elsewhere.test/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.mark.parametrize(
    ("status", "kind", "body", "level", "words"),
    [
        (200, "text/plain; charset=utf-8", POLICY, Level.PASS, "mode enforce"),
        (200, "text/plain", POLICY.replace(b"enforce", b"testing"), Level.WARN, "mode testing"),
        (200, "text/plain", POLICY.replace(b"mx.a", b"mx.b"), Level.FAIL, "mx.a.test is not in the policy"),
        (200, "text/html", POLICY, Level.FAIL, "content type 'text/html'"),
        (301, "text/plain", POLICY, Level.FAIL, "status 301"),
        (404, "text/plain", b"", Level.FAIL, "status 404"),
        (200, "text/plain", b"hello", Level.FAIL, "expected KEY: VALUE"),
        (200, "text/plain", b"a" * (MAX_POLICY + 1), Level.FAIL, "more than 65536 bytes"),
    ],
)
def test_the_mta_sts_policy(
    tmp_path: Path, status: int, kind: str, body: bytes, level: Level, words: str
) -> None:
    server, client = certificate(tmp_path, "mta-sts.a.test")
    with web_server(server, status, kind, body) as port:
        of = case()
        (finding,) = asyncio.run(check_mta_sts(of, probe(of, client, port)))
    assert (finding.level, words in finding.why) == (level, True), finding


def test_a_policy_host_with_a_wrong_certificate_or_on_a_private_address(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "other.test")
    of = case()
    with web_server(server, 200, "text/plain", POLICY) as port:
        (finding,) = asyncio.run(check_mta_sts(of, probe(of, client, port)))
        assert "Hostname mismatch" in finding.why
        (finding,) = asyncio.run(check_mta_sts(of, probe(of, client, port, allowed=False)))
        assert "no public address" in finding.why


def test_private_mx_addresses_are_not_probed(tmp_path: Path) -> None:
    class Untouched:
        async def starttls(self, address: str, host: str) -> None:
            raise AssertionError(f"connected to {address}")

    of = Case("a.test", "a.test", fleet(), Questions(ZoneResolver(ZONE)))
    assert not ipaddress.ip_address("127.0.0.1").is_global
    (finding,) = asyncio.run(check_mx_tls(of, Untouched()))  # type: ignore[arg-type]
    assert (finding.level, finding.why) == (Level.NOTE, "no public address to probe")
