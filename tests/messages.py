"""All messages of errors in the source, read from its syntax trees, with the code of each."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_service import errors
from tests.test_layers import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

# Refusals of a model's files, in worker/ and families/, name the file and the value in it.
FOLDERS = ("service", "http", "dialects", "dropin", "settings", "engine")
FILES = ("server", "hub", "cli")
KINDS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ServiceError | errors.StartupError)
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
GAP = "…"  # in place of a value


@dataclass(frozen=True)
class Message:
    """An error that is made somewhere; `text` is None where it comes from elsewhere."""

    kind: str
    text: str | None
    code: str | None
    place: str


def messages() -> list[Message]:
    """Return the errors that the source makes."""
    found: list[Message] = []
    for module, path in MODULES.items():
        if module.partition(".")[0] in FOLDERS or module in FILES:
            found += _of(ast.parse(path.read_text("utf-8")), module)
    return found


def _of(tree: ast.AST, module: str) -> Iterator[Message]:
    kinds = dict.fromkeys(KINDS)
    if module.startswith("settings."):
        kinds["ValueError"] = None  # of validators
    constants = dict(_assigned(*ast.iter_child_nodes(tree)))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    kinds |= dict(_makers(functions, kinds))
    for function in functions:
        known = constants | dict(_assigned(*ast.walk(function)))
        for call in _calls(function):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name in kinds and function.name not in kinds:
                text = _text(call.args[0], known) if call.args else None
                code = _code(call) or kinds[name]
                yield Message(name, text, code, f"{module}:{call.lineno}")


def _makers(
    functions: list[Function], kinds: dict[str, str | None]
) -> Iterator[tuple[str, str | None]]:
    """Yield functions that make an error of the message that they are given, and its code."""
    for function in functions:
        last = function.body[-1]
        made = last.value if isinstance(last, ast.Return) else None
        if isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.args:
            given, names = made.args[0], [each.arg for each in function.args.args]
            if made.func.id in kinds and isinstance(given, ast.Name) and given.id in names:
                yield function.name, _code(made)


def _calls(scope: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls of a function, without those of functions in it."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from _calls(child)


def _assigned(*nodes: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _text(value: ast.expr, known: dict[str, ast.expr], depth: int = 0) -> str | None:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        parts = (_part(part, known, depth) for part in value.values)
        return "".join(parts)
    if isinstance(value, ast.IfExp):
        return _text(value.body, known, depth)
    if isinstance(value, ast.BinOp):
        return (_text(value.left, known) or GAP) + (_text(value.right, known) or GAP)
    if isinstance(value, ast.Name) and value.id in known and depth < 3:
        return _text(known[value.id], known, depth + 1)
    return None


def _part(part: ast.expr, known: dict[str, ast.expr], depth: int) -> str:
    if isinstance(part, ast.FormattedValue):
        return _text(part.value, known, depth + 1) or GAP
    return _text(part, known, depth) or GAP


def _code(call: ast.Call) -> str | None:
    for keyword in call.keywords:
        if keyword.arg == "code":
            if isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
            return ast.unparse(keyword.value)
    return None
