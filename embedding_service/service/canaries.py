"""Texts whose vectors are pinned in a file, and how near others come to them.

Cosines, since a vector space promises directions. docs/vectors.md says how the file is used.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from embedding_service import __version__
from embedding_service.errors import BadConfiguration
from embedding_service.types import InputType, Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from embedding_service.types import Floats

    Directions = Mapping[Output, "Direction"]

FORMAT = 1
# The 64 texts that are pinned: sentences in many scripts, odd characters, long ones. Short, so that
# a start waits for them less than a second on two cores of a CPU (MiniLM).
_FILE = resources.files(__package__) / "canary_texts.json"
_LONG = (
    " ".join(f"Item {number} of the list costs {number * 7 % 93} euros." for number in range(25)),
    # Longer than the context of small models, so that the side on which it is cut counts.
    " ".join(f"Line {number} says that {number * 31 % 101} follows." for number in range(60)),
)
TEXTS = (*chain.from_iterable(json.loads(_FILE.read_text("utf-8")).values()), *_LONG)
_MOST_BYTES = 64 << 20  # 64 texts of 4,096 numbers are 1.4 MB
# Least cosines by number format, as docs/numerics.md has them measured: float32's worst was
# 1.000000 (0.9999994 on a GPU), bfloat16's 0.9998. float16 has three more bits than bfloat16.
LEAST_COSINE = {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.999}
_LEAST = min(LEAST_COSINE.values())
# The uses of texts: each kind of prompt is under test. Half of the texts come without one.
_KINDS = (None, InputType.QUERY, None, InputType.DOCUMENT)


def _bytes(numbers: npt.ArrayLike, kind: str) -> bytes:
    return np.asarray(numbers, kind).tobytes()


class Direction(msgspec.Struct, frozen=True, omit_defaults=True):
    """A vector: float32 `values`, little-endian, at int64 `indices`, or at all of them."""

    values: bytes
    indices: bytes | None = None

    @classmethod
    def of(cls, values: npt.ArrayLike, indices: npt.ArrayLike | None = None) -> Direction:
        """Return the direction of numbers, each at its index if there are some."""
        return cls(_bytes(values, "<f4"), None if indices is None else _bytes(indices, "<i8"))

    @property
    def numbers(self) -> Floats:
        """The values as an array."""
        return np.frombuffer(self.values, "<f4")

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """The indices as an array; all, if none are named."""
        if self.indices is None:
            return np.arange(len(self.numbers), dtype=np.int64)
        return np.frombuffer(self.indices, "<i8")

    def is_sound(self) -> bool:
        """Whether these are finite numbers, each with its index."""
        try:
            return len(self.numbers) == len(self.places) and bool(np.isfinite(self.numbers).all())
        except ValueError:  # not a whole number of numbers
            return False


class Canary(msgspec.Struct, frozen=True):
    """A text, how it is asked about, and its vectors; ColBERT's are summed up."""

    text: str
    input_type: InputType | None
    vectors: dict[Output, Direction]


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """A file of canaries: of which model, in which space and build, in which number format."""

    canaries: int
    model: str
    space: str
    build: str
    dtype: str
    service: str
    pinned_at: str
    texts: list[Canary]

    @property
    def outputs(self) -> frozenset[Output]:
        """The kinds of vectors that every text has."""
        return frozenset(self.texts[0].vectors)

    @property
    def dimension(self) -> int | None:
        """The size of dense vectors, if there are some."""
        dense = self.texts[0].vectors.get(Output.DENSE)
        return None if dense is None else len(dense.numbers)


def asked() -> list[tuple[str, InputType | None]]:
    """Return the built-in texts, each with its use."""
    return list(zip(TEXTS, cycle(_KINDS), strict=False))


def pin(vectors: Sequence[Directions], *, model: str, space: str, build: str, dtype: str) -> Pinned:
    """Return what is to be kept of the vectors of the texts that are `asked`."""
    texts = [
        Canary(text, use, dict(found)) for (text, use), found in zip(asked(), vectors, strict=True)
    ]
    return Pinned(
        canaries=FORMAT,
        model=model,
        space=space,
        build=build,
        dtype=dtype,
        service=__version__,
        pinned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        texts=texts,
    )


def write(path: Path, pinned: Pinned) -> None:
    """Write a file, all or nothing of it. Raises `BadConfiguration`."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(pinned), indent=1))
        part.replace(path)
    except OSError as error:
        raise BadConfiguration(f"{path}: {error.strerror}") from None


def read(path: Path) -> Pinned:
    """Read a file. Raises `BadConfiguration` in one line."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES)
        pinned = msgspec.json.decode(raw, type=Pinned)
    except OSError as error:
        raise _wrong(path, error.strerror) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(path, f"it is not a file of canaries: {error}") from None
    if pinned.canaries != FORMAT:
        raise _wrong(path, f"it is of format {pinned.canaries}, and this version reads {FORMAT}")
    kinds = {frozenset(canary.vectors) for canary in pinned.texts}
    if len(kinds) != 1 or kinds == {frozenset()}:
        raise _wrong(path, "it has no texts, or some without a vector")
    for canary in pinned.texts:
        if not canary.text or not all(vector.is_sound() for vector in canary.vectors.values()):
            raise _wrong(path, f"the vector of {canary.text[:40]!a} is damaged")
    return pinned


def _wrong(path: Path, why: str | None) -> BadConfiguration:
    return BadConfiguration(
        f"canary_file: {path}: {why}; `embedding-service canary pin` writes one"
    )


def threshold(*dtypes: str) -> float:
    """Return the least cosine between vectors of these number formats."""
    return min(LEAST_COSINE.get(dtype, _LEAST) for dtype in dtypes)


def worst(pinned: Pinned, found: Sequence[Directions]) -> tuple[float, int]:
    """Return the least cosine of all pinned vectors with those found, and the text it is of."""
    cosines = list(map(_least, pinned.texts, found))
    place = int(np.argmin(cosines))
    return cosines[place], place


def _least(canary: Canary, found: Directions) -> float:
    return min(cosine(vector, found[output]) for output, vector in canary.vectors.items())


def cosine(one: Direction, other: Direction) -> float:
    """Return the cosine of two vectors, of which absent places are 0; 1 if both are nothing."""
    _, here, there = np.intersect1d(one.places, other.places, return_indices=True)
    a, b = one.numbers.astype(np.float64), other.numbers.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0.0:
        return float(not a.any() and not b.any())
    return float(a[here] @ b[there]) / lengths


def directions(by_output: Mapping[Output, Any], index: int) -> dict[Output, Direction]:
    """Return the vectors of one input as they are compared."""
    return {output: _direction(output, values[index]) for output, values in by_output.items()}


def _direction(output: Output, value: Any) -> Direction:
    if output is Output.SPARSE:
        return Direction.of(value.values, value.indices)
    return Direction.of(value.sum(axis=0) if output is Output.COLBERT else value)
