"""From a query and a document to the token ids of a cross-encoder; over-long documents are cut.

Two forms: the tokenizer's own pair template (`[CLS] q [SEP] d [SEP]`), or a prompt in words whose
last position answers yes or no (Qwen3-Reranker). The query is never cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families import profiles
from embedding_service.service.prompts import ENCODE_TEXTS, check_total
from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import RerankJob, TokenIds


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """Token ids ready for the engine; `boundaries` is None where the model has no token types."""

    ids: list[TokenIds]
    boundaries: list[int] | None
    truncated: tuple[int, ...]

    @property
    def total(self) -> int:
        """Tokens that the engine will read."""
        return sum(map(len, self.ids))


class PairEncoder:
    """The tokenizer and the pair template of one reranker."""

    def __init__(self, facts: ModelFacts, tokenizer_json: bytes, options: ModelOptions) -> None:
        self.facts = facts
        self.max_tokens = facts.max_tokens
        self.name = options.model_name
        self.prompt = profiles.find(model_name=options.model_name, architecture=facts.architecture).pair_prompt
        self.default_instruction = options.default_instruction or (self.prompt.instruction if self.prompt else None)
        self._tokenizer: Tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if self.prompt is None:
            self._head, self._middle, self._tail, self._has_types = _pair_template(self._tokenizer)
        else:
            self._head, self._middle, self._tail = self._ids(self.prompt.head), [], self._ids(self.prompt.tail)
            self._has_types = False

    def prepare(self, job: RerankJob, *, max_total: int) -> PreparedPairs:
        """Tokenise every pair. Raises `InvalidRequest`, `ContextLengthExceeded` if a query alone is too long."""
        if job.instruction is not None and self.prompt is None:
            raise InvalidRequest(
                f"{self.name} was not trained with instructions; leave instruction out", param="instruction"
            )
        ids, boundaries, truncated, total = [], [], [], 0
        for index, (first, second) in enumerate(self._encode(job)):
            room = self._room(first)
            if job.max_tokens_per_document is not None:
                room = min(room, job.max_tokens_per_document)
            if len(second) > room:
                if not job.cut_documents:
                    raise ContextLengthExceeded(
                        f"This model's maximum context length is {self.max_tokens} tokens, and beside the query "
                        f"{Field.DOCUMENTS}[{index}] has room for {room}, not for its {len(second)}. Shorten it.",
                        param=f"{Field.DOCUMENTS}[{index}]",
                    )
                truncated.append(index)
            start = [*self._head, *first, *self._middle]
            ids.append(np.array([*start, *second[:room], *self._tail], np.int32))
            boundaries.append(len(start))
            total += len(ids[-1])
            check_total(total, max_total, param=Field.DOCUMENTS)
        return PreparedPairs(ids, boundaries if self._has_types else None, tuple(truncated))

    def _room(self, query: list[int]) -> int:
        """Return how many tokens of a document fit beside a query. Raises `ContextLengthExceeded` for none."""
        room = self.max_tokens - len(self._head) - len(query) - len(self._middle) - len(self._tail)
        if room < 1:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_tokens} tokens, and the query leaves no room "
                "for a document. Shorten the query.",
                param="query",
            )
        return room

    def _encode(self, job: RerankJob) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the ids of query part and document part of every pair, without special tokens."""
        queries: dict[str, list[int]] = {}
        for start in range(0, len(job.pairs), ENCODE_TEXTS):
            part = job.pairs[start : start + ENCODE_TEXTS]
            asked = [self._query_text(query, job.instruction) for query, _ in part]
            for text in set(asked) - queries.keys():
                queries[text] = self._ids(text)
                if job.cut_queries and self.prompt is None:
                    queries[text] = queries[text][: self.max_tokens * 3 // 4]  # as FlagEmbedding does
                self._room(queries[text])  # before a query that cannot fit is copied for every document
            if self.prompt is None:
                encodings = self._tokenizer.encode_batch_fast([d for _, d in part], add_special_tokens=False)
                yield from ((queries[q], encoding.ids) for q, encoding in zip(asked, encodings, strict=True))
                continue
            # The reference tokenises the whole prompt at once: a document may join the query's last piece.
            whole = [q + document for q, (_, document) in zip(asked, part, strict=True)]
            for q, encoding in zip(
                asked, self._tokenizer.encode_batch_fast(whole, add_special_tokens=False), strict=True
            ):
                cut = _shared_prefix(queries[q], encoding.ids)
                yield encoding.ids[:cut], encoding.ids[cut:]

    def _query_text(self, query: str, instruction: str | None) -> str:
        if self.prompt is None:
            return query
        wanted = instruction if instruction is not None else self.default_instruction or ""
        return self.prompt.query.replace("{instruction}", wanted).replace("{query}", query)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _shared_prefix(query: list[int], whole: list[int]) -> int:
    """Return how many leading ids of `whole` belong to the query alone."""
    for i, (a, b) in enumerate(zip(query, whole, strict=False)):
        if a != b:
            return i
    return min(len(query), len(whole))


def _pair_template(tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int], bool]:
    """Return what the tokenizer puts before, between and after a pair, and whether it numbers the segments."""
    a, b = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "b"))
    full = tokenizer.encode("a", "b", add_special_tokens=True)
    ids, types = full.ids, full.type_ids
    sequence = full.sequence_ids
    first, second = sequence.index(0), sequence.index(1)
    head, middle, tail = ids[:first], ids[first + len(a) : second], ids[second + len(b) :]
    return head, middle, tail, any(types)
