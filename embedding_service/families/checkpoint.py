"""The small files of a checkpoint, in a folder or on the Hub; their meaning is known elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class ModelRefused(Exception):
    """The model cannot be served; the message is one line for its operator."""


class Files:
    """The files of a `model`: a folder, or a Hub repository at `revision`.

    From the Hub an absent file is fetched, unless `HF_HUB_OFFLINE` is set or it does not answer.
    """

    def __init__(
        self, model: str, *, revision: str | None = None, cache_dir: str | None = None
    ) -> None:
        self.model = model
        self._options: Json = {"revision": revision, "cache_dir": cache_dir}
        self._fresh = False  # whether the Hub has been asked which commit it has
        self._reachable = True

    def path(self, place: str) -> Path | None:
        """Return where the file at this place in the checkpoint is, or None where it has none."""
        if Path(self.model).is_dir():
            local = Path(self.model, place)
            return local if local.is_file() else None
        if self._fresh:
            known, path = self._cached(place)
            if known or not self._reachable:
                return path
        return self._fetched(place)

    def _cached(self, place: str) -> tuple[bool, Path | None]:
        """Tell whether the local cache knows of a file, which may be that there is none."""
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - heavy, at start only

        found = try_to_load_from_cache(self.model, place, **self._options)
        return found is not None, Path(found) if isinstance(found, str) else None

    def _fetched(self, place: str) -> Path | None:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - heavy, and at start-up only
        from huggingface_hub.errors import (  # noqa: PLC0415
            EntryNotFoundError,
            LocalEntryNotFoundError,
        )

        try:
            return Path(hf_hub_download(self.model, place, **self._options))
        except LocalEntryNotFoundError:
            self._reachable = False
            return None
        except EntryNotFoundError:
            return None
        finally:
            self._fresh = True

    def json(self, place: str) -> Any:
        """Return what a JSON file says, {} where there is none. Raises `ModelRefused`."""
        path = self.path(place)
        if path is None:
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelRefused(f"{place} is not JSON: {error}") from error
