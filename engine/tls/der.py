"""The one part of a certificate that is needed byte for byte: SubjectPublicKeyInfo (RFC 5280 section 4.1)."""


def subject_public_key_info(certificate: bytes) -> bytes:
    """SubjectPublicKeyInfo of a DER certificate, as it stands there; raises ValueError if it is not one."""
    body, _ = _enter(certificate, 0, 0x30)
    position, _ = _enter(certificate, body, 0x30)
    if certificate[position : position + 1] == b"\xa0":  # version
        position = _end(certificate, position)
    for _ in range(5):  # serial number, signature algorithm, issuer, validity, subject
        position = _end(certificate, position)
    if certificate[position : position + 1] != b"\x30":
        raise ValueError("not a certificate")
    return certificate[position : _end(certificate, position)]


def _enter(data: bytes, position: int, tag: int) -> tuple[int, int]:
    """(start, end) of the content of the element at `position`."""
    if data[position : position + 1] != bytes((tag,)):
        raise ValueError("not a certificate")
    return _content(data, position)


def _end(data: bytes, position: int) -> int:
    return _content(data, position)[1]


def _content(data: bytes, position: int) -> tuple[int, int]:
    if position + 2 > len(data):
        raise ValueError("not a certificate")
    size = data[position + 1]
    start = position + 2
    if size >= 0x80:
        count = size & 0x7F
        if not 1 <= count <= 3:
            raise ValueError("not a certificate")
        size = int.from_bytes(data[start : start + count], "big")
        start += count
    if start + size > len(data):
        raise ValueError("not a certificate")
    return start, start + size
