"""What a message to a bounce or feedback address says: a failure, a delay, a complaint, an automatic answer, nothing.

Read are delivery status notifications (RFC 3464, with the deviations that are common), feedback reports (RFC 5965),
automatic answers (RFC 3834), and the texts of servers that send no report: qmail's and its descendants', Exim's,
Exchange's, Yahoo's and the like. `read_report` is pure and raises nothing, whatever it is given. Nothing here is to be
believed: who acts on a report checks its token first (engine/bounces/tokens.py).
"""

import itertools
import re
import sys
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.bounces.parts import Part, leaves, read_fields, split_message
from engine.values.reply import Reply

MAX_RECIPIENTS = 50
MAX_TOKENS = 8
MAX_REPLY = 1000
MAX_ADDRESS = 320
MAX_REPLIES = 100  # of a text, that are looked at


class ReportKind(StrEnum):
    """FAILED may bounce, COMPLAINT complain; the others change nothing and are counted."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    COMPLAINT = "complaint"
    OTHER_FEEDBACK = "other-feedback"
    AUTO_REPLY = "auto-reply"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """What is said of one recipient. `addresses`: how it is named, original first, final last; perhaps none."""

    addresses: tuple[str, ...]
    reply: Reply


@dataclass(frozen=True, slots=True)
class Report:
    """`failures` for FAILED. `is_partial`: other recipients in the same report did not fail.

    `feedback`: the Feedback-Type. `senders`, `links`: addresses and links in a complaint, or in a message that one of
    kind UNKNOWN encloses, that may be a return path and an unsubscribe link of ours.
    """

    kind: ReportKind
    failures: tuple[Failure, ...] = ()
    is_partial: bool = False
    feedback: str = ""
    senders: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


# RFC 5965 section 7.3; opt-out was in drafts and is still sent. not-spam and auth-failure (RFC 6591) are no complaints
COMPLAINTS = frozenset({"abuse", "fraud", "opt-out", "opt-out-list"})
ACTIONS = frozenset({"failed", "delayed", "delivered", "relayed", "expanded"})  # RFC 3464 section 2.3.3
_ENHANCED = r"([245]\.\d{1,3}\.\d{1,3})"
_REPLY = re.compile(rf"(?<![\d.])([45]\d\d)(?:[ -]+#?{_ENHANCED})?(?![\d.])[ :-]*", re.ASCII)
# qmail adds a line of its own behind what the host said
_REPLY_END = re.compile(r"\n\n|\ngiving up on ", re.IGNORECASE)
_STATUS_ONLY = re.compile(rf"#?\b{_ENHANCED}\b", re.ASCII)
_ADDRESS = re.compile(r"[^\s<>@,;:\"()]{1,64}@[A-Za-z0-9.-]{1,255}")
# people to write to, no recipients
_ROLE = re.compile(
    r"(?:postmaster|mailer-daemon|abuse|hostmaster|helpdesk|support|noreply|no-reply)@", re.IGNORECASE
)
# "carl@b.example (generated from anna@a.example)", as Exim has it; Postfix: "expanded from"
_ORIGIN = re.compile(
    r"\((?:[a-z]+ )?(?:generated|expanded|forwarded) (?:from|by) [^()]{0,400}\)", re.IGNORECASE
)
_XTEXT = re.compile(r"\+([0-9A-F]{2})")  # RFC 3461 section 4
_UNITEXT = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ANGLES = re.compile(r"<([^<>]+)>")
_COMMENT = re.compile(r"\([^()]*\)[ \t;]*$")
_SOURCE_ROUTE = re.compile(r"^@[^:@]+(?:,@[^:@]+)*:")
_VERP = re.compile(r"b\+[a-z2-7]{34}@[a-z0-9.-]{1,253}", re.IGNORECASE | re.ASCII)
_LINK = re.compile(r"https?://[^\s<>\"']{1,1500}")
_DAEMONS = re.compile(
    r"\b(?:mailer-daemon|mail-daemon|maildaemon|postmaster|mail delivery (?:sub)?system|mail administrator)\b",
    re.IGNORECASE,
)
_BOUNCE_SUBJECT = re.compile(
    r"undeliver|not delivered|non-?delivery|delivery (?:status|failure|failed|has failed|problem|error|report)"
    r"|failure notice|returned (?:to sender|mail)|mail failure|could not be delivered|unzustellbar|rejected"
    r"|mail delivery failed|delivery notification|message blocked|bounce",
    re.IGNORECASE,
)
_DELAY = re.compile(
    r"\bdelay(?:ed)?\b|still (?:being )?(?:trying|retried|retrying)|will (?:keep trying|be retried|retry)"
    r"|not yet been delivered|warning: message|no action is required on your part|verzögert",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"permanent|giving up|given up|i've given up|fatal|has been (?:returned|rejected)|will not be retried",
    re.IGNORECASE,
)
# "Hi. This is the qmail-send program at example.com.", "This is the mail system at host mx.example.com."
_PROGRAM = re.compile(
    r"\bthis is (?:the|an?) [^.\n]{0,40}?(?:\bprogram|\bmail(?:er)? (?:system|server|daemon|delivery))\b",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"^(?:re|aw|antw|sv|vs|rv|odp|fwd?|wg|tr)(?:\[\d+\])?\s*:", re.IGNORECASE)
_AUTO_SUBJECT = re.compile(
    r"^(?:auto(?:matic|mated)?[ :-]|auto(?:reply|response|answer)|out of (?:the )?office|abwesenheit|vacation"
    r"|away from|absence|r.ponse automatique)",
    re.IGNORECASE,
)
# where a returned copy of our own message begins: what it says is not the server's word
_COPY = re.compile(
    r"^--.*?(?:below this line|copy of (?:the|your) message|original message|returned message|message header"
    r"|headers? follow|enclosed is a copy).*$|^(?:return-path|received):\s",
    re.IGNORECASE | re.MULTILINE,
)


def read_report(data: bytes, *, sender: str) -> Report:
    """`sender`: the envelope sender that the message came with, "" for the null sender."""
    message = split_message(data)
    parts = leaves(message)
    for part in parts:
        if part.kind == "message/feedback-report":
            return _feedback(part, parts)
    for part in parts:
        if part.kind in ("message/delivery-status", "message/global-delivery-status"):
            report = _delivery_status(part.body if _is_plain(part) else part.text().encode(), parts)
            if report is not None:
                return report
    report = _text(message, parts, sender)
    if report.kind is ReportKind.UNKNOWN:
        senders, links = _ties([_head_of(part) for part in parts if part.kind == "message/rfc822"])
        report = replace(report, senders=senders, links=links)
    return report


def _is_plain(part: Part) -> bool:
    encoding = part.headers.get("content-transfer-encoding", "").strip().lower()
    return encoding not in ("quoted-printable", "base64")


# -- RFC 3464


def _groups(body: bytes) -> list[dict[str, str]]:
    """The groups of fields that speak of a recipient; a repeated name begins a new one even without an empty line."""
    found: list[dict[str, str]] = []
    for block in re.split(rb"\n[ \t]*\n", body.replace(b"\r\n", b"\n").strip(), maxsplit=MAX_RECIPIENTS + 1):
        pieces = re.split(rb"\n(?=final-recipient[ \t]*:)", b"\n" + block, flags=re.IGNORECASE)
        for index, piece in enumerate(pieces):
            fields = read_fields(piece.strip(b"\n"))
            if index and pieces[0].strip() and not found and len(pieces) == 2:
                # everything in one block: what stood before the recipient belongs to it, too
                fields = {**read_fields(pieces[0].strip(b"\n")), **fields}
            if fields.keys() & {"final-recipient", "original-recipient", "action", "status"}:
                if index == 0 and len(pieces) > 1 and "final-recipient" not in fields:
                    continue
                found.append(fields)
    return found[:MAX_RECIPIENTS]


def _delivery_status(body: bytes, parts: list[Part]) -> Report | None:
    """None if no recipient is named: then it is read as text."""
    failures: list[Failure] = []
    others: list[str] = []
    for fields in _groups(body):
        action = fields.get("action", "").split("(")[0].strip().lower()
        status = _STATUS_ONLY.search(fields.get("status", ""))
        if action not in ACTIONS:  # some leave it out, or write another word
            action = "" if status is None else {"5": "failed", "4": "delayed"}.get(status[1][0], "delivered")
        if action == "failed":
            failures.append(Failure(_names(fields), _reply_of(fields, status, parts)))
        elif action:
            others.append(action)
    if failures:
        return Report(ReportKind.FAILED, tuple(failures), is_partial=bool(others))
    if "delayed" in others:
        return Report(ReportKind.DELAYED)
    if others:
        return Report(ReportKind.DELIVERED)
    return None


def _names(fields: dict[str, str]) -> tuple[str, ...]:
    """The recipient's addresses, original first; `type; address` (RFC 3464 section 2.3.1) or the bare address."""
    found = []
    for name in ("original-recipient", "final-recipient", "x-actual-recipient"):
        value = _address_in(fields.get(name, ""))
        for form in (_XTEXT.sub(_letter, value), value):  # some hand ORCPT on as it stood in the command
            if "@" in form and form not in found:
                found.append(form)
    return tuple(found)


def _address_in(value: str) -> str:
    """Of a field; some write a name, a comment or a source route to it. RFC 6533 section 3 has letters as \\x{HEX}."""
    kind, semicolon, text = value[: 4 * MAX_ADDRESS].partition(";")
    text = text if semicolon else kind
    if kind.strip().lower() == "utf-8":
        text = _UNITEXT.sub(_letter, text)
    found = _ANGLES.search(text)
    text = found[1] if found is not None else _COMMENT.sub("", text).rstrip(" \t;")
    return _SOURCE_ROUTE.sub("", text.strip())[:MAX_ADDRESS]


def _letter(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    letter = chr(code) if code <= sys.maxunicode else ""
    return letter if letter.isprintable() and letter else found[0]


def _reply_of(fields: dict[str, str], status: re.Match[str] | None, parts: list[Part]) -> Reply:
    kind, semicolon, diagnostic = fields.get("diagnostic-code", "").partition(";")
    if not semicolon:
        diagnostic = kind
    reply = parse_reply(diagnostic)
    enhanced = reply.enhanced or ("" if status is None else status[1])
    text = reply.text
    if not text and not reply.code:
        # nothing but a status: the text for people often says more
        told = next((part.text() for part in parts if part.kind == "text/plain"), "")
        told_reply = _find_reply(_own_words(told))
        if told_reply is not None and told_reply.enhanced in ("", enhanced):
            return told_reply._replace(enhanced=enhanced)
    return Reply(reply.code, enhanced, text)


# -- RFC 5965


def _feedback(report: Part, parts: list[Part]) -> Report:
    body = report.body if _is_plain(report) else report.text().encode()
    fields = read_fields(body.replace(b"\r\n", b"\n").strip())
    kind = fields.get("feedback-type", "abuse").split("(")[0].strip().lower()
    original = fields.get("original-mail-from", "")
    places = [original, *(_head_of(part) for part in parts if part is not report)]
    senders, links = _ties(places)
    return Report(
        ReportKind.COMPLAINT if kind in COMPLAINTS else ReportKind.OTHER_FEEDBACK,
        feedback=kind[:40],
        senders=senders,
        links=links,
    )


def _ties(places: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may be return paths and unsubscribe links of ours."""
    senders = dict.fromkeys(found[0] for place in places for found in _VERP.finditer(place))
    links = dict.fromkeys(
        found[0] for place in places for found in _LINK.finditer(_header_value(place, "list-unsubscribe"))
    )
    return tuple(senders)[:MAX_TOKENS], tuple(links)[:MAX_TOKENS]


def _head_of(part: Part) -> str:
    """The header of the message that a part encloses, or the text itself."""
    text = part.text()
    if part.kind in ("message/rfc822", "text/rfc822-headers", "message/rfc822-headers", "message/global"):
        return text.partition("\n\n")[0]
    return text


def _header_value(head: str, name: str) -> str:
    return read_fields(head.encode()).get(name, "")


# -- texts


def _text(message: Part, parts: list[Part], sender: str) -> Report:
    headers = message.headers
    subject = headers.get("subject", "")
    if any(part.kind == "message/disposition-notification" for part in parts):
        return Report(ReportKind.AUTO_REPLY)  # RFC 8098: its recipient has got the message
    told = next((part.text() for part in parts if part.kind == "text/plain"), "") or next(
        (_without_tags(part.text()) for part in parts if part.kind == "text/html"), ""
    )
    words = _own_words(told)
    failed = _addresses(headers.get("x-failed-recipients", ""))
    if not failed and _AUTO_SUBJECT.search(subject):
        return Report(ReportKind.AUTO_REPLY)
    is_program = not sender and bool(_PROGRAM.search(words[:300]))
    is_server = bool(failed) or is_program or bool(_DAEMONS.search(headers.get("from", "")))
    if not is_server and _is_automatic(headers, subject):
        return Report(ReportKind.AUTO_REPLY)
    if not failed and _ANSWER.search(subject):
        return Report(ReportKind.UNKNOWN)
    if not (is_server or (not sender and _BOUNCE_SUBJECT.search(subject))):
        return Report(ReportKind.UNKNOWN)
    reply = _find_reply(words)
    is_permanent = (reply is not None and _class(reply) == "5") or bool(_FINAL.search(words))
    if not is_permanent and (_DELAY.search(subject) or _DELAY.search(words)):
        return Report(ReportKind.DELAYED)
    if reply is None and not (failed or is_program or (is_server and _BOUNCE_SUBJECT.search(subject))):
        return Report(ReportKind.UNKNOWN)  # nobody's word but that of whoever has written this
    if reply is None:
        reply = Reply(0, "", _one_line(words)[:MAX_REPLY])
    named = failed or tuple(one for one in _addresses(_ORIGIN.sub(" ", words)) if not _ROLE.match(one))
    return Report(ReportKind.FAILED, tuple(Failure((one,), reply) for one in named) or (Failure((), reply),))


def _addresses(text: str) -> tuple[str, ...]:
    found = dict.fromkeys(one.rstrip(".") for one in _ADDRESS.findall(text))
    return tuple(found)[:MAX_RECIPIENTS]


def _is_automatic(headers: dict[str, str], subject: str) -> bool:
    submitted = headers.get("auto-submitted", "no").split(";")[0].split("(")[0].strip().lower()
    precedence = headers.get("precedence", "").strip().lower()
    return (
        submitted != "no"
        or precedence in ("auto_reply", "auto-reply", "bulk", "junk")
        or bool(
            headers.keys() & {"x-autoreply", "x-autorespond", "x-auto-response-suppress", "x-autoresponder"}
        )
        or bool(_AUTO_SUBJECT.search(subject))
    )


def _own_words(text: str) -> str:
    """What the server says, without the copy of our message behind it."""
    found = _COPY.search(text)
    return text if found is None else text[: found.start()]


def _find_reply(text: str) -> Reply | None:
    """The first permanent SMTP reply in a text, else the first temporary one, else the first status."""
    best: Reply | None = None
    for found in itertools.islice(_REPLY.finditer(text), MAX_REPLIES):
        start, stop = found.start(), found.start() + 4 * MAX_REPLY
        end = _REPLY_END.search(text, start, stop)
        reply = parse_reply(text[start : stop if end is None else end.start()])
        if not (reply.enhanced or reply.text):
            continue
        if _class(reply) == "5":
            return reply
        best = best or reply
    if best is None:
        status = _STATUS_ONLY.search(text)
        if status is not None and status[1][0] in "45":
            rest = _one_line(text[status.end() :].split("\n\n")[0]).strip("-:;) ")
            best = Reply(0, status[1], rest[:MAX_REPLY])
    return best


def parse_reply(text: str) -> Reply:
    """A reply as it stands in a report: `550 5.1.1 <a@b>... User unknown`, `smtp;` taken off before."""
    text = _one_line(text)
    found = _REPLY.search(text)
    if found is None:
        status = _STATUS_ONLY.search(text)
        return Reply(0, status[1] if status else "", text[:MAX_REPLY])
    rest = text[found.end() :]
    enhanced = found[2] or ""
    if not enhanced:
        status = _STATUS_ONLY.match(rest)
        if status is not None:
            enhanced, rest = status[1], rest[status.end() :]
    # the lines of a reply repeat the code, and often the status
    rest = re.sub(rf"\s{found[1]}[ -](?:#?{re.escape(enhanced)}\s)?", " ", " " + rest) if enhanced else rest
    return Reply(int(found[1]), enhanced, rest.strip(" -:;")[:MAX_REPLY])


def _class(reply: Reply) -> str:
    return reply.enhanced[:1] or str(reply.code)[:1]


def _one_line(text: str) -> str:
    return " ".join("".join([c if c.isprintable() else " " for c in text[: 4 * MAX_REPLY]]).split())


def _without_tags(text: str) -> str:
    text = re.sub(r"(?i)<(?:br|/?p|/?div|/?tr|/?li|/?h\d)\b[^<>]*>", "\n", text)
    return re.sub(r"&nbsp;|&#160;", " ", re.sub(r"<[^<>]*>", "", text))
