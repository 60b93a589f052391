"""One-click unsubscribe (RFC 8058) on marketing mail."""

import re

from engine.campaign.spec import Campaign
from engine.doctor.case import Case
from engine.doctor.finding import Finding
from engine.doctor.rules import missed, noted, passed
from engine.values.stream import Stream

CHECK = "one-click"
_HTTPS = re.compile(r"<\s*https://[^>]+>", re.IGNORECASE)
_POST = "List-Unsubscribe=One-Click"


def check_unsubscribe(case: Case) -> list[Finding]:
    if not any(str(Stream.MARKETING) in source.streams for source in case.config.sources):
        return [noted(CHECK, case.domain, "no source carries marketing mail")]
    if not case.campaigns:
        why = "the headers stand in each campaign: give --campaign campaign.yaml to have them looked at"
        return [noted(CHECK, case.domain, why)]
    return [_campaign(name, campaign) for name, campaign in case.campaigns.items()]


def _campaign(name: str, campaign: Campaign) -> Finding:
    template = campaign.template
    if template.stream is not Stream.MARKETING:
        return noted(CHECK, name, f"its stream is {template.stream}: only marketing mail needs it")
    headers = {key.lower(): value for key, value in template.headers.items()}
    if not _HTTPS.search(headers.get("list-unsubscribe", "")):
        why = "no List-Unsubscribe header with an https: address in < >"
        return missed(CHECK, name, why, requirement="one-click")
    if headers.get("list-unsubscribe-post", "").strip() != _POST:
        why = f"no header List-Unsubscribe-Post: {_POST}"
        return missed(CHECK, name, why, requirement="one-click")
    return passed(CHECK, name, "List-Unsubscribe and List-Unsubscribe-Post are there")
