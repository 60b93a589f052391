"""One-click unsubscribe (RFC 8058) on marketing mail: by the fleet's links, or by a campaign's own headers."""

import re

from engine.campaign.spec import Campaign
from engine.doctor.case import Case
from engine.doctor.finding import Finding
from engine.doctor.rules import missed, noted, passed, warned
from engine.values.stream import Stream

CHECK = "one-click"
_HTTPS = re.compile(r"<\s*https://[^>]+>", re.IGNORECASE)
_POST = "List-Unsubscribe=One-Click"


def check_unsubscribe(case: Case) -> list[Finding]:
    marketing = str(Stream.MARKETING)
    if not any(marketing in source.streams for source in case.config.sources):
        return [noted(CHECK, case.domain, "no source carries marketing mail")]
    if case.campaigns:
        return [_campaign(case, name, campaign) for name, campaign in case.campaigns.items()]
    links = [link for link in case.config.unsubscribe.links if marketing in link.streams]
    if not links:
        why = (
            "no unsubscribe.links for marketing mail in fleet.yaml: every campaign needs headers of its own; "
            "give --campaign campaign.yaml to have them looked at"
        )
        return [warned(CHECK, case.domain, why)]
    return [_link(case.domain, link.url, ", ".join(link.tenants)) for link in links]


def _link(subject: str, url: str, tenants: str) -> Finding:
    whose = f" of {tenants}" if tenants else ""
    if not url.lower().startswith("https://"):
        why = f"{url}: the link has to be https: (RFC 8058 section 3.1)"
        return missed(CHECK, subject, why, requirement="one-click")
    return passed(CHECK, subject, f"marketing mail{whose} gets links below {url}")


def _campaign(case: Case, name: str, campaign: Campaign) -> Finding:
    template = campaign.template
    if template.stream is not Stream.MARKETING:
        return noted(CHECK, name, f"its stream is {template.stream}: only marketing mail needs it")
    headers = {key.lower(): value for key, value in template.headers.items()}
    own = headers.get("list-unsubscribe")
    if own is None:
        link = case.config.unsubscribe.link(template.tenant, str(template.stream))
        if link is not None:
            return _link(name, link.url, template.tenant)
        why = "no header List-Unsubscribe, and no unsubscribe.links in fleet.yaml for its tenant and stream"
        return missed(CHECK, name, why, requirement="one-click")
    if not _HTTPS.search(own):
        why = "no https: address in < > in its List-Unsubscribe header"
        return missed(CHECK, name, why, requirement="one-click")
    if headers.get("list-unsubscribe-post", "").strip() != _POST:
        why = f"no header List-Unsubscribe-Post: {_POST}"
        return missed(CHECK, name, why, requirement="one-click")
    return passed(CHECK, name, "List-Unsubscribe and List-Unsubscribe-Post are there")
