"""The files of a folder that can change a model's numbers: a stamp, and a digest."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".json", ".txt", ".model"})
_OTHER_RUNTIMES = frozenset({"onnx", "openvino"})


def weights_stamp(folder: str) -> str:
    """Return a hash of the names, sizes and times of the files, which holds on this machine."""
    total = hashlib.sha256(str(Path(folder).resolve()).encode())
    for place, path in files_of(folder):
        status = path.stat()
        total.update(f"\0{place}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return total.hexdigest()


def weights_digest(folder: str, *, stamp: str) -> str:
    """Return a hash of the files' contents, the same on every machine; reading them takes a while.

    If they are not (or no longer) those of the `stamp`, it is the stamp itself, which no other
    machine has.
    """
    total = hashlib.sha256()
    try:
        for place, path in files_of(folder):
            with path.open("rb") as file:
                total.update(f"{place}\0".encode() + hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest() if weights_stamp(folder) == stamp else stamp
    except OSError:
        return stamp


def weights_bytes(folder: str, width: int) -> int:
    """Return what the weights in a folder take once they are loaded, `width` bytes a number.

    Quantised numbers keep their size. Without safetensors, the size of the other weight files.
    """
    paths = [path for _, path in files_of(folder)]
    if tensors := [path for path in paths if path.suffix == ".safetensors"]:
        return sum(_loaded_bytes(path, width) for path in tensors)
    return sum(path.stat().st_size for path in paths if path.suffix in (".bin", ".pt"))


def _loaded_bytes(path: Path, width: int) -> int:
    """Read the table of tensors before the numbers: https://huggingface.co/docs/safetensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table: dict[str, Any] = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return sum(_tensor_bytes(tensor, width) for tensor in table.values())


def _tensor_bytes(tensor: dict[str, Any], width: int) -> int:
    if tensor["dtype"] in ("F64", "F32", "BF16", "F16"):
        return int(width * math.prod(tensor["shape"]))
    start, end = tensor["data_offsets"]
    return int(end - start)


def files_of(folder: str) -> Iterator[tuple[Path, Path]]:
    """Yield the place in the folder and the path of each file that can change numbers."""
    for path in sorted(Path(folder).rglob("*")):
        place = path.relative_to(folder)
        if path.suffix in _SUFFIXES and path.is_file() and _OTHER_RUNTIMES.isdisjoint(place.parts):
            yield place, path
