"""The sandbox in which the templates of campaigns run: there is no way out of it, and an end to everything in it.

Jinja2's own sandbox keeps templates from attributes and functions that are not theirs. It does not keep them from going
on for ever, and a pool renders between two writes to the wire. So the rounds of all loops and the calls of one part of
one message are counted, and numbers that make texts long (`*`, `**`, widths, counts) are bounded. This stops mistakes
and coarse malice; whoever may write templates may still make a pool slow.
"""

import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import wraps
from typing import Any, Final

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS: Final = 100_000
MAX_NUMBER: Final = 1_000_000
MAX_EXPONENT: Final = 64
MAX_RENDERED: Final = 10 << 20  # characters of a part
STEPS: Final = "steps left"  # no name that a template could write
COUNTED: Final = "counted_rounds"
_LONG_NUMBER = re.compile(r"\d{7}")


class TemplateLimit(SecurityError):
    """A template does more than it may."""


class Sandbox(ImmutableSandboxedEnvironment):
    """See the module docstring. Whoever renders calls `begin` on the values first, and joins with `joined`."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, *, autoescape: bool) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            autoescape=autoescape,
            keep_trailing_newline=True,
            newline_sequence="\r\n",
        )
        self.globals = {name: self.globals[name] for name in ("range", "namespace")} | {COUNTED: _counted}
        self.filters = {name: _bounded(filter_) for name, filter_ in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for other in tree.find_all((nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)):
            what = type(other).__name__.lower().removeprefix("from")
            raise jinja2.TemplateSyntaxError(f"{what}: a template stands alone", other.lineno)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise jinja2.TemplateSyntaxError("loops may not be recursive", loop.lineno)
            callee = nodes.Name(COUNTED, "load", lineno=loop.lineno)
            loop.iter = nodes.Call(callee, [loop.iter], [], None, None, lineno=loop.lineno)
            loop.set_environment(self)
        return tree

    def call(*args: Any, **kwargs: Any) -> Any:  # a template may pass arguments of any name
        self, context, called, *rest = args
        _step(context)
        _check_numbers((*rest, *kwargs.values()))
        if isinstance(text := getattr(called, "__self__", None), str):
            _check_widths(text)
        return super(Sandbox, self).call(context, called, *rest, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= MAX_EXPONENT):
            raise TemplateLimit(f"{right!r} as an exponent: allowed is up to {MAX_EXPONENT}")
        if operator == "*":
            for times, other in ((left, right), (right, left)):
                size = len(other) if hasattr(other, "__len__") else 1
                if isinstance(times, int) and times * size > MAX_NUMBER:
                    raise TemplateLimit(f"a product of more than {MAX_NUMBER:,}")
        return super().call_binop(context, operator, left, right)


def begin(values: MutableMapping[str, Any]) -> None:
    """Before a part is rendered with these values."""
    values[STEPS] = [MAX_STEPS]


def joined(pieces: Iterable[str]) -> str:
    """A rendered part, unless it is too long."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_RENDERED:
            raise TemplateLimit(f"more than {MAX_RENDERED:,} characters")
        kept.append(piece)
    return "".join(kept)


def _step(context: Context) -> None:
    left = context.parent[STEPS]
    left[0] -= 1
    if left[0] < 0:
        raise TemplateLimit(f"more than {MAX_STEPS:,} rounds of loops and calls")


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step(context)
        yield item


def _check_numbers(arguments: Iterable[object]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > MAX_NUMBER:
            raise TemplateLimit(f"the number {argument}: allowed is up to {MAX_NUMBER:,}")


def _check_widths(text: str) -> None:
    """Of a text that may be a format."""
    if _LONG_NUMBER.search(text) and ("{" in text or "%" in text):
        raise TemplateLimit("a format with a number of more than six digits")


def _bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filter_)  # with the marks of those that want the context
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args[1:], *kwargs.values()))
        for argument in args:
            if type(argument) is str:
                _check_widths(argument)
        return filter_(*args, **kwargs)

    return bounded
