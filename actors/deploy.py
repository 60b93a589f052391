"""Starts a fleet's actors and ends them, and gives them what they need of Ray (actors/ports.py).

The nodes are there already: actors/local_cluster.py has started them on this machine, or Ray's cluster launcher
(cluster.yaml) on real ones.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util import list_named_actors

from actors.egress_ip import EgressIpActor
from actors.environment import ONLY_LOOPBACK
from actors.fleet import FleetActor
from actors.gateway import GatewayActor
from actors.isp_pool import IspPoolActor
from actors.names import (
    FLEET,
    NAMESPACE,
    gateway_actor,
    parse_pool,
    pool_actor,
    region_actor,
    source_actor,
)
from actors.peer_messages import packed
from actors.placing import describe, find_faults, placement, without_node
from actors.pool_processes import PoolProcesses
from actors.ports import ActorDied, RunningPool
from actors.ray_calls import CALL_DEADLINE_S, NamedActor, ask_head, call
from actors.region import RegionActor
from actors.witness import Witness
from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.failover.handover import Reply, Request
from engine.failover.messages import Message
from engine.ingress.gateway import has_gateway
from engine.region.ports import PoolName, PoolPort

log = logging.getLogger(__name__)

RESOURCE_SHARE = 0.001
HEAD = "node:__internal_head__"  # Ray's own name: Fleet does not die with a region that is elsewhere
NODE_START_TIMEOUT_S = 60
TAKE_DEADLINE_S = 5.0
OBSERVE_DEADLINE_S = 2.0
START_DEADLINE_S = 180
CONNECT_TIMEOUT_S = 5.0
STOP_DEADLINE_S = 30.0  # of the gateways, of the pools, and of the regions
DRAIN_S = 10.0  # for pools to end what they have begun; final replies are waited for longer
ENDING_S = 30.0
UNSUBSCRIBE_DEADLINE_S = 5.0
TELL_DEADLINE_S = 2.0
HAND_OVER_DEADLINE_S = 10.0  # the peer writes a batch to its disk


def _options(
    name: str, resources: Sequence[str], *, restarts: int, concurrency: int = 1000
) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": restarts,
        "max_task_retries": 0,
        "max_concurrency": concurrency,
        "enable_task_events": False,
        "get_if_exists": True,
        "resources": dict.fromkeys(resources, RESOURCE_SHARE),
    }


class RayRegionLink:
    """A region, as its pools and sources reach it."""

    def __init__(self, region: str) -> None:
        self._actor = NamedActor(region_actor(region))

    async def settle(self, report: bytes) -> int:
        return int(await self._actor.call("settle", report))

    async def get_state(self, key: str) -> bytes | None:
        state: bytes | None = await self._actor.call("get_state", key)
        return state

    async def put_state(self, key: str, value: bytes) -> None:
        await self._actor.call("put_state", key, value)

    async def review(self, source: str, site: str) -> None:
        await self._actor.call("review", source, site)


class RayPool:
    """A pool actor, as its region reaches it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def resume(self, epoch: int) -> bytes:
        return bytes(await call(self._handle, "resume", epoch))

    async def assign(self, assignment: bytes) -> bytes:
        return bytes(await call(self._handle, "assign", assignment))

    async def load(self) -> tuple[int, int]:
        cpu_ns, at_ns = await call(self._handle, "load")
        return int(cpu_ns), int(at_ns)

    async def deliver(self, header: bytes, entries: bytes) -> None:
        try:
            await call(self._handle, "deliver", header, entries)
        except TimeoutError as error:
            raise ConnectionError(str(error)) from error

    async def acknowledge(self, sequence: int) -> None:
        await call(self._handle, "acknowledge", sequence)

    async def stop(self, deadline_s: float) -> None:
        """As the region asks for it; then its process ends, and its name is free."""
        await call(self._handle, "stop", deadline_s, timeout_s=deadline_s + CALL_DEADLINE_S)
        await ask_head(f"end a pool of id {id(self)}", lambda: ray.kill(self._handle))

    async def introduce(self, incarnation: str) -> tuple[int, PoolName | None]:
        """Calls to an actor wait until it has been started."""
        pid, name = await call(self._handle, "introduce", incarnation, timeout_s=NODE_START_TIMEOUT_S)
        return int(pid), name

    async def ping(self) -> int:
        return int(await call(self._handle, "ping"))

    async def warm(self) -> None:
        await call(self._handle, "warm")

    async def take(self, incarnation: str, name: PoolName) -> None:
        await call(self._handle, "take", incarnation, name, timeout_s=TAKE_DEADLINE_S)


class RayPoolStarter:
    """Starts a region's pools on its node (actors/ports.py, PoolStarter)."""

    def __init__(self, config_json: str, region: str, resources: Sequence[str]) -> None:
        self._config_json = config_json
        self._region = region
        self._resources = tuple(resources)

    def actor(self, number: int) -> str:
        return pool_actor(self._region, number)

    async def numbers(self) -> list[int]:
        names = await ask_head("list actors", actor_names)
        found = (parse_pool(name, self._region) for name in names)
        return [number for number in found if number is not None]

    async def find(self, number: int) -> RayPool:
        actor = self.actor(number)
        try:
            return RayPool(
                await ask_head(f"look up {actor}", lambda: ray.get_actor(actor, namespace=NAMESPACE))
            )
        except ValueError as error:
            raise ActorDied(f"no actor {actor}") from error

    async def start(self, number: int) -> RayPool:
        actor = self.actor(number)

        def make() -> Any:
            services = RayNodeServices(self._config_json, self._region, self._resources)
            return (
                ray.remote(IspPoolActor)
                .options(**_options(actor, self._resources, restarts=0))
                .remote(self._config_json, self._region, services)
            )

        return RayPool(await ask_head(f"start {actor}", make))

    async def end(self, number: int) -> None:
        actor = self.actor(number)
        await ask_head(f"end {actor}", lambda: _end_actor(actor))


class RayNodeServices:
    """What the actors of one region ask of Ray (actors/ports.py, NodeServices). Picklable: names only.

    `resources`: of the node of that region, where its pools are started (actors/names.py, placement).
    """

    def __init__(self, config_json: str, region: str, resources: Sequence[str]) -> None:
        self._config_json = config_json
        self._region = region
        self._resources = tuple(resources)
        self._sources: dict[str, NamedActor] = {}
        self._peers: dict[str, NamedActor] = {}
        self._asked: dict[str, NamedActor] = {}
        self._processes: PoolProcesses | None = None

    def region_link(self) -> RayRegionLink:
        return RayRegionLink(self._region)

    def _pools(self) -> PoolProcesses:
        if self._processes is None:
            config = FleetConfig.model_validate_json(self._config_json)
            starter = RayPoolStarter(self._config_json, self._region, self._resources)
            self._processes = PoolProcesses(starter, config.limits.pool_spares)
        return self._processes

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> PoolPort:
        """The pool's process, at once if there is one or a spare."""
        return await self._pools().launch(name, on_death)

    async def survivors(self) -> list[PoolName]:
        return await self._pools().survivors()

    def pools(self) -> list[RunningPool]:
        """The processes of pools of this region, if this is its own actor."""
        return self._pools().running()

    async def launch_no_more(self) -> None:
        await self._pools().close()

    async def observe(self, source: str, summary: bytes) -> bytes:
        actor = self._sources.get(source)
        if actor is None:
            actor = self._sources[source] = NamedActor(source_actor(source))
        return bytes(await actor.call("observe", summary, timeout_s=OBSERVE_DEADLINE_S))

    async def suppress(self, region: str, rows: bytes) -> int:
        """Have another region take suppressions: on its disk when this answers."""
        return int(await self._peer(region).call("suppress", rows, False))

    async def repeat_suppressions(self, region: str, to: str) -> None:
        """Have a region give its whole suppression list to another, once more."""
        await self._peer(region).call("repeat_suppressions", to)

    async def accept(self, region: str, header: bytes, blob: bytes, again: bool) -> bytes:
        """Have a region accept a batch: what its receipt names is on its disk."""
        return bytes(await self._peer(region).call("accept", header, blob, again))

    async def report(self, region: str, signal: bytes) -> str:
        """Tell a region of a bounce or complaint: on its disk when this answers."""
        return str(await self._peer(region).call("report", signal))

    async def unsubscribe(self, region: str, rows: bytes) -> int:
        """Have a region list who unsubscribes: on its disk when this answers."""
        return int(await self._peer(region).call("unsubscribe", rows, timeout_s=UNSUBSCRIBE_DEADLINE_S))

    def _peer(self, region: str) -> NamedActor:
        actor = self._peers.get(region)
        if actor is None:
            actor = self._peers[region] = NamedActor(region_actor(region))
        return actor

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None:
        """Carry messages of the failover protocol; it repeats what does not arrive."""
        actor = self._peer(region)
        try:
            await actor.call("hear", sender, packed(messages), timeout_s=TELL_DEADLINE_S)
        except RuntimeError as error:
            raise ConnectionError(f"region {region}: {error}") from error

    async def hand_over(self, region: str, request: Request) -> Reply | None:
        """A request about messages that change their owner; None: the region does not answer it now."""
        reply: Reply | None = await self._peer(region).call(
            "hand_over", request, timeout_s=HAND_OVER_DEADLINE_S
        )
        return reply

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        """Ask any actor; for what is not on the mail's way."""
        named = self._asked.get(actor)
        if named is None:
            named = self._asked[actor] = NamedActor(actor)
        return await named.call(method, *args, timeout_s=timeout_s)


class RayFleetServices:
    """What the Fleet actor asks of Ray (actors/ports.py, FleetServices)."""

    def __init__(self, config: FleetConfig) -> None:
        self._config_json = config.model_dump_json()
        self._placements = {region.name: placement(region) for region in config.regions}
        self._actors: dict[str, NamedActor] = {}

    async def ensure_region(self, region: str) -> None:
        await self._ensure(region_actor(region), region, RegionActor, region)

    async def ensure_source(self, source: str, region: str) -> None:
        await self._ensure(source_actor(source), region, EgressIpActor, source)

    async def ensure_gateway(self, region: str) -> None:
        await self._ensure(gateway_actor(region), region, GatewayActor, region)

    async def _ensure(self, actor: str, region: str, kind: type, name: str) -> None:
        resources = self._placements[region]

        def make() -> None:
            # calls of an actor that waits for a node are kept for it, and all made once it has one
            if not any(set(resources) <= set(node["Resources"]) for node in live_nodes()):
                raise ConnectionError(f"{actor}: no node carries {' and '.join(resources)}")
            ray.remote(kind).options(**_options(actor, resources, restarts=-1)).remote(
                self._config_json, name, RayNodeServices(self._config_json, region, resources)
            )

        await ask_head(f"start {actor}", make)

    def _actor(self, name: str) -> NamedActor:
        actor = self._actors.get(name)
        if actor is None:
            actor = self._actors[name] = NamedActor(name)
        return actor

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        return await self._actor(actor).call(method, *args, timeout_s=timeout_s)

    async def end(self, actor: str) -> None:
        await self._actor(actor).end()


def actor_names() -> list[str]:
    """Names of the fleet's actors that live. ConnectionError: Ray's head, which knows them, gives no answer."""
    try:
        entries = list_named_actors(all_namespaces=True)
    except RayError as error:
        raise ConnectionError(f"the head of Ray does not tell which actors live: {error}") from error
    return [entry["name"] for entry in entries if entry["namespace"] == NAMESPACE]


def connect_ray(address: str) -> None:
    """Join the cluster as a driver, if this process has not yet. ConnectionError: nobody answers there."""
    if not ray.is_initialized():
        _look_for(address)
        if os.environ.get(ONLY_LOOPBACK) == "0":  # it may have been imported before that was set
            ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)


def _look_for(address: str) -> None:
    """Ray itself would look for minutes, and fill the screen."""
    host, port = split_host(address)
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S):
            return
    except OSError as error:
        raise ConnectionError(f"no head of a Ray cluster answers at {address}: {error}") from None


def leave_ray() -> None:
    """Take this process out of the cluster."""
    ray.shutdown()


def start_fleet(
    config: FleetConfig,
    address: str,
    check: Callable[[], None] = lambda: None,
    *,
    missing: Sequence[str] = (),
) -> bool:
    """Start the Fleet actor on the cluster, or find it running; returns when every region answers. False: it ran
    already, with another configuration.

    `missing`: regions that have no node, and are not waited for; Fleet starts each as soon as it has one.
    ConnectionError: a region has no node of its own, within 60 s or as soon as `check` raises it because that node has
    ended.
    """
    connect_ray(address)
    config_json = config.model_dump_json()
    _wait_for_nodes(config, address, check, missing)
    fleet: Any = (
        ray.remote(FleetActor)
        .options(**_options(FLEET, (HEAD,), restarts=-1))
        .remote(config_json, RayFleetServices(config), Witness())
    )
    try:
        # one of an earlier release, which runs already, knows nothing of `missing`
        ray.get(fleet.start.remote(*([tuple(missing)] if missing else [])), timeout=START_DEADLINE_S)
    except GetTimeoutError:
        raise ConnectionError(
            f"not every region and source answers after {START_DEADLINE_S} s; they go on trying: see `sendfleet status`"
        ) from None
    except RayTaskError as error:
        raise ConnectionError(f"the fleet does not start: {error.cause or error}") from error
    return bool(ray.get(fleet.configuration.remote(), timeout=CALL_DEADLINE_S) == config_json)


def _wait_for_nodes(
    config: FleetConfig, address: str, check: Callable[[], None], missing: Sequence[str]
) -> None:
    deadline = time.monotonic() + NODE_START_TIMEOUT_S
    while True:
        nodes = live_nodes()
        faults = find_faults(config, nodes, missing=missing)
        if not faults:
            return
        check()
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"the cluster at {address} does not fit fleet.yaml after {NODE_START_TIMEOUT_S} s: "
                f"{'; '.join(faults)}. Nodes: {describe(nodes)}"
            )
        time.sleep(0.1)


def live_nodes() -> list[dict[str, Any]]:
    """ConnectionError: Ray's head does not say."""
    try:
        return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    except RayError as error:
        raise ConnectionError(f"the head of Ray does not tell which nodes live: {error}") from error


def stop_fleet(config: FleetConfig) -> None:
    """Stop gateways (they take nothing in any more), have pools finish what is on the wire and regions settle it, stop
    regions (everything unsent is on disk), then end all actors. So nothing is in doubt at the next start, except what
    waits for the answer to a complete message for longer than `STOP_DEADLINE_S`.

    The Fleet goes first: it would make again what ends. A cluster that was not started by `up` outlives its fleet, so
    this returns only when the names are free for another `up`; ConnectionError if they do not become so, or if Ray's
    head does not say in time which there are.
    """
    away = without_node(config, live_nodes())
    _end_actor(FLEET)
    if away:
        log.warning("not stopped in order, because they have no node: %s", ", ".join(away))
    names = [region.name for region in config.regions if region.name not in away]
    _in_order([gateway_actor(name) for name in names if has_gateway(config, name)], "stop")
    regions = [region_actor(name) for name in names]
    _in_order(regions, "pause")
    _in_order(_pools_of(names), "stop", DRAIN_S)
    _in_order(regions, "stop", time.time_ns())
    deadline = time.monotonic() + ENDING_S
    while left := _names_before(deadline):
        if time.monotonic() > deadline:
            raise ConnectionError(f"these actors do not end: {', '.join(sorted(left))}")
        for name in left:
            _end_actor(name)
        time.sleep(0.1)


def _pools_of(regions: Sequence[str]) -> list[str]:
    """The actors that are pools by what their regions say (spares have nothing to finish); of a region that does not
    answer all, spares too."""
    found = []
    for region in regions:
        try:
            actor = ray.get_actor(region_actor(region), namespace=NAMESPACE)
            pools: list[RunningPool] = ray.get(actor.pools.remote(), timeout=OBSERVE_DEADLINE_S)
            found += [pool.actor for pool in pools if pool.name is not None]
        except (ValueError, RayError) as error:
            log.warning("region %s does not say which processes its pools are: %s", region, error)
            names = _names_before(time.monotonic() + ENDING_S)
            found += [name for name in names if parse_pool(name, region) is not None]
    return found


def _names_before(deadline: float) -> list[str]:
    """`actor_names` from a head that may be too busy to answer at the first time."""
    while True:
        try:
            return actor_names()
        except ConnectionError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s; asking again", error)
        time.sleep(0.5)


def _in_order(names: Sequence[str], method: str, *args: Any) -> None:
    """Call that method of all at once; returns when they have answered, or after a deadline for all together."""
    calls: dict[str, Any] = {}
    for name in names:
        try:
            call = getattr(ray.get_actor(name, namespace=NAMESPACE), method).remote
            try:
                calls[name] = call(*args)
            except TypeError:  # an actor of an earlier release, which knows none of these arguments
                calls[name] = call()
        except (ValueError, RayError) as error:
            log.warning("%s: not stopped in order: %s", name, error)
    deadline = time.monotonic() + STOP_DEADLINE_S
    for name, answer in calls.items():
        try:
            ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except (RayActorError, RayTaskError, GetTimeoutError) as error:
            log.warning("%s: not stopped in order: %s", name, error)


def _end_actor(name: str) -> None:
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    except ValueError:
        log.debug("actor %s: has ended already", name)
    except RayError as error:
        raise ConnectionError(f"{name}: the head of Ray does not end it: {error}") from error
