"""How dense source code is: printed by `make figures`, bounded by tests/test_figures.py.

    python -m benchmarks.figures [PATH …]

A path is a package or a module; `embedding_service` always comes first. Syntax nodes are those of
Python's `ast`: what a reader has to take in, however the lines are packed. A function's figures
include its signature, its docstring and the functions inside it.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import tokenize
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "embedding_service"
COLUMNS = 100
DENSEST_SHOWN = 5

_LAYOUT = frozenset(
    {tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.NL}
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.BoolOp,
    ast.comprehension,
    ast.match_case,
)


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method, with all that is nested in it."""

    place: str
    lines: int
    nodes: int
    branches: int


@dataclass(slots=True)
class Source:
    """The counts of some files; `long_lines` and `nested_comprehensions` are `file:line`.

    `nodes` leaves out `Load` and `Store`, of which every name has one; those of functions have
    them, so that anybody's `ast.walk` gives the same.
    """

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    comment_lines: int = 0
    nodes: int = 0
    functions: list[Function] = field(default_factory=list)
    long_lines: list[str] = field(default_factory=list)
    nested_comprehensions: list[str] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Count one file."""
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        place = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
        self.files += 1
        self.code_lines += len(token_lines(text) - docstring_lines(tree))
        self.nodes += sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))
        self.functions += functions(tree, place)
        for number, line in enumerate(text.splitlines(), 1):
            self.lines += 1
            self.comment_lines += line.lstrip().startswith("#")
            if len(line) > COLUMNS:
                self.long_lines.append(f"{place}:{number}")
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and comprehension_levels(node) > 1:
                self.nested_comprehensions.append(f"{place}:{node.lineno}")

    def of_functions(self, figure: str) -> tuple[float, float, int]:
        """Return the median, the 90th percentile and the maximum of a figure of functions."""
        values = [getattr(function, figure) for function in self.functions]
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return statistics.median(values), tenths[-1], max(values)

    def densest(self, count: int) -> list[Function]:
        """Return the functions with the most syntax nodes."""
        return sorted(self.functions, key=attrgetter("nodes"), reverse=True)[:count]


def measure(path: Path) -> Source:
    """Count the modules of a package, or one file."""
    source = Source()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        source.add(file)
    return source


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that docstrings cover."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            found |= _lines_of(node.body[0])
    return found


def token_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold any token but comments and layout."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT and token.type != tokenize.COMMENT:
            found.update(range(token.start[0], token.end[0] + 1))
    return found


def functions(tree: ast.Module, place: str) -> Iterator[Function]:
    """Yield every function, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS):
            inside = list(ast.walk(node))
            yield Function(
                f"{place}:{node.lineno} {node.name}",
                lines=len(_lines_of(node)),
                nodes=len(inside),
                branches=sum(isinstance(each, _BRANCHES) for each in inside),
            )


def comprehension_levels(node: ast.AST) -> int:
    """Return how deep the loops of comprehensions nest in one statement, nested statements apart.

    A second `for` in the same comprehension is a second level.
    """
    inside = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
    deepest = max(map(comprehension_levels, inside), default=0)
    return deepest + len(getattr(node, "generators", ()))


def rows(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each figure."""
    yield "files", f"{source.files}"
    yield "lines", f"{source.lines:,}"
    yield "code lines", f"{source.code_lines:,}"
    for title, figure in (
        ("lines of a function", "lines"),
        ("syntax nodes of a function", "nodes"),
        ("branches of a function", "branches"),
    ):
        median, tenth, most = source.of_functions(figure)
        yield f"{title}, p50 / p90 / max", f"{median:.0f} / {tenth:.0f} / {most}"
    yield "syntax nodes a code line", f"{source.nodes / source.code_lines:.1f}"
    yield f"lines over {COLUMNS} columns", f"{len(source.long_lines)}"
    yield "comment lines a 100 code lines", f"{100 * source.comment_lines / source.code_lines:.1f}"
    yield "statements with nested comprehensions", f"{len(source.nested_comprehensions)}"


def table(sources: dict[str, Source]) -> str:
    """Return the figures of several packages side by side, in Markdown."""
    columns = [list(rows(source)) for source in sources.values()]
    lines = [_line("", sources), "|---" * (len(columns) + 1) + "|"]
    for cells in zip(*columns, strict=True):
        title = cells[0][0]
        lines.append(_line(title, (value for _, value in cells)))
    return "\n".join(lines)


def main() -> None:
    """Print the figures of all paths side by side, and the densest functions of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, help="packages or modules to measure beside the service"
    )
    paths = [PACKAGE, *(path.resolve() for path in parser.parse_args().paths)]
    sources = {path.name: measure(path) for path in paths}
    print(table(sources))
    ratio = measure(ROOT / "tests").lines / sources[PACKAGE.name].lines
    print(f"\ntests to source of {PACKAGE.name}, in lines: {ratio:.2f}")
    for name, source in sources.items():
        print(f"\nThe densest functions of {name}, in syntax nodes:")
        for function in source.densest(DENSEST_SHOWN):
            print(f"  {function.nodes:5} {function.place}")


def _lines_of(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def _line(title: str, values: Iterable[str]) -> str:
    return f"| {' | '.join([title, *values])} |"


if __name__ == "__main__":
    main()
