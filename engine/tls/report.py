"""TLS reports as RFC 8460 writes them: the JSON document, its file name, the mail that carries it, and who wants it."""

import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP
from email.utils import format_datetime, make_msgid

import orjson

from engine.tls.book import DAY_MS, Policy, Sums
from engine.values.address import AddressError, parse_address

MAX_RUA = 5


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: the name of the organisation, a way to reach it, the domain it submits as."""

    organisation: str
    contact: str
    submitter: str


@dataclass(frozen=True, slots=True)
class Report:
    """One day of one policy domain. `id` is the same however often the report is made."""

    id: str
    domain: str
    file_name: str
    json: bytes

    def compressed(self) -> bytes:
        return gzip.compress(self.json, mtime=0)


def make_report(
    reporter: Reporter, region: str, day: int, domain: str, policies: Mapping[Policy, Sums]
) -> Report:
    """The report on one UTC day (number since 1970) of a domain."""
    begin_s = day * DAY_MS // 1000
    id_ = f"{_date(begin_s):%Y-%m-%d}.{region}.{domain}@{reporter.submitter}"
    document = {
        "organization-name": reporter.organisation,
        "date-range": {
            "start-datetime": f"{_date(begin_s):%Y-%m-%dT%H:%M:%SZ}",
            "end-datetime": f"{_date(begin_s + 86_399):%Y-%m-%dT%H:%M:%SZ}",
        },
        "contact-info": reporter.contact,
        "report-id": id_,
        "policies": [_policy(domain, policy, sums) for policy, sums in policies.items()],
    }
    name = f"{reporter.submitter}!{domain}!{begin_s}!{begin_s + 86_399}!{region}.json.gz"
    return Report(id_, domain, name, orjson.dumps(document))


def make_mail(reporter: Reporter, report: Report, *, sender: str, recipient: str, now_ms: int) -> bytes:
    """The mail of RFC 8460 section 5.3: multipart/report with a note for people and the compressed report."""
    mail = MIMEMultipart("report", policy=SMTP)
    mail.set_param("report-type", "tlsrpt")
    mail["From"] = sender
    mail["To"] = recipient
    mail["Date"] = format_datetime(datetime.fromtimestamp(now_ms // 1000, UTC))
    mail["Message-ID"] = make_msgid(domain=reporter.submitter)
    mail["Subject"] = (
        f"Report Domain: {report.domain} Submitter: {reporter.submitter} Report-ID: <{report.id}>"
    )
    mail["TLS-Report-Domain"] = report.domain
    mail["TLS-Report-Submitter"] = reporter.submitter
    mail["Auto-Submitted"] = "auto-generated"
    mail["TLS-Required"] = "No"  # RFC 8689 section 3: for the hosts behind ours
    note = f"This is an aggregate report on TLS sessions to {report.domain} (RFC 8460)."
    mail.attach(
        MIMEText(f"{note}\n{reporter.organisation}, {reporter.contact}\n", "plain", "utf-8", policy=SMTP)
    )
    part = MIMEApplication(report.compressed(), "tlsrpt+gzip", policy=SMTP)
    part.add_header("Content-Disposition", "attachment", filename=report.file_name)
    mail.attach(part)
    return mail.as_bytes(policy=SMTP)


def rua_of(texts: Sequence[str]) -> list[str]:
    """The `rua` addresses of the one `v=TLSRPTv1` record (section 3), as URIs; none if there is not exactly one."""
    found = [text for text in texts if re.match(r"v=TLSRPTv1[ \t]*;", text)]
    if len(found) != 1:
        return []
    for part in found[0].split(";")[1:]:
        key, equals, value = part.partition("=")
        if equals and key.strip() == "rua":
            return [uri.strip() for uri in value.split(",") if uri.strip()][:MAX_RUA]
    return []


def mail_addresses(uris: Sequence[str]) -> list[str]:
    """Of the URIs those that are mailto with an address that can be sent to."""
    found = []
    for uri in uris:
        scheme, _, rest = uri.partition(":")
        address = rest.partition("?")[0]
        if scheme.lower() != "mailto" or "%" in address:
            continue
        try:
            found.append(parse_address(address).text)
        except AddressError:
            continue
    return found


def _policy(domain: str, policy: Policy, sums: Sums) -> dict[str, object]:
    described: dict[str, object] = {"policy-type": policy.type, "policy-domain": domain}
    if policy.lines:
        described["policy-string"] = list(policy.lines)
    hosts = [line.partition(": ")[2] for line in policy.lines if line.startswith("mx: ")]
    if policy.type == "sts" and hosts:
        described["mx-host"] = hosts
    return {
        "policy": described,
        "summary": {
            "total-successful-session-count": sums.succeeded,
            "total-failure-session-count": sums.failed,
        },
        "failure-details": [
            {
                "result-type": failure.result,
                "sending-mta-ip": failure.source_ip,
                "receiving-mx-hostname": failure.host,
                "receiving-ip": failure.address,
                "failed-session-count": count,
                "failure-reason-code": failure.reason,
            }
            for failure, count in sums.failures.items()
        ],
    }


def _date(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
