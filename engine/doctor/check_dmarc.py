"""DMARC: record, policy, reports, and whether SPF or DKIM is aligned with the From domain."""

from engine.doctor.case import Case
from engine.doctor.check_dkim import signing_domains
from engine.doctor.dmarc import (
    DmarcRecord,
    DnsFailed,
    count_at,
    find,
    is_aligned,
    organizational_domain,
    report_domains,
)
from engine.doctor.finding import Finding, txt_record
from engine.doctor.rules import failed, missed, noted, passed, unanswered, warned
from engine.doctor.tags import is_version
from engine.routing.answers import Status

RECORD = "dmarc"
ALIGNMENT = "alignment"


async def check_dmarc(case: Case) -> list[Finding]:
    try:
        record = await find(case.questions, case.domain)
        findings = await _record(case, record)
    except DnsFailed as error:
        return [unanswered(RECORD, case.domain, str(error))]
    try:
        return findings + await _alignment(case, record)
    except DnsFailed as error:
        return [*findings, unanswered(ALIGNMENT, f"From {case.domain}", str(error))]


async def _record(case: Case, record: DmarcRecord | None) -> list[Finding]:
    domain = case.domain
    count = await count_at(case.questions, domain)
    if count > 1 or record is None:
        # several: receivers of RFC 7489 stop here, even where a record stands above the domain
        example = txt_record(f"_dmarc.{domain}", f"v=DMARC1; p=none; rua=mailto:dmarc@{domain}")
        why = f"{count} DMARC records: none of them counts" if count > 1 else "no DMARC record"
        return [missed(RECORD, domain, why, example, requirement="dmarc")]
    findings = [failed(RECORD, f"_dmarc.{record.domain}", defect) for defect in record.defects]
    policy = record.policy_for(domain)
    where = "" if record.domain == domain else f", from _dmarc.{record.domain}"
    if policy == "none":
        why = f"p=none{where}: meets the rules of today; forged mail is still delivered. Aim at p=reject"
        findings.append(passed(RECORD, domain, why))
    elif not record.defects:
        findings.append(passed(RECORD, domain, f"p={policy}{where}"))
    if "rua" not in record.tags:
        text = "; ".join(f"{name}={value}" for name, value in record.tags.items())
        publish = txt_record(f"_dmarc.{record.domain}", f"{text}; rua=mailto:dmarc@{record.domain}")
        findings.append(warned(RECORD, domain, "no rua=: nobody sees who fails, and why", publish))
    findings += await _reports(case, record)
    return findings


async def _reports(case: Case, record: DmarcRecord) -> list[Finding]:
    findings = []
    for target in report_domains(record):
        try:
            home = await organizational_domain(case.questions, record.domain)
            if home == await organizational_domain(case.questions, target) or target.endswith(f".{home}"):
                continue
        except DnsFailed as error:  # theirs: it costs reports, and no mail
            findings.append(unanswered(RECORD, target, str(error)))
            continue
        name = f"{record.domain}._report._dmarc.{target}"
        answer = await case.questions.text(name)
        if answer.status is Status.FAILED:
            findings.append(unanswered(RECORD, name, answer.reason))
        elif not any(is_version(text, "DMARC1") for text in answer.texts):
            why = f"{target} does not say that it takes reports about {record.domain}: they are not sent"
            findings.append(warned(RECORD, name, why, txt_record(name, "v=DMARC1")))
    return findings


async def _alignment(case: Case, record: DmarcRecord | None) -> list[Finding]:
    spf_strict = record is not None and record.is_strict("aspf")
    dkim_strict = record is not None and record.is_strict("adkim")
    by_spf = await is_aligned(case.questions, case.domain, case.return_path, strict=spf_strict)
    signers = [domain.domain for domain in signing_domains(case)]
    signers += [case.domain] if case.selectors else []
    aligned = [
        signer
        for signer in dict.fromkeys(signers)
        if await is_aligned(case.questions, case.domain, signer, strict=dkim_strict)
    ]
    ways = [f"SPF by the return path {case.return_path}"] if by_spf else []
    ways += [f"DKIM by d={signer}" for signer in aligned]
    subject = f"From {case.domain}"
    if not ways:
        why = (
            f"neither the return path {case.return_path} ({_mode(spf_strict)}) nor any of d= "
            f"({', '.join(signers) or 'unsigned'}, {_mode(dkim_strict)}) belongs to it: DMARC fails"
        )
        return [missed(ALIGNMENT, subject, why, requirement="alignment")]
    if not aligned:
        why = f"only {ways[0]}: forwarded mail fails DMARC; sign with a d= of the domain"
        return [warned(ALIGNMENT, subject, why)]
    if not by_spf:
        return [noted(ALIGNMENT, subject, f"{', '.join(ways)}; not by the return path {case.return_path}")]
    return [passed(ALIGNMENT, subject, "; ".join(ways))]


def _mode(strict: bool) -> str:
    return "strict" if strict else "relaxed"
