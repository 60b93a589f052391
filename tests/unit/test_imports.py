"""Who may import whom (DESIGN.md section 2), read from the source without importing it."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"engine", "native", "actors", "bench", "tests"}

# The edges of these libraries: the only modules that may import them.
EDGES = {
    "lmdb": {"engine.spool.environment"},
    "dns": {"engine.routing.resolver", "engine.failover.dns_zone"},
    "aiosmtplib": {"engine.smtp.opener"},
    "opentelemetry": {"engine.metrics.otlp"},
    "requests": {"engine.metrics.otlp"},
}
# Edges that come with later rooms: one module at most, wherever it will be.
ONE_MODULE = ("fastapi", "aiosmtpd")

RAY_MODULES = {
    "actors.deploy",
    "actors.drill.nodes",
    "actors.ray_calls",
    "actors.client",
    "actors.local_node",
}
VALUE_CONFIG = (
    "schema|types|units|doctor|dns_failover|tls|signing|bounces|suppression|reputation|warmup"
    "|shaping|unsubscribe|quality|blocklists|metrics|alerts"
)
VALUE_MODULES = re.compile(rf"engine\.values(\..*)?|engine\.config\.({VALUE_CONFIG})")
VALUE_LIBRARIES = {"pydantic", "msgpack", "annotated_types", "typing_extensions"}
# An address is a value, and its domain has one A-label form only by IDNA 2008 (docs/adr/0004-idna-in-values.md).
VALUE_LIBRARIES |= {"idna"}


def python_modules(*packages: str) -> dict[str, Path]:
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything a module imports, also inside functions and under `if TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; this project writes absolute ones"
            module = node.module or ""
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


CODE = {name: imports_of(path) for name, path in python_modules("engine", "actors", "native").items()}


def importers(library: str, *, within: str = "") -> set[str]:
    return {n for n, names in CODE.items() if n.startswith(within) and any(top(i) == library for i in names)}


def test_there_is_something_to_check() -> None:
    assert {"engine.config.schema", "engine.routing.router", "actors.deploy"} <= set(CODE)


def test_engine_imports_neither_ray_nor_actors() -> None:
    assert importers("ray", within="engine") == set()
    assert importers("actors", within="engine") == set()


def test_nothing_that_ships_imports_bench_or_tests() -> None:
    assert importers("bench") | importers("tests") == set()


def test_in_actors_ray_is_imported_where_it_belongs() -> None:
    assert importers("ray", within="actors") <= RAY_MODULES


@pytest.mark.parametrize("library", sorted(EDGES))
def test_an_edge_is_the_only_importer_of_its_library(library: str) -> None:
    assert importers(library) <= EDGES[library]


@pytest.mark.parametrize("library", ONE_MODULE)
def test_other_edges_are_one_module_each(library: str) -> None:
    assert len(importers(library)) <= 1


@pytest.mark.parametrize("name", sorted(n for n in CODE if VALUE_MODULES.fullmatch(n)))
def test_values_import_only_the_standard_library_pydantic_and_msgpack(name: str) -> None:
    allowed = sys.stdlib_module_names | VALUE_LIBRARIES
    strange = {
        i
        for i in CODE[name]
        if top(i) not in allowed and not any(VALUE_MODULES.fullmatch(parent) for parent in _parents(i))
    }
    assert strange == set()


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def test_the_command_is_where_the_project_file_says() -> None:
    assert 'sendfleet = "actors.command:main"' in (ROOT / "pyproject.toml").read_text()
    assert "actors.command" in CODE


CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w., ]+))", re.MULTILINE)


NATIVE = sorted(p for kind in ("pyx", "pxd", "pyi", "py") for p in (ROOT / "native").glob(f"*.{kind}"))


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_imports_nothing_of_ours_no_clock_and_no_randomness(path: Path) -> None:
    names = {
        name.strip().partition(" ")[0]
        for module, plain in CYTHON_IMPORT.findall(path.read_text(encoding="utf-8"))
        for name in (module or plain).split(",")
    }
    tops = {top(name) for name in names}
    assert not tops & (OURS - {"native"})
    assert not tops & {"time", "random", "os", "secrets", "datetime"}
    assert not {name for name in names if name.startswith(("libc.time", "posix.time"))}


def test_no_import_cycle() -> None:
    """Each module of ours can be imported first: no lazy import is needed to dodge a cycle."""
    graph = {name: {m for m in CODE if m != name and (m in names)} for name, names in CODE.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
