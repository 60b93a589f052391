"""Charts, and the one in the README: drawn by the code that is here."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

from engine.simulator.plot import Line, chart, nice, short, stretches, time_ticks

ROOT = Path(__file__).parents[3]


def test_the_plot_in_the_docs_is_the_one_that_is_drawn_now() -> None:
    spec = importlib.util.spec_from_file_location(
        "plot_burned_source", ROOT / "tools" / "plot_burned_source.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.draw() == (ROOT / "docs" / "burned-source.svg").read_text(encoding="utf-8")


def test_a_chart_is_well_formed_whatever_it_is_called() -> None:
    text = chart(
        "a < b & c", [0.0, 60.0], [Line("<x>", [1.0, None]), Line("y", [0.0, 0.0], is_step=True)], log=True
    )
    ElementTree.fromstring(text)
    ElementTree.fromstring(chart("nothing", [], []))


def test_gaps_and_steps() -> None:
    line = Line("x", [1.0, None, 2.0, 3.0], is_step=True)
    assert stretches([0, 1, 2, 3], line) == [[(0, 1.0)], [(2, 2.0), (3, 2.0), (3, 3.0)]]


def test_axes() -> None:
    assert [nice(value) for value in (0.9, 1, 3, 7, 1_100)] == [1, 1, 5, 10, 2_000]
    assert [short(value) for value in (3, 1_500, 2_000_000, 5e9)] == ["3", "1.5k", "2M", "5G"]
    assert time_ticks(43_200)[:2] == [(0.0, "0 h"), (7_200.0, "2 h")]
    assert len(time_ticks(86_400 * 30)) < 10
