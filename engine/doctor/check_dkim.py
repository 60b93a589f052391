"""DKIM: each selector's record is there, holds the key that the fleet signs with, and is long enough."""

from engine.config.signing import DkimDomain, DkimKey
from engine.dkim.keys import KeyFileError, SigningKey, read_key
from engine.doctor.case import Case
from engine.doctor.finding import Finding, txt_record
from engine.doctor.keys import KeyRecordError, PublicKey, parse_key
from engine.doctor.rules import failed, missed, passed, unanswered, warned
from engine.routing.answers import Status

CHECK = "dkim"
_REFUSED_BITS = 1024  # RFC 8301 section 3.2: shorter keys are not accepted
_ADVISED_BITS = 2048


def signing_domains(case: Case) -> list[DkimDomain]:
    """Those whose signatures mail from the domain gets: the most specific pattern's, and those that sign all mail."""
    if case.dkim is None:
        return []
    chosen = [domain for domain in case.dkim.domains if domain.sign_all]
    names = [case.domain, *(f"*.{parent}" for parent in _parents(case.domain)), "*"]
    own = next(
        (d for name in names for d in case.dkim.domains if name in d.patterns()),
        None,
    )
    return [own, *(d for d in chosen if d is not own)] if own is not None else chosen


async def check_dkim(case: Case) -> list[Finding]:
    findings = []
    for domain in signing_domains(case):
        for key in domain.keys:
            findings.append(await _configured(case, domain.domain, key))
        if _is_ed25519_only(domain):
            why = "signed with Ed25519 only: receivers that cannot verify it yet take the mail for unsigned; add RSA"
            findings.append(warned(CHECK, domain.domain, why))
    for selector in case.selectors:
        name = f"{selector}._domainkey.{case.domain}"
        found = await _record(case, name)
        findings.append(
            found if isinstance(found, Finding) else _measured(name, found, "no private key to compare")
        )
    if not findings:
        why = "this fleet signs nothing for the domain: no entry of dkim.domains in fleet.yaml covers it"
        findings.append(missed(CHECK, case.domain, why, requirement="dkim"))
    return findings


def _is_ed25519_only(domain: DkimDomain) -> bool:
    """Whether no signature is one that everybody can verify (RFC 8463 section 5 wants both)."""
    try:
        keys = [read_key(domain.domain, key.selector, key.file) for key in domain.keys]
    except KeyFileError:
        return False  # told with the key itself
    return all(key.algorithm == "ed25519-sha256" for key in keys)


async def _configured(case: Case, domain: str, key: DkimKey) -> Finding:
    name = f"{key.selector}._domainkey.{domain}"
    try:
        private: SigningKey = read_key(domain, key.selector, key.file)
    except KeyFileError as error:
        return failed(CHECK, name, f"mail cannot be signed: {error}")
    publish = txt_record(name, private.record())
    found = await _record(case, name, publish)
    if isinstance(found, Finding):
        return found
    if found.data != private.public:
        why = f"the published {found.kind} key is not that of {key.file}: signatures fail"
        return missed(CHECK, name, why, publish, requirement="dkim")
    return _measured(name, found, f"the key of {key.file}")


async def _record(case: Case, name: str, *publish: str) -> PublicKey | Finding:
    answer = await case.questions.text(name)
    if answer.status is Status.FAILED:
        return unanswered(CHECK, name, answer.reason)
    if not answer.texts:
        return missed(CHECK, name, "no key record", *publish, requirement="dkim")
    if len(answer.texts) > 1:
        why = f"{len(answer.texts)} TXT records: which one counts is undefined (RFC 6376 section 3.6.2.2)"
        return missed(CHECK, name, why, *publish, requirement="dkim")
    try:
        return parse_key(answer.texts[0])
    except KeyRecordError as error:
        return missed(CHECK, name, str(error), *publish, requirement="dkim")


def _measured(name: str, key: PublicKey, what: str) -> Finding:
    if key.kind == "rsa" and key.bits < _REFUSED_BITS:
        return missed(CHECK, name, f"RSA of {key.bits} bits is refused everywhere", requirement="dkim-1024")
    if key.kind == "rsa" and key.bits < _ADVISED_BITS:
        return missed(CHECK, name, f"RSA of {key.bits} bits: use {_ADVISED_BITS}", requirement="dkim-2048")
    if key.is_testing:
        return warned(CHECK, name, "t=y: receivers treat the mail as if it were not signed")
    bits = f"RSA of {key.bits} bits" if key.kind == "rsa" else "Ed25519"
    return passed(CHECK, name, f"{bits}, {what}")


def _parents(domain: str) -> list[str]:
    labels = domain.split(".")
    return [".".join(labels[index:]) for index in range(1, len(labels))]
