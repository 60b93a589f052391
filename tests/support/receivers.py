"""Real receiving MTAs on loopback that keep what they get: Debian's Postfix, Exim and OpenSMTPD, and aiosmtpd.

Each is a context manager with `port`, and `stored()`, the messages as they lie in its mailbox, with CRLF (mailboxes on
disk have LF). `tls` makes it offer STARTTLS, with a certificate of its own making. The Debian servers are unpacked,
not installed (tools/install_test_servers.sh), and run with files of their own in a temporary folder; they want root to
be started. OpenSMTPD and Exim have paths and users compiled in, and run in a mount namespace where these are their own.
"""

import datetime
import os
import pwd
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.postfix import GROUP, OWNER, make_folders
from bench.servers import TOOLS, environment
from bench.smtp_sink import is_listening
from engine.ops.free_port import free_port

DOMAIN = "example.org"
START_S = 15.0


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) for mx.example.org, as PEM files."""
    key = generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"mx.{DOMAIN}")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"mx.{DOMAIN}")]), critical=False)
        .sign(key, SHA256())
    )
    files = directory / "mx.crt", directory / "mx.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].touch(mode=0o600)
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


class _Daemon(ABC):
    """What the unpacked servers share."""

    def __init__(self, *, tls: bool) -> None:
        self.tls = tls
        self.port = free_port()
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("only root can start it")
        if not (TOOLS / ".complete").exists():
            pytest.fail("tools/install_test_servers.sh has not been run")
        self.folder = Path(tempfile.mkdtemp(prefix="receiver-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.prepare(), stdout=log, stderr=log, env=self.environment(), start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not is_listening(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = (self.folder / "log").read_text(errors="replace")
                self.__exit__()
                raise RuntimeError(f"the server did not start: {words[-2000:]}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        return environment()

    @abstractmethod
    def prepare(self) -> list[str]:
        """Write the files; returns the command."""

    def stored(self) -> list[bytes]:
        return [
            file.read_bytes().replace(b"\n", b"\r\n") for file in sorted(self.folder.glob("mail/**/new/*"))
        ]


class Postfix(_Daemon):
    """PIPELINING, 8BITMIME, SMTPUTF8, DSN, and CHUNKING unless it is hidden."""

    def __init__(self, *, tls: bool = False, chunking: bool = True) -> None:
        super().__init__(tls=tls)
        self._chunking = chunking

    def environment(self) -> dict[str, str]:
        return environment() | {"MAIL_CONFIG": str(self.folder / "etc")}

    def prepare(self) -> list[str]:
        folder = self.folder
        make_folders(folder)
        (folder / "mail").mkdir(mode=0o755)
        nobody = pwd.getpwnam("nobody")
        os.chown(folder / "mail", nobody.pw_uid, nobody.pw_gid)
        services = f"127.0.0.1:{self.port} inet n - n - 100 smtpd\n" + "".join(
            f"{name} unix {private} - n {wake} {limit} {program}\n"
            for name, private, wake, limit, program in (
                ("cleanup", "n", "-", "0", "cleanup"),
                ("qmgr", "n", "300", "1", "qmgr"),
                ("tlsmgr", "-", "1000?", "1", "tlsmgr"),
                ("rewrite", "-", "-", "-", "trivial-rewrite"),
                ("bounce", "-", "-", "0", "bounce"),
                ("defer", "-", "-", "0", "bounce"),
                ("trace", "-", "-", "0", "bounce"),
                ("proxymap", "-", "-", "-", "proxymap"),
                ("error", "-", "-", "-", "error"),
                ("retry", "-", "-", "-", "error"),
                ("virtual", "-", "-", "-", "virtual"),
                ("anvil", "-", "-", "1", "anvil"),
            )
        )
        (folder / "etc" / "master.cf").write_text(services.replace("virtual unix - -", "virtual unix - n"))
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": folder / "queue",
            "data_directory": folder / "data",
            "daemon_directory": TOOLS / "usr/lib/postfix/sbin",
            "command_directory": TOOLS / "usr/sbin",
            "shlib_directory": TOOLS / "usr/lib/postfix",
            "import_environment": "MAIL_CONFIG LD_LIBRARY_PATH TZ LANG=C",
            "mail_owner": OWNER,
            "setgid_group": GROUP,
            "default_privs": "nobody",
            "myhostname": f"mx.{DOMAIN}",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "alias_maps": "",
            "alias_database": "",
            "smtputf8_enable": "yes",
            "virtual_mailbox_domains": DOMAIN,
            "virtual_mailbox_base": folder / "mail",
            "virtual_mailbox_maps": "static:box/",
            "virtual_uid_maps": f"static:{nobody.pw_uid}",
            "virtual_gid_maps": f"static:{nobody.pw_gid}",
        }
        if not self._chunking:
            settings["smtpd_discard_ehlo_keywords"] = "chunking, silent-discard"
        if self.tls:
            certificate, key = make_certificate(folder)
            settings |= {
                "smtpd_tls_security_level": "may",
                "smtpd_tls_cert_file": certificate,
                "smtpd_tls_key_file": key,
            }
        main = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (folder / "etc" / "main.cf").write_text(main)
        return [str(TOOLS / "usr/lib/postfix/sbin/master"), "-d", "-c", str(folder / "etc")]


_NAMESPACE = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/spool
mount -t tmpfs tmpfs /run
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/group /etc/group
{start}
"""
_USERS = (("opensmtpd", 64001), ("opensmtpq", 64002), ("vmail", 64003), ("Debian-exim", 64004))


class _Compiled(_Daemon):
    """A server with paths and users that were compiled in."""

    def environment(self) -> dict[str, str]:
        machine = next((TOOLS / "usr/lib").glob("*-linux-gnu"))
        return os.environ | {"LD_LIBRARY_PATH": f"{machine}:{TOOLS}/lib/{machine.name}"}

    def in_namespace(self, start: str, *, owner: str) -> list[str]:
        """The command that runs the shell lines `start` where /var/lib, /var/spool, /run and the users are its own."""
        folder, users = self.folder, dict(_USERS)
        (folder / "mail").mkdir()
        os.chown(folder / "mail", users[owner], users[owner])
        lines = "".join(f"{n}:x:{i}:{i}::/var/lib/opensmtpd/empty:/bin/sh\n" for n, i in _USERS)
        groups = "".join(f"{name}:x:{number}:\n" for name, number in _USERS)
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + lines)
        (folder / "group").write_text(Path("/etc/group").read_text() + groups)
        return ["unshare", "--mount", "sh", "-c", _NAMESPACE.format(folder=folder, start=start)]


class OpenSmtpd(_Compiled):
    """8BITMIME and DSN; neither PIPELINING, CHUNKING nor SMTPUTF8.

    Debian 12's OpenSMTPD 6.8 offers STARTTLS and then fails every handshake: it cannot use its key with OpenSSL 3
    (OpenSMTPD issue 1171). So with `tls` it is a real server whose TLS is broken.
    """

    def prepare(self) -> list[str]:
        folder, tools = self.folder, TOOLS.resolve()
        listen = f"listen on 127.0.0.1 port {self.port}"
        pki = ""
        if self.tls:
            certificate, key = make_certificate(folder)
            pki = f'pki receiver cert "{certificate}"\npki receiver key "{key}"\n'
            listen += " tls pki receiver"
        (folder / "smtpd.conf").write_text(
            f'{pki}{listen}\naction store maildir "{folder}/mail" virtual {{ "@" = vmail }}\n'
            f'match from any for domain "{DOMAIN}" action store\n'
        )
        start = (
            "mkdir -p -m 755 /var/lib/opensmtpd/empty\n"
            f"mount --bind {tools}/usr/libexec /usr/libexec\n"
            f"exec {tools}/usr/sbin/smtpd -d -f {folder}/smtpd.conf"
        )
        return self.in_namespace(start, owner="vmail")


_EXIM = """\
exim_path = {tools}/usr/sbin/exim4
keep_environment = LD_LIBRARY_PATH
primary_hostname = mx.{domain}
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
spool_directory = {folder}/spool
log_file_path = {folder}/exim-%slog
deliver_drop_privilege = true
host_lookup =
rfc1413_hosts =
smtp_accept_queue_per_connection = 0
smtp_accept_max_per_connection = 0
smtputf8_advertise_hosts = *
chunking_advertise_hosts = {chunking}
accept_8bitmime = true
dsn_advertise_hosts = *
tls_advertise_hosts = {tls}
{certificate}
acl_smtp_rcpt = take
begin acl
take:
  accept domains = {domain}
  deny
begin routers
box:
  driver = accept
  domains = {domain}
  transport = box
begin transports
box:
  driver = appendfile
  maildir_format
  directory = {folder}/mail
  create_directory
  user = Debian-exim
"""


class Exim(_Compiled):
    """PIPELINING, 8BITMIME, SMTPUTF8, DSN, and CHUNKING unless it is hidden; TLS by GnuTLS. Runs without privileges."""

    def __init__(self, *, tls: bool = False, chunking: bool = True) -> None:
        super().__init__(tls=tls)
        self._chunking = chunking

    def prepare(self) -> list[str]:
        folder, user = self.folder, dict(_USERS)["Debian-exim"]
        certificate = ""
        os.chown(folder, user, user)
        if self.tls:
            files = make_certificate(folder)
            for file in files:
                os.chown(file, user, user)
            certificate = f"tls_certificate = {files[0]}\ntls_privatekey = {files[1]}"
        (folder / "exim.conf").write_text(
            _EXIM.format(
                tools=TOOLS.resolve(),
                domain=DOMAIN,
                port=self.port,
                folder=folder,
                chunking="*" if self._chunking else "",
                tls="*" if self.tls else "",
                certificate=certificate,
            )
        )
        start = (
            f"install -D -m 644 {folder}/exim.conf /var/lib/exim4/config.autogenerated\n"
            f"exec setpriv --reuid {user} --regid {user} --clear-groups {TOOLS.resolve()}/usr/sbin/exim4 -bdf"
        )
        return self.in_namespace(start, owner="Debian-exim")

    def chunked(self) -> int:
        """How many messages came by BDAT: the field K of exim's log."""
        lines = (self.folder / "exim-mainlog").read_text(errors="replace").splitlines()
        return sum(" <= " in line and " K " in line for line in lines)


class Aiosmtpd:
    """8BITMIME, SMTPUTF8; neither PIPELINING nor CHUNKING."""

    def __init__(self, *, tls: bool = False) -> None:
        self.port = free_port()
        self._tls = tls
        self._stored: list[bytes] = []
        self.options: list[tuple[list[str], list[str]]] = []

    def __enter__(self) -> Self:
        context = None
        if self._tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            with tempfile.TemporaryDirectory() as folder:
                context.load_cert_chain(*make_certificate(Path(folder)))
        self._controller = Controller(
            self,
            hostname="127.0.0.1",
            port=self.port,
            server_hostname=f"mx.{DOMAIN}",
            enable_SMTPUTF8=True,
            decode_data=False,
            tls_context=context,
            require_starttls=self._tls,
            data_size_limit=100 << 20,
            command_call_limit=100_000,
        )
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        self._stored.append(envelope.original_content)
        self.options.append((list(envelope.mail_options), list(envelope.rcpt_tos)))
        return "250 2.0.0 stored"

    def stored(self) -> list[bytes]:
        return list(self._stored)
