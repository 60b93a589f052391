"""Chunks: the same recipients give the same chunks; a region that joins or leaves moves only its own."""

from collections import Counter

from engine.campaign.chunks import cut_chunks, digest_of, rank_regions
from engine.campaign.recipients import BadRow, Recipient


def rows(count: int) -> list[Recipient | BadRow]:
    return [
        BadRow(n, "bad", "") if n % 10 == 7 else Recipient(n, f"u{n}@example.com", (f"name {n}",))
        for n in range(count)
    ]


def test_every_good_row_stands_in_one_chunk_in_order() -> None:
    refused: list[BadRow] = []
    chunks = list(
        cut_chunks(rows(95), tenant="t", campaign="c", field_names=["name"], refuse=refused.append, size=20)
    )
    assert [cut.chunk.number for cut in chunks] == [0, 1, 2, 3, 4]
    assert [len(cut.chunk.recipients) for cut in chunks] == [20, 20, 20, 20, 6]
    assert [line for cut in chunks for line in cut.lines] == [n for n in range(95) if n % 10 != 7]
    assert [row.line for row in refused] == [n for n in range(95) if n % 10 == 7]
    first = chunks[0].chunk
    assert (first.recipients[1], first.fields[1], first.field_names) == (
        "u1@example.com",
        ("name 1",),
        ("name",),
    )
    again = list(
        cut_chunks(rows(95), tenant="t", campaign="c", field_names=["name"], refuse=refused.append, size=20)
    )
    assert again == chunks


def test_no_rows_no_chunks() -> None:
    assert not list(cut_chunks([], tenant="t", campaign="c", field_names=[], refuse=lambda row: None))


def test_the_digest_is_that_of_the_content() -> None:
    base = (("n",), ("a@b.example",), (("x",),))
    others = [(("m",), *base[1:]), (base[0], ("b@b.example",), base[2]), (*base[:2], (("y",),))]
    assert len(digest_of(*base)) == 16
    assert len({digest_of(*content) for content in [base, *others]}) == 4
    # the format is part of the contract between releases: a campaign begun with one goes on with the next
    assert digest_of(*base).hex() == "6f6a4ae6ca07123b55153384d98e3466"


def test_regions_share_the_chunks_and_keep_them() -> None:
    before = {n: rank_regions("t", "c", n, ["eu", "us", "ap"])[0] for n in range(3000)}
    assert all(800 < count < 1200 for count in Counter(before.values()).values())
    after = {n: rank_regions("t", "c", n, ["us", "eu"])[0] for n in range(3000)}
    assert all(after[n] == region for n, region in before.items() if region != "ap")
    assert {n: rank_regions("t", "d", n, ["eu", "us", "ap"])[0] for n in range(3000)} != before
