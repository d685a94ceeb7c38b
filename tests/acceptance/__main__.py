"""The commands of the suite: `build`, `run`, `compare`; see README.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(command: str, *words: str) -> int:
    """Run one command; the exit status tells whether all is as it should be."""
    if command == "build":
        from tests.acceptance import again, fed, heads, kinds, values  # noqa: F401 - they add to make's families
        from tests.acceptance.make import build

        build(Path(words[0]), list(words[1:]))
        return 0
    if command == "compare":
        from tests.acceptance import compare

        return not compare.main(words[0], Path(words[1]), list(words[2:]))
    from tests.acceptance.run import run

    wrong = 0
    for result in run(Path(words[0]), int(words[1]), list(words[2:])):
        print(json.dumps(result, ensure_ascii=False), flush=True)
        wrong += not good(result)
    return min(wrong, 1)


def good(result: dict) -> bool:
    """Whether a family is right, or refused where it may be."""
    refused = result["verdict"] == "NOT SERVED" and result["may_refuse"]
    return result["verdict"] == "RIGHT" or refused


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
