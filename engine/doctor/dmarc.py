"""DMARC: the record of a domain, found by the DNS tree walk, and alignment (RFC 7489 as revised by DMARCbis).

The organizational domain is found as the revision says, from the DMARC records above a name, without a list of
public suffixes. Receivers that still use such a list agree wherever the organization publishes its own record, which
is what every provider demands anyway.
"""

from dataclasses import dataclass
from typing import Protocol

from engine.config.types import is_host_name
from engine.doctor.tags import TagError, is_version, parse_tags
from engine.routing.answers import Status, TextAnswer

POLICIES = ("none", "quarantine", "reject")
_WALK_LABELS = 7  # a longer name is cut to so many labels after the first question


class TextQuestions(Protocol):
    """What is asked."""

    async def text(self, name: str) -> TextAnswer: ...


class DnsFailed(Exception):
    """A question that the result hangs on has no answer."""


@dataclass(frozen=True, slots=True)
class DmarcRecord:
    """The record at `_dmarc.DOMAIN`. `defects` are what a receiver would take amiss; the rest has its defaults."""

    domain: str
    tags: dict[str, str]
    defects: tuple[str, ...]

    @property
    def policy(self) -> str:
        return self.tags.get("p", "none").lower()

    def policy_for(self, domain: str) -> str:
        """The policy for the domain itself, or for one below it."""
        below = self.tags.get("sp", self.policy).lower()
        return self.policy if domain == self.domain else below

    def is_strict(self, tag: str) -> bool:
        """`aspf` or `adkim`."""
        return self.tags.get(tag, "r").lower() == "s"


async def record_at(questions: TextQuestions, domain: str) -> DmarcRecord | None:
    """The record of exactly this name; several are none (RFC 7489 section 6.6.3). Raises DnsFailed."""
    answer = await questions.text(f"_dmarc.{domain}")
    if answer.status is Status.FAILED:
        raise DnsFailed(answer.reason)
    found = [text for text in answer.texts if is_version(text, "DMARC1")]
    return _parse(domain, found[0]) if len(found) == 1 else None


async def count_at(questions: TextQuestions, domain: str) -> int:
    """How many DMARC records stand at exactly this name."""
    answer = await questions.text(f"_dmarc.{domain}")
    return sum(is_version(text, "DMARC1") for text in answer.texts)


async def find(questions: TextQuestions, domain: str) -> DmarcRecord | None:
    """The record that holds for a domain: its own, or that of its organizational domain."""
    own = await record_at(questions, domain)
    if own is not None:
        return own
    above = await organizational_domain(questions, domain)
    return await record_at(questions, above) if above != domain else None


async def organizational_domain(questions: TextQuestions, domain: str) -> str:
    """By the tree walk: the highest name with a record; below a `psd=y` one, one label lower. Without any, itself."""
    found = domain
    for name in _walk(domain):
        record = await record_at(questions, name)
        if record is None:
            continue
        psd = record.tags.get("psd", "u").lower()
        if psd == "n":
            return name
        if psd == "y" and name != domain:
            labels = domain.split(".")
            return ".".join(labels[-(name.count(".") + 2) :])
        found = name
    return found


async def is_aligned(questions: TextQuestions, domain: str, other: str, *, strict: bool) -> bool:
    """Whether `other` (of SPF or DKIM) speaks for a From header in `domain`."""
    if domain == other:
        return True
    if strict:
        return False
    mine = await organizational_domain(questions, domain)
    return mine == await organizational_domain(questions, other) or (
        # nothing published anywhere: a name and one below it have the same owner
        domain.endswith(f".{other}") or other.endswith(f".{domain}")
    )


def _walk(domain: str) -> list[str]:
    labels = domain.split(".")
    names = [domain]
    start = 1 if len(labels) <= _WALK_LABELS else len(labels) - _WALK_LABELS
    names += [".".join(labels[index:]) for index in range(start, len(labels))]
    return names


def _parse(domain: str, text: str) -> DmarcRecord:
    try:
        tags = parse_tags(text)
    except TagError as error:
        return DmarcRecord(domain, _tolerant(text), (str(error),))
    tags = {name.lower(): value for name, value in tags.items()}
    defects = []
    if "p" not in tags:
        defects.append("p= is missing: it counts as none")
    for name in ("p", "sp", "np"):
        if name in tags and tags[name].lower() not in POLICIES:
            defects.append(f"{name}={tags[name]}: allowed are {', '.join(POLICIES)}")
    for name in ("aspf", "adkim"):
        if name in tags and tags[name].lower() not in ("r", "s"):
            defects.append(f"{name}={tags[name]}: allowed are r and s")
    if "pct" in tags and not (tags["pct"].isascii() and tags["pct"].isdigit() and int(tags["pct"]) <= 100):
        defects.append(f"pct={tags['pct'][:20]}: allowed is 0 to 100")
    for name in ("rua", "ruf"):
        for uri in tags.get(name, "").split(","):
            if name in tags and not (uri.strip().lower().startswith("mailto:") and _domain_of(uri)):
                defects.append(f"{name}={uri.strip()[:60]}: allowed are mailto: addresses")
    return DmarcRecord(domain, tags, tuple(defects))


def _tolerant(text: str) -> dict[str, str]:
    """What can be read of a list with an error in it."""
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def report_domains(record: DmarcRecord) -> list[str]:
    """Domains that `rua` and `ruf` send reports to; one outside must say that it takes them (RFC 7489 section 7.1)."""
    uris = ",".join(record.tags.get(name, "") for name in ("rua", "ruf")).split(",")
    return sorted({domain for uri in uris if (domain := _domain_of(uri))})


def _domain_of(uri: str) -> str:
    """The domain of a `mailto:` address, without the size limit that may follow; "" if it is none."""
    domain = uri.strip().partition("!")[0].rpartition("@")[2].lower().rstrip(".")
    return domain if "@" in uri and is_host_name(domain) else ""
