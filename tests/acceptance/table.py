"""The table of checkpoints: a name, the steps that write its files, and what is expected."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.acceptance.steps import Step

TRUST = ("--trust-remote-code", "true")
WEB = "Given a web search query, retrieve relevant passages that answer the query"
# The files of rows, by kind of fault; the last one's are of the others.
PARTS = (
    *("prompts", "modules", "lengths", "pairs", "values"),
    *("layouts", "files", "adapters", "architectures", "again"),
)
ROWS: dict[str, Row] = {}


@dataclass(frozen=True)
class Row:
    """One checkpoint.

    `hub` is the repository whose layout it has, and the name that it is served by. `kind` says how
    its reference is computed (`reference.py`), or `refuse`: the start-up must end with a clear
    line. `may_refuse` allows that where vLLM cannot compute it. `args` are the operator's settings,
    and `about` is what the reference has to know beside the files.
    """

    name: str
    hub: str
    steps: tuple[Step, ...]
    kind: str = "embed"
    args: tuple[str, ...] = ()
    tolerance: float = 0.99999  # of the cosine
    may_refuse: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def make(self, path: Path) -> None:
        """Write its files."""
        for step in self.steps:
            step(path)


FIELDS = {known.name for known in dataclasses.fields(Row)}


def keep(row: Row, changes: dict[str, Any]) -> None:
    """Put a row into the table; changes that are no fields of it are about the reference."""
    own = {name: value for name, value in changes.items() if name in FIELDS}
    about = {name: value for name, value in changes.items() if name not in FIELDS}
    assert row.name not in ROWS, row.name
    ROWS[row.name] = dataclasses.replace(row, **own, about=row.about | about)


def family(name: str, hub: str, *steps: Step, **changes: Any) -> None:
    """Add a repository that people serve."""
    keep(Row(name, hub, steps), changes)


def example(name: str, *steps: Step, **changes: Any) -> None:
    """Add one thing that files can say, in no repository's name."""
    keep(Row(name, f"example/{name}", steps), changes)


reranker = functools.partial(family, kind="rerank")
pair = functools.partial(example, kind="rerank")


def like(name: str, other: str, *more: Step, **changes: Any) -> None:
    """Add a row like another one: with more steps, under another name, or with other settings."""
    found = ROWS[other]
    keep(dataclasses.replace(found, name=name, steps=found.steps + more), changes)


def steps(name: str) -> tuple[Step, ...]:
    """Return the steps of a row."""
    return ROWS[name].steps


def ask(query: str, document: str = "") -> dict[str, str]:
    """Return the prompts that a model's card tells for `input_type`."""
    return {"query": query, "document": document}


def instruct(task: str, end: str = "\nQuery: ") -> str:
    """Return a prompt of the instructed models."""
    return f"Instruct: {task}{end}"


def overriding(overrides: str) -> tuple[str, str]:
    """Return the setting that changes the configuration for vLLM."""
    return "--engine-args", f'{{"hf_overrides": {overrides}}}'


def table(names: Iterable[str] = ()) -> list[Row]:
    """Return rows, all without names."""
    for part in PARTS:
        importlib.import_module(f"tests.acceptance.rows.{part}")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}")
    return [ROWS[name] for name in names or ROWS]
