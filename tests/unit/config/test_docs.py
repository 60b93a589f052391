import runpy
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_configuration_page_is_what_the_schema_says() -> None:
    written = runpy.run_path(str(ROOT / "tools" / "write_configuration_docs.py"))["write"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == written, (
        "run: python tools/write_configuration_docs.py"
    )
