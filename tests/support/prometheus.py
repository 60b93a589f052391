"""An exposition as Prometheus' own library reads it."""

import http.client
import ssl

from prometheus_client.parser import text_string_to_metric_families


def read(host: str, port: int, token: str = "", context: ssl.SSLContext | None = None) -> tuple[int, str]:
    """GET /metrics: status and text."""
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=30)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=30, context=context)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Scrape:
    """The samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.names: set[str] = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"{key} is there twice"
                self.samples[key] = sample.value
                self.names.add(sample.name)

    def rows(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The samples of that name which have those labels among theirs."""
        return [
            (dict(found), value)
            for (sample, found), value in self.samples.items()
            if sample == name and labels.items() <= dict(found).items()
        ]

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.rows(name, **labels))
