"""The files of a folder that can change a model's numbers: a stamp, and a digest."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# A deny-list: a file of an unknown kind counts. These are for people, for other programs than vLLM
# (those of `hub.py`, which are not fetched), left over from training (vLLM skips the `.bin` and
# `.pt` among them as well), or hidden.
_SUFFIXES_WITHOUT_EFFECT = frozenset({
    ".bak", ".csv", ".gif", ".html", ".ipynb", ".jpeg", ".jpg", ".log", ".md", ".pdf", ".png",
    ".rst", ".svg", ".webp",
    ".gguf", ".h5", ".mlmodel", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite",
})  # fmt: skip
_NAMES_WITHOUT_EFFECT = re.compile(
    r"\..*|(?i:license|notice|readme)\b.*|consolidated.*|openvino_model\..*|.*\.onnx\.data"
    r"|training_args\.bin|(optimizer|scheduler|scaler)\.(bin|pt)|rng_state.*\.pth"
    r"|trainer_state\.json|((all|predict|test|train)|.*eval.*)_results\.(json|txt)"
    r"|events\.out\.tfevents.*|nohup\.out|requirements\.txt|Dockerfile|gitattributes"
    r"|(MD5|SHA1|SHA256)SUMS|Thumbs\.db|.*~"
)
_FOLDERS_WITHOUT_EFFECT = re.compile(r"\..*|onnx|openvino|coreml|original|__pycache__|runs")
# Layers that vLLM makes one of; a "gate_proj" is not beside each "up_proj", nor a "k_proj" beside
# each "q_proj" (DeepSeek's attention).
_JOINED = {
    "key": ("query", "value"),
    "value": ("query", "key"),
    "k_proj": ("q_proj", "v_proj"),
    "v_proj": ("q_proj", "k_proj"),
    "gate_proj": ("up_proj",),
}
# Names of the vectors of words.
_WORDS = re.compile(
    r"\b(word_embeddings?|tok_embeddings|token_embedding|embed_tokens|embed_in|shared|wte)\."
)
_LONGEST_TABLE_BYTES = 100_000_000  # the format's own limit
_SECOND_COPY = re.compile(r"pytorch_model.*\.bin(\.index\.json)?")


def chosen(folder: Path) -> set[str]:
    """Return the names of the files that transformers loads the weights from, if there are any.

    One file comes before its shards and their index, and safetensors before others, whatever else
    is in the folder (`_get_resolved_checkpoint_files` in transformers 5.19). Raises `ModelRefused`
    about an index that cannot be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return {name}
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    return set()


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelRefused(
            f"{index} cannot be read ({type(error).__name__}: {error}); the download may be "
            "incomplete"
        ) from error


def some_begin(folder: Path, starts: tuple[str, ...]) -> bool:
    """Whether some weights have names that begin so; of safetensors only."""
    paths = map(folder.joinpath, chosen(folder))
    return any(name.startswith(starts) for name in _tensors(filter(Path.is_file, paths)))


def absent_part(paths: Iterable[Path]) -> str | None:
    """Return the name of a tensor that is not there, and that vLLM does not miss.

    It leaves the vectors of words, and a part of those tensors that it joins, as it finds the
    memory. Of safetensors only.
    """
    names = _tensors(paths)
    if names and not any(map(_WORDS.search, names)):
        return "word_embeddings"
    return min(names.union(*map(_joined_with, names)) - names, default=None)


def _tensors(paths: Iterable[Path]) -> set[str]:
    """Return the names of the tensors in those of the files that are safetensors."""
    tables = (_table(path) for path in paths if path.suffix == ".safetensors")
    return set().union(*tables)


def _joined_with(name: str) -> Iterator[str]:
    *above, layer, kind = ["", *name.split(".")]
    others = _JOINED.get(layer, ()) if kind in ("weight", "bias") else ()  # no scale of a cache
    for other in others:
        yield ".".join([*above, other, kind]).lstrip(".")


def weights_stamp(folder: str) -> str:
    """Return a hash of the names, sizes and times of the files, which holds on this machine."""
    total = hashlib.sha256(os.fsencode(Path(folder).resolve()))
    for place, path in files_of(folder):
        total.update(b"\0%b\0%b" % (os.fsencode(place), file_stamp(path).encode()))
    return total.hexdigest()


def file_stamp(path: Path) -> str:
    """Return what changes whenever a file does.

    Copies may keep size and time of modification, as images of containers do; the time of the
    change of the inode is the system's own.
    """
    status = path.stat()
    times = f"{status.st_mtime_ns}-{status.st_ctime_ns}"
    return f"{status.st_size}-{times}-{status.st_ino}"


def weights_digest(folder: str, digest_of: Callable[[Path], bytes] | None = None) -> str:
    """Return a hash of the files' contents, the same on every machine; reading them takes a while.

    `digest_of` may know a file's sha256 without reading it. Raises `OSError`.
    """
    total = hashlib.sha256()
    for place, path in files_of(folder):
        total.update(os.fsencode(place) + b"\0" + (digest_of or sha256)(path))
    return total.hexdigest()


def sha256(path: Path) -> bytes:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def weights_bytes(folder: str, width: int) -> int:
    """Return what the weights in a folder take once they are loaded, `width` bytes a number.

    Quantised numbers keep their size. Without safetensors, the size of the other weight files.
    """
    paths = [path for _, path in files_of(folder)]
    if tensors := [path for path in paths if path.suffix == ".safetensors"]:
        return sum(_loaded_bytes(path, width) for path in tensors)
    return sum(path.stat().st_size for path in paths if path.suffix in (".bin", ".pt"))


def _loaded_bytes(path: Path, width: int) -> int:
    return sum(_tensor_bytes(tensor, width) for tensor in _table(path).values())


def _table(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name. Raises `ModelRefused` if it is not whole."""
    try:
        return _read_table(path)
    except (ValueError, struct.error) as error:
        raise ModelRefused(
            f"the weights in {path} cannot be read ({error}); the download may be incomplete"
        ) from error


def _read_table(path: Path) -> dict[str, Any]:
    """Return the head of a file: https://huggingface.co/docs/safetensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_TABLE_BYTES:
            raise ValueError("it is no safetensors file")
        table: dict[str, Any] = json.loads(file.read(length))
    table.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in table.values()), default=0)
    if path.stat().st_size < 8 + length + end:
        raise ValueError("it is cut off")
    return table


def _tensor_bytes(tensor: dict[str, Any], width: int) -> int:
    if tensor["dtype"] in ("F64", "F32", "BF16", "F16"):
        return int(width * math.prod(tensor["shape"]))
    start, end = tensor["data_offsets"]
    return int(end - start)


def files_of(folder: str) -> Iterator[tuple[Path, Path]]:
    """Yield the place in the folder and the path of each file that can change numbers.

    Weights that are there as safetensors are not read from other files, nor fetched from the hub.
    Raises `OSError`.
    """
    for path in sorted(_inside(Path(folder), frozenset())):
        place = path.relative_to(folder)
        if _counts(place) and path.is_file() and not _is_second_copy(path):
            yield place, path


def _inside(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield what is in a folder and those below, which may be links, as they are to the engine."""
    if (real := folder.resolve()) in above:  # a link to where it is itself
        return
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif not _FOLDERS_WITHOUT_EFFECT.fullmatch(path.name):
            yield from _inside(path, above | {real})


def _counts(place: Path) -> bool:
    named = _NAMES_WITHOUT_EFFECT.fullmatch(place.name)
    return not (named or place.suffix.lower() in _SUFFIXES_WITHOUT_EFFECT)


def _is_second_copy(path: Path) -> bool:
    if _SECOND_COPY.fullmatch(path.name) is None:
        return False
    return next(path.parent.glob("*.safetensors"), None) is not None
