"""The digest of a model's files: read while the engine loads, and kept for the next start.

A folder from the hub and a copy of it have the same digest: contents count, places and times not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service.families.weights import file_stamp, sha256, weights_digest, weights_stamp
from embedding_service.worker.backend import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

# Smaller files are read again each time: looking a digest up takes as long.
_LEAST_KEPT_BYTES = 1 << 20
_FOLDER = "embedding-service/digests"


class Fingerprint:
    """Begins to read the files of a folder at once; `result` waits for the digest."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._digests = Digests(cache_folder())
        with self._readable():
            self._stamp = weights_stamp(folder)  # as the files are before the engine reads them
        self._digest: str | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._read, name="fingerprint", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            digest = weights_digest(self._folder, self._digests.of)
            if weights_stamp(self._folder) == self._stamp:
                self._digest = digest
        except OSError as error:
            self._error = error

    def result(self) -> str:
        """Return the digest of the files that were loaded.

        Raises `ModelRefused` if one cannot be read, or if nobody knows which contents the engine
        has read. Times, owners and modes may change meanwhile.
        """
        self._thread.join()
        with self._readable():
            if self._error is not None:
                raise self._error
            if self._is_as_before():
                return str(self._digest)
        raise ModelRefused(
            f"the model's files changed while the engine read them; start it again once nothing "
            f"writes to {self._folder}"
        )

    def _is_as_before(self) -> bool:
        if self._digest is None:
            return False
        if weights_stamp(self._folder) == self._stamp:
            return True
        return weights_digest(self._folder, self._digests.of) == self._digest

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Raise `ModelRefused` for an `OSError`."""
        try:
            yield
        except OSError as error:
            raise ModelRefused(
                f"{_shown(error.filename or self._folder)} cannot be read, and may make the "
                f"model's numbers: {error.strerror}; let the service's user read it, or remove it"
            ) from None


def _shown(path: str | bytes) -> str:
    """Return a path as text, whatever bytes are in it."""
    return os.fsencode(path).decode(errors="replace")


def fingerprint(model: str) -> Fingerprint | None:
    """Begin to read a folder; None for a name, which vLLM looks up itself."""
    return Fingerprint(model) if model and Path(model).is_dir() else None


def cache_folder() -> Path:
    """Return where digests are kept; the worker's variables name a place that can be written to."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / _FOLDER
    try:
        return Path.home() / ".cache" / _FOLDER
    except RuntimeError:  # a user without a home, in a container: nothing is kept
        return Path(os.devnull) / _FOLDER


class Digests:
    """Digests of large files by place, size and times; a folder that takes none costs time only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: Path) -> bytes:
        """Return the sha256 of a file. Raises `OSError` if it cannot be read."""
        path = path.resolve()
        if path.stat().st_size < _LEAST_KEPT_BYTES:
            return sha256(path)
        stamp = file_stamp(path)
        entry = self._folder / hashlib.sha256(str(path).encode()).hexdigest()[:32]
        if (known := _read(entry, stamp)) is not None:
            return known
        digest = sha256(path)
        if file_stamp(path) == stamp:
            _write(entry, f"{stamp} {digest.hex()}")
        return digest


def _read(entry: Path, stamp: str) -> bytes | None:
    """Return the digest that was kept under this stamp."""
    try:
        kept, digest = entry.read_text(encoding="ascii").split()
        known = bytes.fromhex(digest)
    except (OSError, ValueError):  # none, or not one of ours
        return None
    return known if kept == stamp and len(known) == hashlib.sha256().digest_size else None


def _write(entry: Path, text: str) -> None:
    """Keep an entry, all or nothing of it; several workers may do so at the same time."""
    part = entry.with_name(f"{entry.name}.{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(text, encoding="ascii")
        part.replace(entry)
