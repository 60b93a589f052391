"""A campaign's recipients as numbered chunks: the unit that is submitted, repeated and counted.

The same recipients give the same chunks, whatever process cuts them: number, content and digest. All recipients of a
chunk are of one class of engagement. A region
keeps the numbers it has accepted and refuses a number that comes again with another digest, so the size is
part of the format: with another size a campaign that was begun could not be continued.

Each chunk has one region, chosen by rendezvous hashing: of all regions the one with the highest hash of
region, campaign and number. It never goes to another one while its outcome there is unknown.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import msgpack

from engine.campaign.recipients import BadRow, Recipient
from engine.values.message import CampaignChunk

CHUNK_SIZE = 500
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class CutChunk:
    """A chunk, and the line in the file of each of its recipients."""

    chunk: CampaignChunk
    lines: tuple[int, ...]


def cut_chunks(
    rows: Iterable[Recipient | BadRow],
    *,
    tenant: str,
    campaign: str,
    field_names: Sequence[str],
    refuse: Callable[[BadRow], None],
    size: int = CHUNK_SIZE,
) -> Iterator[CutChunk]:
    """Cut the good rows into chunks numbered from 0; every bad row goes to `refuse`."""

    def good() -> Iterator[Recipient]:
        for row in rows:
            if isinstance(row, BadRow):
                refuse(row)
            else:
                yield row

    names = tuple(field_names)
    for number, part in enumerate(_parts(good(), size)):
        addresses = tuple([recipient.address for recipient in part])
        fields = tuple([recipient.values for recipient in part])
        chunk = CampaignChunk(
            campaign=campaign,
            tenant=tenant,
            number=number,
            digest=digest_of(names, addresses, fields),
            field_names=names,
            recipients=addresses,
            fields=fields,
            engagement=part[0].engagement,
        )
        yield CutChunk(chunk, tuple([recipient.line for recipient in part]))


def _parts(recipients: Iterable[Recipient], size: int) -> Iterator[list[Recipient]]:
    for _, alike in groupby(recipients, key=lambda recipient: recipient.engagement):
        while part := list(islice(alike, size)):
            yield part


def digest_of(
    field_names: tuple[str, ...], recipients: tuple[str, ...], fields: tuple[tuple[str, ...], ...]
) -> bytes:
    """The first 16 bytes of the SHA-256 of the content."""
    content: bytes = msgpack.packb((field_names, recipients, fields), unicode_errors="surrogatepass")
    return hashlib.sha256(content).digest()[:DIGEST_BYTES]


def rank_regions(tenant: str, campaign: str, number: int, regions: Sequence[str]) -> list[str]:
    """The region of a chunk, and behind it those that stand in for it, in their order. A region that joins or leaves
    moves only the chunks that are its own."""
    chunk = msgpack.packb((tenant, campaign, number))
    return sorted(regions, key=lambda region: hashlib.sha256(chunk + region.encode()).digest(), reverse=True)
