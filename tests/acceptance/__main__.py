"""The commands of the suite: see `python -m tests.acceptance --help`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

EPILOG = """\
Against any server with an OpenAI-compatible API, wherever it runs:

  python -m tests.acceptance build OUT bge-small-en        # OUT/bge-small-en and its reference
  # serve OUT/bge-small-en as BAAI/bge-small-en-v1.5, the name that `list` shows, in float32
  python -m tests.acceptance compare http://127.0.0.1:8000 OUT bge-small-en

Embeddings are asked for at /v1/embeddings, scores at /v1/rerank. The exit status is 0 if each row
is right, or refused where it may be.
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.acceptance",
        description="Are a server's vectors and scores those of the reference?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser
    names = {"nargs": "*", "metavar": "NAME", "help": "rows; without any, all"}
    add("list", help="show the rows: name, name on the hub, kind, settings")
    for command, help_text in (
        ("build", "write checkpoints with random weights, and what their references compute"),
        ("run", "start this project's gateway on each checkpoint, compare, and stop it"),
        ("compare", "compare a server that runs already"),
    ):
        one = add(command, help=help_text)
        if command == "compare":
            one.add_argument("url", help="of the server, with or without /v1")
        one.add_argument("out", type=Path, help="the folder of checkpoints and references")
        if command == "run":
            one.add_argument("port", type=int, help="a free one, for the gateway")
        one.add_argument("names", **names)
    return parser.parse_args(words)


def main(told: argparse.Namespace) -> int:
    """Run one command; the exit status tells whether all is as it should be."""
    if told.command == "list":
        from tests.acceptance.table import table

        for row in table():
            print(f"{row.name:36} {row.hub:60} {row.kind:16} {' '.join(row.args)}".rstrip())
        return 0
    if told.command == "build":
        from tests.acceptance.build import build

        return min(1, len(build(told.out, told.names)))
    if told.command == "compare":
        from tests.acceptance.compare import compare_all

        results = compare_all(told.url, told.out, told.names)
    else:
        from tests.acceptance.run import run

        results = run(told.out, told.port, told.names)
    wrong = 0
    for result in results:
        print(json.dumps(result, ensure_ascii=False), flush=True)
        wrong += not good(result)
    return min(wrong, 1)


def good(result: dict) -> bool:
    """Whether a family is right, or refused where it may be."""
    refused = result["verdict"] == "NOT SERVED" and result["may_refuse"]
    return result["verdict"] == "RIGHT" or refused


if __name__ == "__main__":
    sys.exit(main(parse()))
