"""SPF of the return path's domain, for each source."""

from engine.doctor.case import Case
from engine.doctor.finding import Finding, txt_record
from engine.doctor.rules import missed, passed, unanswered, warned
from engine.doctor.spf import MAX_LOOKUPS, SpfResult, SpfVerdict, check_host, spf_records
from engine.doctor.spf_record import SpfSyntaxError, parse_record
from engine.routing.answers import Status

CHECK = "spf"
# An address of a network that is in no use (RFC 5737): it matches no honest term, so every term is walked.
_NOWHERE = "192.0.2.255"


async def check_spf(case: Case) -> list[Finding]:
    domain = case.return_path
    answer = await case.questions.text(domain)
    if answer.status is Status.FAILED:
        return [unanswered(CHECK, domain, answer.reason)]
    records = spf_records(answer.texts)
    if len(records) > 1:
        why = f"{len(records)} SPF records: permerror everywhere; merge them into one"
        return [missed(CHECK, domain, why, requirement="spf")]
    if not records:
        publish = txt_record(domain, merged("v=spf1 -all", [sender.ip for sender in case.senders]))
        return [missed(CHECK, domain, "no SPF record", publish, requirement="spf")]
    try:
        record = parse_record(records[0])
    except SpfSyntaxError as error:
        return [missed(CHECK, domain, f"{error}: permerror everywhere", requirement="spf")]
    findings = []
    denied = []
    for sender in case.senders:
        verdict = await check_host(
            case.questions, sender.ip, domain, sender=f"postmaster@{domain}", helo=sender.ehlo
        )
        subject = str(sender)
        cost = f"{verdict.lookups} of {MAX_LOOKUPS} look-ups, {verdict.voids} of 2 void"
        if verdict.result is SpfResult.PASS:
            findings.append(passed(CHECK, subject, f"pass by {verdict.reason} ({cost})"))
        elif verdict.result is SpfResult.TEMPERROR:
            findings.append(unanswered(CHECK, subject, verdict.reason))
        else:
            denied.append((sender.ip, subject, verdict))
    publish = txt_record(domain, merged(records[0], [ip for ip, _, _ in denied]))
    for _, subject, verdict in denied:
        text = f"{verdict.result.value}: {verdict.reason}"
        if verdict.result is SpfResult.PERMERROR:
            findings.append(missed(CHECK, subject, text, requirement="spf"))
        else:
            findings.append(missed(CHECK, subject, text, publish, requirement="spf"))
    findings += await _costs(case, domain)
    last = record.mechanisms[-1] if record.mechanisms else None
    every = next((m for m in record.mechanisms if m.name == "all"), None)
    if every is None and record.redirect is None:
        findings.append(
            warned(CHECK, domain, "neither `all` nor `redirect=` at the end: others get `neutral`")
        )
    elif every is not None and every.qualifier in "+?":
        findings.append(
            warned(CHECK, domain, f"`{every.text}` says nothing against forgers: end with -all or ~all")
        )
    elif every is not None and every is not last:
        findings.append(warned(CHECK, domain, f"what stands behind `{every.text}` is never read"))
    if any(mechanism.name == "ptr" for mechanism in record.mechanisms):
        findings.append(
            warned(CHECK, domain, "`ptr` is slow and many receivers ignore it (RFC 7208 section 5.5)")
        )
    return findings


async def _costs(case: Case, domain: str) -> list[Finding]:
    """Whether the record as a whole stays within the limits, also where no source needs its last term."""
    verdict: SpfVerdict = await check_host(
        case.questions, _NOWHERE, domain, sender=f"postmaster@{domain}", helo=domain
    )
    if verdict.result is SpfResult.PERMERROR:
        return [warned(CHECK, domain, f"permerror for addresses that no early term names: {verdict.reason}")]
    return []


def merged(record: str, addresses: list[str]) -> str:
    """The record with terms for the addresses, before the first term that would deny them."""
    terms = [f"ip{6 if ':' in address else 4}:{address}" for address in dict.fromkeys(addresses)]
    head, *rest = record.split(" ")
    return " ".join([head, *terms, *(term for term in rest if term)])
