"""OTLP over HTTP: the points as OpenTelemetry's instruments, pushed to a collector. The only importer of opentelemetry.

Its SDK counts nothing here: observable instruments read the points that were gathered. Imported only where a push is
configured, because SDK and protobuf cost a process some 30 MB.

What a push cannot deliver is not kept: counters are cumulative, so the next one says it all. Whether it was delivered
is the answer of `push`.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource

from engine.config.metrics import OtlpConfig
from engine.metrics.catalogue import CATALOGUE, Kind, Metric, Point, place_of

MAX_POINTS = 200_000  # of one metric; the labels are bounded before (engine/metrics/bounding.py)

NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.1
VALUE = re.compile(rb"[\x20-\x7e\t]*")

# the exporter says itself, at length, what `push` says in one word
logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)


class OtlpExport:
    """One region's way to its collector. Not for several threads at once."""

    def __init__(self, config: OtlpConfig, *, fleet: str, region: str, shard_of: str | None = None) -> None:
        self._config = config
        self._place = place_of(region, shard_of)
        self._points: dict[str, list[Point]] = {}
        self._reader = InMemoryMetricReader(
            cardinality_limits={ObservableCounter: MAX_POINTS, ObservableGauge: MAX_POINTS}
        )
        resource = Resource.create(
            {
                "service.name": "sendfleet",
                "service.namespace": fleet,
                "service.instance.id": region,
                "service.version": _version(),
            }
        )
        self._provider = MeterProvider(
            metric_readers=[self._reader], resource=resource, shutdown_on_exit=False
        )
        meter = self._provider.get_meter("sendfleet", _version())
        for metric in CATALOGUE.values():
            create = (
                meter.create_observable_counter
                if metric.kind is Kind.COUNTER
                else meter.create_observable_gauge
            )
            create(metric.name, callbacks=[self._observer(metric)], unit=metric.unit, description=metric.text)

    def _observer(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for point in self._points.get(metric.name, ()):
                labels = zip(metric.labels, point.labels, strict=True)
                yield Observation(point.value, {**self._place, **dict(labels)})

        return observe

    def push(self, points: Sequence[Point]) -> bool:
        """Send them; whether the collector has taken them. Blocks for `timeout` at most. OSError, ValueError: the
        file of headers or authorities cannot be used."""
        by_name: dict[str, list[Point]] = {}
        for point in points:
            by_name.setdefault(point.metric, []).append(point)
        self._points = by_name
        data = self._reader.get_metrics_data()
        if data is None:
            return True
        config = self._config
        exporter = OTLPMetricExporter(
            endpoint=config.endpoint,
            certificate_file=None if config.authorities is None else str(config.authorities),
            headers=read_headers(config.headers_file),
            timeout=config.timeout,
            session=_session(),
        )
        try:
            return exporter.export(data) is MetricExportResult.SUCCESS
        finally:
            exporter.shutdown()

    def close(self) -> None:
        self._provider.shutdown()


def read_headers(path: Path | None) -> Mapping[str, str]:
    """Headers of a file, one `Name: value` a line. ValueError without showing what stands there."""
    if path is None:
        return {}
    headers = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        name, colon, value = (part.strip() for part in line.partition(b":"))
        if not colon or not NAME.fullmatch(name) or not VALUE.fullmatch(value):
            raise ValueError(f"{path}, line {number}: allowed is `Name: value` in printable ASCII")
        headers[name.decode()] = value.decode()
    return headers


def _session() -> requests.Session:
    """Goes to the endpoint itself: a proxy of the environment would be told the headers, and ~/.netrc would replace
    them."""
    session = requests.Session()
    session.trust_env = False
    return session


def _version() -> str:
    try:
        return version("sendfleet")
    except PackageNotFoundError:
        return "unknown"
