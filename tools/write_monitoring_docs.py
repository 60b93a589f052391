"""Write the tables of docs/monitoring.md from the code. A test compares; run this after a change of them."""

from pathlib import Path

from engine.alerts.rules import RULES, entry_of
from engine.config.alerts import AlertsConfig
from engine.config.units import format_duration
from engine.metrics.catalogue import CATALOGUE

TARGET = Path(__file__).parent.parent / "docs" / "monitoring.md"


def metrics_table() -> str:
    rows = ["| metric | in Prometheus | kind | unit | labels | meaning |", "|---|---|---|---|---|---|"]
    for metric in CATALOGUE.values():
        labels = " ".join(f"`{name}`" for name in metric.labels)
        rows.append(
            f"| `{metric.name}` | `{metric.prometheus}` | {metric.kind} | `{metric.unit}` | {labels} | {metric.text} |"
        )
    return "\n".join(rows)


def alerts_table() -> str:
    rows = ["| alert | severity | after | limit | it means |", "|---|---|---|---|---|"]
    config = AlertsConfig()
    for rule in RULES:
        entry = entry_of(config, rule)
        written = entry.model_dump(mode="json", exclude={"enabled", "severity", "after"})
        limits = ", ".join(f"`{name}: {value}`" for name, value in written.items())
        after = format_duration(entry.after)
        rows.append(f"| `{rule.name}` | {entry.severity} | {after} | {limits} | {rule.summary} |")
    return "\n".join(rows)


TABLES = {"metrics": metrics_table, "alerts": alerts_table}


def write(text: str) -> str:
    """The document with its tables as the code has them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: made by tools/write_monitoring_docs.py -->", f"<!-- end of {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{TARGET}: {begin} ... {end} is not there")
        text = f"{head}{begin}\n{table()}\n{end}{tail}"
    return text


if __name__ == "__main__":
    TARGET.write_text(write(TARGET.read_text("utf-8")), "utf-8")
