"""A process is killed (SIGKILL)."""

from actors.drill.fault import RETURN_S, Fault
from engine.drill.load import until
from engine.drill.scenarios import DrillRefused


class PoolKill(Fault):
    """Noticed when another pool process of that name answers."""

    has_share = True

    async def find(self) -> None:
        pools = await self.running.pools(self.region)
        if not pools:
            raise DrillRefused(f"pool-kill: region {self.region} has no pool: it sends nothing")
        self._name = min(pools)
        self._pid = await self._aim_at(f"pool {self._name} of region {self.region}", pools[self._name])

    async def make(self) -> None:
        await self.kill(self._pid)

    async def is_detected(self) -> bool:
        pid = (await self.running.pools(self.region)).get(self._name)
        return pid is not None and pid != self._pid


class RegionKill(Fault):
    """Noticed when Fleet calls the region dead; without copies when the watch calls it down, or a new process
    answers."""

    has_share = True
    _seen_s: float | None = None

    async def find(self) -> None:
        self._pid = await self.region_pid()

    async def make(self) -> None:
        await self.until_covered()
        await self.kill(self._pid)

    async def is_detected(self) -> bool:
        if self.has_copies():
            self._seen_s = await self._dead_s()
            return self._seen_s is not None
        if (await self.running.health()).get(self.region) == "down":
            return True
        return int((await self.running.region(self.region))["pid"]) != self._pid

    def noticed_s(self, seen_s: float) -> float:
        return seen_s if self._seen_s is None else self._seen_s

    async def heal(self) -> None:
        await self.find_whether_it_goes_on()


class HeadKill(Fault):
    """Noticed when the head, as another process, answers."""

    async def find(self) -> None:
        head = await self.fleet.machines.head()
        if head is None:
            raise DrillRefused("head-kill: the process of Ray's head is not on this machine")
        self._head = head
        self.target = f"the head of Ray, process {head}"

    async def make(self) -> None:
        self._before = await self._pids()
        with self.making():
            self.made_s = await self.fleet.machines.kill_head(self._head)

    async def _pids(self) -> dict[str, object]:
        snapshot = await self.running.snapshot()
        return {"": snapshot["pid"], **{name: r.get("pid") for name, r in snapshot["regions"].items()}}

    def affected(self) -> list[str]:
        return []

    async def is_detected(self) -> bool:
        head = await self.fleet.machines.head()
        return head not in (None, self._head) and await self.running.head_answers()

    async def heal(self) -> None:
        async def are_the_same() -> bool:
            try:
                return await self._pids() == self._before
            except (ConnectionError, TimeoutError):
                return False

        same_s = await until(are_the_same, deadline_s=RETURN_S)
        self.extra["Fleet and the regions are the processes of before"] = same_s is not None
