"""When the head's process is started again, and that its death never ends its node. No Ray."""

from typing import Any

import pytest

from actors.head_keeper import GCS, LONGEST_PAUSE_S, STABLE_S, HeadKeeper


class Node:
    """Of Ray's Node what the keeper uses; `dead` are the kinds of its processes that have ended."""

    def __init__(self) -> None:
        self.all_processes: dict[str, Any] = {GCS: ["first"], "raylet": ["raylet"]}
        self._gcs_address: str | None = "127.0.0.1:1"
        self._gcs_client: object | None = object()
        self.dead = {GCS}
        self.starts: list[float] = []
        self.now_s = 1000.0
        self.is_disk_full = False

    def dead_processes(self) -> list[tuple[str, Any]]:
        return [(kind, found[0]) for kind, found in self.all_processes.items() if kind in self.dead]

    def start_gcs_server(self) -> None:
        assert self._gcs_address is None
        assert self._gcs_client is None
        assert GCS not in self.all_processes
        self.starts.append(self.now_s)
        if self.is_disk_full:
            raise OSError("no space for its log")
        self.all_processes[GCS] = [f"start {len(self.starts)}"]
        self._gcs_address = "127.0.0.1:1"


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def keeper(node: Node) -> HeadKeeper:
    return HeadKeeper(Node.dead_processes, now_s=lambda: node.now_s)


def test_the_head_alone_is_started_again(node: Node, keeper: HeadKeeper) -> None:
    assert keeper.look(node) == []
    assert node.all_processes[GCS] == ["start 1"]
    node.dead = {"raylet"}
    assert keeper.look(node) == [("raylet", "raylet")]
    node.dead = {GCS, "raylet"}
    node.now_s += STABLE_S
    assert keeper.look(node) == [("raylet", "raylet")]
    assert node.starts == [1000.0, 1000.0 + STABLE_S]


@pytest.mark.parametrize("is_disk_full", [False, True])
def test_one_that_does_not_stay_up_is_tried_with_pauses_that_grow(
    node: Node, keeper: HeadKeeper, is_disk_full: bool
) -> None:
    node.is_disk_full = is_disk_full
    while node.now_s < 1200.0:
        assert keeper.look(node) == []
        node.now_s += 1.0
    pauses = [later - earlier for earlier, later in zip(node.starts, node.starts[1:], strict=False)]
    assert pauses[:5] == sorted(pauses[:5])
    assert max(pauses) <= LONGEST_PAUSE_S + 1.0  # a look may come a second late
    assert 8 <= len(node.starts) <= 14
    node.is_disk_full = False
    node.dead = set()
    node.now_s += LONGEST_PAUSE_S
    assert keeper.look(node) == []
    assert GCS in node.all_processes
    count = len(node.starts)
    node.now_s += STABLE_S
    node.dead = {GCS}
    keeper.look(node)
    assert len(node.starts) == count + 1, "at once, after a long life"
