"""Refusing texts without a character in them, in the words of the system that did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedding_service.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedding_service.dialects.dialect import Tree

    Check = Callable[[Tree], None]


def refuse_blank(*fields: str, message: str, empty: str | None = None) -> Check:
    """Return a check of these fields: texts, lists of texts, or of objects with texts.

    `message` may hold `{index}` and `{place}`; `empty` is for a list without items. It raises
    `InvalidRequest`.
    """

    def check(tree: Tree) -> None:
        for field in fields:
            given = tree.get(field)
            if empty is not None and given == []:
                raise InvalidRequest(empty, param=field)
            for index, place, text in _texts(field, given):
                if not text or text.isspace():  # stripped, it would be a copy
                    raise InvalidRequest(message.format(index=index, place=place), param=place)

    return check


def _texts(field: str, given: Any) -> Iterator[tuple[int, str, str]]:
    """Yield the number, the place and the text of whatever is one; types are checked elsewhere."""
    if isinstance(given, str):
        yield 0, field, given
    for index, item in enumerate(given if isinstance(given, list) else ()):
        place = f"{field}[{index}]"
        if isinstance(item, str):
            yield index, place, item
        elif isinstance(item, dict):
            names = ("query", "document") if field == "pairs" else ("text",)
            for name in names:
                if isinstance(item.get(name), str):
                    yield index, f"{place}.{name}", item[name]
