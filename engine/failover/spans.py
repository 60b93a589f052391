"""Sets of message ids as sorted runs `(first, count)`: a region's ids are dense, so millions are a few runs."""

from collections.abc import Iterable, Sequence

Span = tuple[int, int]
Spans = tuple[Span, ...]


def of_ids(ids: Iterable[int]) -> Spans:
    """Runs of a set of ids."""
    return of_sorted(sorted(ids))


def of_sorted(ids: Iterable[int]) -> Spans:
    """Runs of ids that come in order; one may come twice."""
    runs: list[Span] = []
    first = count = 0
    for id_ in ids:
        if count and id_ == first + count:
            count += 1
        elif not count or id_ > first + count:
            if count:
                runs.append((first, count))
            first, count = id_, 1
    if count:
        runs.append((first, count))
    return tuple(runs)


def normal(spans: Iterable[Sequence[int]]) -> Spans:
    """The same set, sorted, with runs that touch or overlap made one."""
    runs: list[Span] = []
    for first, count in sorted((s[0], s[1]) for s in spans):
        if count <= 0:
            continue
        if runs and first <= runs[-1][0] + runs[-1][1]:
            start, length = runs[-1]
            runs[-1] = (start, max(length, first + count - start))
        else:
            runs.append((first, count))
    return tuple(runs)


def intersect(left: Iterable[Sequence[int]], right: Iterable[Sequence[int]]) -> Spans:
    a, b = normal(left), normal(right)
    found: list[Span] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start = max(a[i][0], b[j][0])
        end_a, end_b = a[i][0] + a[i][1], b[j][0] + b[j][1]
        if start < min(end_a, end_b):
            found.append((start, min(end_a, end_b) - start))
        if end_a <= end_b:
            i += 1
        else:
            j += 1
    return tuple(found)


def subtract(left: Iterable[Sequence[int]], right: Iterable[Sequence[int]]) -> Spans:
    """Ids of `left` that are not in `right`."""
    rest: list[Span] = []
    cuts = normal(right)
    j = 0
    for first, count in normal(left):
        end = first + count
        while j < len(cuts) and cuts[j][0] + cuts[j][1] <= first:
            j += 1
        k = j
        while k < len(cuts) and cuts[k][0] < end:
            cut, length = cuts[k]
            if cut > first:
                rest.append((first, cut - first))
            first = max(first, cut + length)
            k += 1
        if first < end:
            rest.append((first, end - first))
    return tuple(rest)


def union(*parts: Iterable[Sequence[int]]) -> Spans:
    return normal(span for part in parts for span in part)


def size(spans: Iterable[Sequence[int]]) -> int:
    return sum(span[1] for span in spans)


def ids_of(spans: Iterable[Sequence[int]]) -> list[int]:
    return [id_ for first, count in spans for id_ in range(first, first + count)]


def pieces(spans: Iterable[Sequence[int]], length: int) -> list[Spans]:
    """The same set in parts of at most `length` ids."""
    parts: list[list[Span]] = []
    room = 0
    for first, count in spans:
        while count:
            if not room:
                parts.append([])
                room = length
            taken = min(room, count)
            parts[-1].append((first, taken))
            first, count, room = first + taken, count - taken, room - taken
    return [tuple(part) for part in parts]
