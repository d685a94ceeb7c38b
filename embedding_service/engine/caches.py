"""Where an engine may keep what it compiles and downloads, on machines with unusual file systems.

Libraries keep it under the user's home or in the temporary directory. A container's user may have
no home, its root be read-only and its /tmp forbid execution, which compiled kernels need.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Folders under our own, by the variable that names them to the libraries.
_FOLDERS = {
    "XDG_CACHE_HOME": "",
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "HF_HOME": "huggingface",
    "HF_MODULES_CACHE": "huggingface/modules",
}
_READ_ONLY_IS_FINE = frozenset({"HF_HOME"})  # models that are there are only read


def variables(environ: Mapping[str, str], runtime_dir: Path | None) -> dict[str, str]:
    """Return the variables that move caches to where they work; none on an ordinary machine.

    The operator's own variables stay as they are.
    """
    wanted = _of_the_user(environ)
    unusable = [name for name, place in _places(environ) if not _works(name, place)]
    moved = [name for name in unusable if name not in environ]
    if not moved and "HOME" not in wanted:
        return wanted
    folder = next(_candidates(environ, runtime_dir), None)
    if folder is None:
        wanted.pop("HOME", None)
        return wanted  # `unusable_variables` says so once an engine has failed
    wanted |= {name: str(folder / _FOLDERS[name]) for name in moved}
    return wanted | ({"HOME": str(folder)} if "HOME" in wanted else {})


def unusable_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of caches that can be written to, or executed from, nowhere."""
    return [name for name, place in _places(environ) if not _works(name, place)]


def _of_the_user(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a name and a home for a user without an entry in passwd; torch asks for both."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        user = {"USER": f"user-{os.getuid()}", "HOME": ""}
        return {name: text for name, text in user.items() if not environ.get(name)}
    return {}


def _places(environ: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    """Yield the folder that the libraries would use for each variable, or None for no idea."""
    home = Path(environ["HOME"]) if environ.get("HOME") else _home()
    cache = _path(environ, "XDG_CACHE_HOME", home and home / ".cache")
    hub = _path(environ, "HF_HOME", cache and cache / "huggingface")
    yield "XDG_CACHE_HOME", cache
    yield "VLLM_CACHE_ROOT", _path(environ, "VLLM_CACHE_ROOT", cache and cache / "vllm")
    yield "TORCHINDUCTOR_CACHE_DIR", _path(environ, "TORCHINDUCTOR_CACHE_DIR", _temporary())
    triton = home and home / ".triton" / "cache"
    yield "TRITON_CACHE_DIR", _path(environ, "TRITON_CACHE_DIR", triton)
    yield "HF_HOME", hub
    yield "HF_MODULES_CACHE", _path(environ, "HF_MODULES_CACHE", hub and hub / "modules")


def _path(environ: Mapping[str, str], name: str, default: Path | None) -> Path | None:
    return Path(environ[name]) if environ.get(name) else default


def _home() -> Path | None:
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _temporary() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None


def _works(name: str, place: Path | None) -> bool:
    if place is not None and name in _READ_ONLY_IS_FINE and (place / "hub").is_dir():
        return True
    return place is not None and is_usable(place)


def is_usable(place: Path) -> bool:
    """Tell whether files can be made in a folder, or the one that it would be made in, and run."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        flags = os.statvfs(place).f_flag
    except OSError:
        return False
    return os.access(place, os.W_OK | os.X_OK) and not flags & (os.ST_RDONLY | os.ST_NOEXEC)


def _candidates(environ: Mapping[str, str], runtime_dir: Path | None) -> Iterator[Path]:
    """Yield folders of ours that work: the user's cache, then systemd's for this service."""
    name = f"embedding-service-{os.getuid()}"
    given = environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    cache = dict(_places(environ))["XDG_CACHE_HOME"]
    parents = [cache, Path(given) if given else None, runtime_dir]
    for parent in (*parents, _temporary(), Path("/var/tmp")):  # noqa: S108 - checked below
        if parent is not None and is_usable(parent) and _is_ours(parent / name):
            yield parent / name


def _is_ours(folder: Path) -> bool:
    """Make a folder that nobody else may write to, or find it so."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
