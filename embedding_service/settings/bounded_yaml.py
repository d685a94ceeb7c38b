"""YAML that takes no more than its size to read: bounds on its depth, and on what `<<` repeats.

libyaml composes on C's stack: 20,000 brackets end the process, which may be serving (SIGHUP).
"""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 64
# Entries of a mapping by way of `<<`: a few lines that merge one another would make millions.
_MOST_MERGED = 1000
_EventLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class TooMuch(yaml.YAMLError):
    """A file that is deeper, or repeats more, than anybody could mean; no secret is in its text."""


def check_depth(text: str) -> None:
    """Raise `TooMuch` for a text that is nested too deeply. One MB of keys takes 0.1 s.

    Whoever loads it sees what else is wrong.
    """
    if _has_more_levels(text):
        raise TooMuch(f"is nested more than {_DEEPEST} levels deep")


def _has_more_levels(text: str) -> bool:
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_EventLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _DEEPEST:
                return True
    except (yaml.YAMLError, ValueError):
        pass
    return False


class FewMerges:
    """Mixin for loaders: what a mapping takes over from others is bounded."""

    def flatten_mapping(self, node: Any) -> None:
        """Put the entries of merged mappings into this one. Raises `TooMuch`."""
        own = len(node.value)
        super().flatten_mapping(node)  # type: ignore[misc]
        if own < len(node.value) > _MOST_MERGED:
            raise TooMuch(f"merges more than {_MOST_MERGED} entries by `<<`")
