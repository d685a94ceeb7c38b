"""The libraries of the models' authors in float32: a process of its own, started by `reference`.

The libraries are imported here and nowhere else in the package.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from embedding_service.verify.sides import weight_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from embedding_service.verify.checkpoint import Checkpoint

# FlagEmbedding encodes 512 tokens unless it is told otherwise; this is BGE-M3's own limit.
_BGE_M3_TOKENS = 8192
# `mean_sqrt_len_tokens` has the direction of `mean`.
_POOLINGS = ("cls", "mean", "max", "lasttoken", "weightedmean")
Arrays = dict[str, list[Any]]  # by output a list of rows for each text


class _Library:
    """A loaded model; `poolings` are other ones than its own, which `encode` takes for a kind."""

    name: ClassVar[str]
    model: Any
    max_tokens: int | None
    prompts: dict[str, str]
    poolings: Sequence[str] = ()

    def lengths(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, special ones included, uncut and without a prompt."""
        found = self.model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return list(map(len, found))

    def encode(self, texts: list[str], kind: str) -> Arrays:
        """Return the rows of each text by output, one text at a time: nothing is padded."""
        raise NotImplementedError


class SentenceTransformers(_Library):
    """Dense vectors."""

    name = "sentence-transformers"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = self._load(checkpoint)
        self.max_tokens = _least(self.model.max_seq_length, checkpoint.max_tokens)
        if self.max_tokens is not None:
            self.model.max_seq_length = self.max_tokens
        self._pooling = next((each for each in self.model if hasattr(each, "pooling_mode")), None)
        self.poolings = self._other_poolings()
        self._ours = checkpoint.prompts
        self.prompts = {"plain": self._default(), **self._by_side(), **self._ours}

    def _load(self, checkpoint: Checkpoint) -> Any:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds

        return SentenceTransformer(checkpoint.folder, **_options(checkpoint))

    def _other_poolings(self) -> list[str]:
        own = getattr(self._pooling, "pooling_mode", None)
        return [mode for mode in _POOLINGS if mode != own] if isinstance(own, str) else []

    def _default(self) -> str:
        name = self.model.default_prompt_name
        return self.model.prompts.get(name, "") if name else ""

    def _by_side(self) -> dict[str, str]:
        """Return the prompts that `encode_query` and `encode_document` take."""
        own, default = self.model.prompts, self._default()
        documents = [own[name] for name in ("document", "passage", "corpus") if name in own]
        return {"query": own.get("query", default), "document": next(iter(documents), default)}

    def encode(self, texts: list[str], kind: str) -> Arrays:
        """Return the rows of each text by output, one text at a time: nothing is padded."""
        rows = self._encode(texts, kind)
        return {"dense": [np.asarray(row, np.float32)[None] for row in rows]}

    def _encode(self, texts: list[str], kind: str) -> Any:
        options: dict[str, Any] = {"batch_size": 1, "show_progress_bar": False}
        if kind in self.poolings:
            return self._pooled(texts, kind, options)
        if kind in self._ours:
            return self.model.encode(texts, prompt=self._ours[kind], **options)
        encode = {"query": self.model.encode_query, "document": self.model.encode_document}
        return encode.get(kind, self.model.encode)(texts, **options)

    def _pooled(self, texts: list[str], mode: str, options: dict[str, Any]) -> Any:
        """Encode as if the files named another pooling."""
        assert self._pooling is not None  # noqa: S101 - it has other modes
        own, self._pooling.pooling_mode = self._pooling.pooling_mode, mode
        try:
            return self.model.encode(texts, **options)
        finally:
            self._pooling.pooling_mode = own


class SparseEncoders(SentenceTransformers):
    """Weights of the vocabulary (SPLADE)."""

    def _load(self, checkpoint: Checkpoint) -> Any:
        from sentence_transformers import SparseEncoder  # noqa: PLC0415

        return SparseEncoder(checkpoint.folder, **_options(checkpoint))

    def encode(self, texts: list[str], kind: str) -> Arrays:
        """Return the rows of each text by output, one text at a time: nothing is padded."""
        return {"sparse": [_weighted(row.to_dense()) for row in self._encode(texts, kind)]}


class FlagEmbedding(_Library):
    """BGE-M3's three vectors."""

    name = "FlagEmbedding"

    def __init__(self, checkpoint: Checkpoint) -> None:
        from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415
        from sentence_transformers.util import get_device_name  # noqa: PLC0415

        # One device: given several, it starts a process on each.
        self.model = BGEM3FlagModel(
            checkpoint.folder, use_fp16=False, devices=get_device_name(), batch_size=1
        )
        self.max_tokens = _least(_BGE_M3_TOKENS, checkpoint.max_tokens)
        self.prompts = {"plain": "", "query": "", "document": ""} | checkpoint.prompts

    def encode(self, texts: list[str], kind: str) -> Arrays:
        """Return the rows of each text by output, one text at a time: nothing is padded."""
        found = self.model.encode(
            [self.prompts[kind] + text for text in texts],
            batch_size=1,
            max_length=self.max_tokens,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
        )
        return {
            "dense": [np.asarray(row, np.float32)[None] for row in found["dense_vecs"]],
            "sparse": list(map(weight_rows, found["lexical_weights"])),
            "colbert": [np.asarray(rows, np.float32) for rows in found["colbert_vecs"]],
        }


LIBRARIES: dict[str, type[SentenceTransformers | FlagEmbedding]] = {
    "dense": SentenceTransformers,
    "sparse": SparseEncoders,
    "bge-m3": FlagEmbedding,
}


def _options(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"trust_remote_code": checkpoint.trust_remote_code, "model_kwargs": {"dtype": "float32"}}


def _least(*limits: int | None) -> int | None:
    # A tokenizer without a limit says 1e30.
    known = [limit for limit in limits if limit is not None and limit < 1 << 30]
    return min(known, default=None)


def _weighted(row: Any) -> Any:
    weights = np.asarray(row.cpu(), np.float32)
    ids = np.flatnonzero(weights)
    return np.column_stack([ids, weights[ids]]).astype(np.float32)


class Facts(NamedTuple):
    """The first answer of a library that has loaded a model."""

    label: str
    max_tokens: int | None
    prompts: dict[str, str]
    poolings: Sequence[str]


def serve(pipe: Connection, words: str, key: str, checkpoint: Checkpoint) -> None:
    """Load a model, and answer calls of the library's methods until the pipe ends.

    What libraries print goes into the file `words`.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with Path(words).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    library = LIBRARIES[key](checkpoint)
    label = f"{library.name} {version(library.name)}"
    pipe.send(Facts(label, library.max_tokens, library.prompts, library.poolings))
    with suppress(EOFError):
        while True:
            method, arguments = pipe.recv()
            pipe.send(getattr(library, method)(*arguments))
