"""When the head's process is started again, and when its node ends as Ray would end it. No Ray."""

from typing import Any

from actors.head_keeper import GCS, MOST_STARTS, WITHIN_S, HeadKeeper


class Node:
    """Of Ray's Node what the keeper uses."""

    def __init__(self) -> None:
        self.all_processes: dict[str, Any] = {GCS: ["first"], "raylet": ["raylet"]}
        self._gcs_address: str | None = "127.0.0.1:1"
        self._gcs_client: object | None = object()
        self.dead = [GCS]
        self.started = 0

    def dead_processes(self) -> list[tuple[str, Any]]:
        return [(kind, self.all_processes[kind][0]) for kind in self.dead]

    def start_gcs_server(self) -> None:
        assert self._gcs_address is None
        assert self._gcs_client is None
        assert GCS not in self.all_processes
        self.started += 1
        self.all_processes[GCS] = [f"start {self.started}"]
        self._gcs_address = "127.0.0.1:1"


def test_the_head_alone_is_started_again() -> None:
    node = Node()
    keeper = HeadKeeper(Node.dead_processes, now_s=lambda: 0.0)
    assert keeper.look(node) == []
    assert node.all_processes[GCS] == ["start 1"]
    node.dead = [GCS, "raylet"]
    assert keeper.look(node) == [("raylet", "raylet")]
    node.dead = ["raylet"]
    assert keeper.look(node) == [("raylet", "raylet")]
    assert node.started == 2


def test_one_that_does_not_stay_up_ends_the_node() -> None:
    node = Node()
    times = iter([float(n) for n in range(MOST_STARTS + 1)] + [WITHIN_S + 1.0])
    keeper = HeadKeeper(Node.dead_processes, now_s=lambda: next(times))
    for _ in range(MOST_STARTS):
        assert keeper.look(node) == []
    assert keeper.look(node) == [(GCS, f"start {MOST_STARTS}")]
    assert keeper.look(node) == []  # the first start was long ago by then
    assert node.started == MOST_STARTS + 1
