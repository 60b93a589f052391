"""How a spool behaves: sizes, watermarks, and where completions run."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.config.schema import SpoolConfig


def _run_here(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _no_step(name: str) -> None:
    """Tests put a hook here that kills the process between durable steps."""


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """`deliver` runs the completions of one group; `step` is called between durable steps. `journal`: about how many
    changes of the due index are kept in memory before they are merged (engine/spool/due_index.py), 150 bytes each. With
    each `forget_every`th group a step is taken to forget names that have not been used for `keep_names_ms`."""

    map_size: int = 64 << 30
    watermark: float = 0.8
    min_free: int = 512 << 20
    segment_size: int = 64 << 20
    journal: int = 65_536
    keep_names_ms: int = 600_000
    forget_every: int = 16
    deliver: Callable[[list[Callable[[], None]]], None] = _run_here
    step: Callable[[str], None] = _no_step

    @classmethod
    def from_config(
        cls, config: SpoolConfig, *, deliver: Callable[[list[Callable[[], None]]], None] = _run_here
    ) -> "SpoolOptions":
        return cls(
            map_size=config.map_size,
            watermark=config.watermark,
            min_free=config.min_free,
            segment_size=config.segment_size,
            deliver=deliver,
        )
