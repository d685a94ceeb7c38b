"""Write the checkpoints of rows, and what their references compute from them."""

from __future__ import annotations

import json
import shutil
import traceback
from typing import TYPE_CHECKING

import torch

from tests.acceptance import reference
from tests.acceptance.nets import SEED
from tests.acceptance.steps import native
from tests.acceptance.table import table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.table import Row


def build(out: Path, names: list[str]) -> list[str]:
    """Make OUT/NAME and OUT/NAME.reference.json, all without names; return which failed."""
    failed = []
    for row in table(names):
        try:
            count = build_one(out, row)
        except Exception:  # noqa: BLE001 - the others are made all the same
            traceback.print_exc()
            failed.append(row.name)
            print(f"{row.name:36} FAILED", flush=True)
        else:
            print(f"{row.name:36} {row.hub:60} {count} cases", flush=True)
    return failed


def build_one(out: Path, row: Row) -> int:
    """Make one row's files; return how many cases its reference has."""
    path = out / row.name
    for folder in (path, native(path)):
        shutil.rmtree(folder, ignore_errors=True)
    path.mkdir(parents=True)
    torch.manual_seed(SEED)
    row.make(path)
    told = {
        "name": row.name,
        "hub": row.hub,
        "kind": row.kind,
        "args": row.args,
        "tolerance": row.tolerance,
        "may_refuse": row.may_refuse or row.kind == "refuse",
        **reference.compute(path, row),
    }
    (out / f"{row.name}.reference.json").write_text(json.dumps(told))
    return len(told["cases"])
