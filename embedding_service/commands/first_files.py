"""The files that `init` writes, from templates: settings, and what runs them elsewhere.

A line of a template that begins with `@WORD ` is kept where WORD is wanted; `$name` is filled in.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from getpass import getuser
from importlib.resources import files
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Final

import yaml

from embedding_service.errors import BadConfiguration

MODELS: Final = {
    "qwen3-0.6b": "Qwen/Qwen3-Embedding-0.6B",
    "qwen3-4b": "Qwen/Qwen3-Embedding-4B",
    "qwen3-8b": "Qwen/Qwen3-Embedding-8B",
    "bge-m3": "BAAI/bge-m3",
}
# The reranker that was trained beside each embedder; one for many languages beside others.
_RERANKERS: Final = {"Qwen3-Embedding": "Qwen/Qwen3-Reranker-0.6B"}
_OTHER_RERANKER: Final = "BAAI/bge-reranker-v2-m3"
PLATFORMS: Final = {
    "systemd": "embedding-service.service",
    "compose": "compose.yaml",
    "kubernetes": "kubernetes.yaml",
}
_NO_CONTAINERS: Final = (None, "systemd")
_PLAIN: Final = re.compile(r"[\w./-]+", re.ASCII)
_MODEL_FILES: Final = ("config.json", "modules.json")  # old layouts have but the second
SCHEMA: Final = "embedding-service.schema.json"


@dataclass(frozen=True, slots=True)
class Choice:
    """A model to serve, and how; `file` is the settings' path."""

    model: str
    folder: Path | None
    file: Path
    reranker: bool = False
    gpu: bool = False
    platform: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """The values of `$name` in the templates."""
        reranker = self._reranker()
        return {
            "name": _scalar(self.model),
            "alias": _scalar(_alias(self.model)),
            "path": _scalar(self._model_path()),
            "folder": _scalar(str(self.folder)),
            "reranker": reranker,
            "reranker_alias": _alias(reranker),
            "title": self._title(),
            "device": "cuda" if self.gpu else "cpu",
            "tag": "cuda" if self.gpu else "cpu",
            "dockerfile": "Dockerfile" if self.gpu else "Dockerfile.cpu",
            "schema": SCHEMA,
            "file": "FILE" if str(self.file) == "-" else self.file.name,
            "config": _in_unit(f"EMBEDDING_CONFIG={self.file.absolute()}"),
            "program": _in_unit(str(Path(sys.executable).with_name("embedding-service"))),
            "user": getuser(),
            "unit": PLATFORMS["systemd"],
            "manifest": PLATFORMS["kubernetes"],
        }

    @property
    def words(self) -> set[str]:
        """The words whose lines are kept."""
        qwen, one = "Qwen3-Embedding" in self.model, "two" if self.reranker else "one"
        wanted = {
            one: True,
            f"{one}_alias": _alias(self.model) != self.model,
            f"{one}_folder": self.folder is not None,
            f"{one}_hub": self.folder is None,
            "folder": self.folder is not None,
            "long": qwen,
            f"{one}_query": qwen,
            "here": self.platform in _NO_CONTAINERS,
            "gpu": self.gpu,
            "cpu": not self.gpu,
            "root": getuser() == "root",
            "user": getuser() != "root",
        }
        return {word for word, kept in wanted.items() if kept}

    @property
    def hidden(self) -> list[Path]:
        """Files that the systemd unit needs and cannot see: it has its own /tmp, and no /root."""
        if self.platform != "systemd":
            return []
        needed = [Path(sys.prefix), self.file.absolute(), *filter(None, [self.folder])]
        return [path for path in needed if _is_hidden(path)]

    def _reranker(self) -> str:
        beside = (name for family, name in _RERANKERS.items() if family in self.model)
        return next(beside, _OTHER_RERANKER)

    def _title(self) -> str:
        beside = f" and {self._reranker()}" if self.reranker else ""
        return f"{' '.join(self.model.split())}{beside} on a {'GPU' if self.gpu else 'CPU'}"

    def _model_path(self) -> str:
        """Return the folder as the gateway sees it: containers have it under /models."""
        if self.folder is None or self.platform in _NO_CONTAINERS:
            return str(self.folder)
        return "/models/" + re.sub(r"[^\w.-]+", "-", self.folder.name)


def _is_hidden(path: Path) -> bool:
    places = ["/tmp", "/var/tmp"]  # noqa: S108
    if getuser() == "root":
        places.append("/root")
    return any(path.is_relative_to(place) for place in places)


def find_model(text: str, *, here: bool = True) -> tuple[str, Path | None]:
    """Read a model's short name, its name on the hub, or a folder's path: its name and its folder.

    Raises `BadConfiguration` for a slip in a short name, and if there is no model in the folder,
    which has to be `here`.
    """
    path = Path(text).expanduser()
    if text in MODELS:
        return MODELS[text], None
    if not (path.is_dir() or text.startswith((".", "/", "~"))):
        if "/" not in text and (meant := get_close_matches(text.lower(), MODELS, n=1)):
            raise BadConfiguration(f"--model: there is no {text} here; did you mean {meant[0]}?")
        return text, None
    folder = Path(os.path.abspath(path))  # noqa: PTH100 - without `..`, and links as they are
    if here and not any((folder / name).is_file() for name in _MODEL_FILES):
        raise BadConfiguration(
            f"--model: {folder} holds no config.json, so it is not a model; "
            f"give {', '.join(MODELS)}, a hub's name, or a folder"
        )
    return folder.name, folder


def settings_text(choice: Choice) -> str:
    """Return the YAML file of settings."""
    return _filled("settings.yaml", choice)


def platform_text(choice: Choice) -> str:
    """Return the file for systemd, Compose or Kubernetes."""
    assert choice.platform is not None  # noqa: S101 - the caller has asked
    _, settings = settings_text(choice).split("\n", 1)  # the first line is for editors
    return _filled(PLATFORMS[choice.platform], choice, settings=indent(settings.rstrip(), "    "))


def _filled(name: str, choice: Choice, **more: str) -> str:
    text = (files("embedding_service.commands") / "templates" / name).read_text("utf-8")
    kept = (_kept(line, choice.words) for line in text.splitlines())
    lines = [line for line in kept if line is not None]
    return Template("\n".join(lines) + "\n").substitute(choice.names, **more)


def _kept(line: str, words: set[str]) -> str | None:
    if not line.startswith("@"):
        return line
    word, _, rest = line[1:].partition(" ")
    return rest if word in words else None


def _alias(model: str) -> str:
    return model.rpartition("/")[2].lower()


def _scalar(text: str) -> str:
    """Return a text as YAML has it, in quotes where it needs them."""
    plain = _PLAIN.fullmatch(text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _in_unit(text: str) -> str:
    """Return a word of a systemd unit; `%` begins a specifier there."""
    text = text.replace("%", "%%")
    return json.dumps(text, ensure_ascii=False) if " " in text else text
