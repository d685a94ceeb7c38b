"""The 64 texts whose vectors are pinned: sentences in many scripts, odd characters, long ones.

Short, so that a start waits for them less than a second on two cores of a CPU (MiniLM).
"""

from __future__ import annotations

import json
from importlib import resources
from itertools import chain

_FILE = resources.files(__package__) / "canary_texts.json"
_LONG = (
    " ".join(f"Item {number} of the list costs {number * 7 % 93} euros." for number in range(25)),
    # Longer than the context of small models, so that the side on which it is cut counts.
    " ".join(f"Line {number} says that {number * 31 % 101} follows." for number in range(60)),
)
TEXTS = (*chain.from_iterable(json.loads(_FILE.read_text("utf-8")).values()), *_LONG)
