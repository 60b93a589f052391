"""A port that stays free until it is used."""

import socket
from pathlib import Path

import pytest

from engine.ops import free_port as module
from engine.ops.free_port import free_port


def test_it_is_free_and_not_one_that_the_kernel_gives_away() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    port = free_port()
    assert not low <= port <= high
    with socket.create_server(("127.0.0.1", port)), socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", port))


def test_a_taken_one_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "FIRST", port)
        monkeypatch.setattr(module, "LAST", port)
        assert free_port() != port
