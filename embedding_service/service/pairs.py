"""From a query and a document to the token ids of a cross-encoder; over-long documents are cut.

Two forms: the tokenizer's own pair template (`[CLS] q [SEP] d [SEP]`), or a prompt in words whose
last position answers yes or no (Qwen3-Reranker). The query is never cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families import profiles
from embedding_service.service.checks import check_total
from embedding_service.service.prompts import ENCODE_TEXTS, bare_tokenizer
from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer

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


class Template(NamedTuple):
    """The ids before, between and after the two parts of a pair; `has_types`: segments are numbered."""

    head: list[int]
    middle: list[int]
    tail: list[int]
    has_types: bool = False


class PairEncoder:
    """The tokenizer and the pair template of one reranker."""

    def __init__(self, facts: ModelFacts, tokenizer_json: bytes, options: ModelOptions) -> None:
        self.facts = facts
        self.max_tokens = facts.max_tokens
        self.name = options.model_name
        self.prompt = profiles.find(
            model_name=options.model_name, architecture=facts.architecture
        ).pair_prompt
        own = self.prompt.instruction if self.prompt else None
        self.default_instruction = options.default_instruction or own
        self._tokenizer = bare_tokenizer(tokenizer_json)
        if self.prompt is None:
            self._template = _pair_template(self._tokenizer)
        else:
            self._template = Template(self._ids(self.prompt.head), [], self._ids(self.prompt.tail))

    def prepare(self, job: RerankJob, *, max_total: int) -> PreparedPairs:
        """Tokenise every pair.

        Raises `InvalidRequest`, and `ContextLengthExceeded` if a query alone is too long.
        """
        if job.instruction is not None and self.prompt is None:
            raise InvalidRequest(
                f"{self.name} was not trained with instructions; leave instruction out",
                param="instruction",
            )
        head, middle, tail, has_types = self._template
        ids: list[TokenIds] = []
        boundaries: list[int] = []
        truncated: list[int] = []
        total = 0
        for index, (query, document) in enumerate(self._encode(job)):
            room = self._room(query, job.max_tokens_per_document)
            if len(document) > room:
                if not job.cut_documents:
                    raise self._too_long(index, len(document), room)
                truncated.append(index)
            start = [*head, *query, *middle]
            ids.append(np.array([*start, *document[:room], *tail], np.int32))
            boundaries.append(len(start))
            total += len(ids[-1])
            check_total(total, max_total, param=Field.DOCUMENTS)
        return PreparedPairs(ids, boundaries if has_types else None, tuple(truncated))

    def _too_long(self, index: int, tokens: int, room: int) -> ContextLengthExceeded:
        where = f"{Field.DOCUMENTS}[{index}]"
        return ContextLengthExceeded(
            f"This model's maximum context length is {self.max_tokens} tokens, and beside the "
            f"query {where} has room for {room}, not for its {tokens}. Shorten it.",
            param=where,
        )

    def _room(self, query: list[int], wanted: int | None = None) -> int:
        """Return how many tokens of a document fit beside a query.

        Raises `ContextLengthExceeded` for none.
        """
        head, middle, tail, _ = self._template
        room = self.max_tokens - len(head) - len(query) - len(middle) - len(tail)
        if room < 1:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_tokens} tokens, and the query "
                "leaves no room for a document. Shorten the query.",
                param="query",
            )
        return room if wanted is None else min(room, wanted)

    def _encode(self, job: RerankJob) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the ids of query part and document part of every pair, without special tokens."""
        queries: dict[str, list[int]] = {}
        for start in range(0, len(job.pairs), ENCODE_TEXTS):
            portion = job.pairs[start : start + ENCODE_TEXTS]
            asked = [self._query_text(query, job.instruction) for query, _ in portion]
            documents = [document for _, document in portion]
            for text in set(asked) - queries.keys():
                queries[text] = self._query_ids(text, cut=job.cut_queries)
            if self.prompt is None:
                yield from self._encode_apart([queries[query] for query in asked], documents)
            else:
                yield from self._encode_whole(asked, documents, queries)

    def _query_ids(self, text: str, *, cut: bool) -> list[int]:
        """Tokenise a query; one that cannot fit is refused before it is copied for every document."""
        ids = self._ids(text)
        if cut and self.prompt is None:
            ids = ids[: self.max_tokens * 3 // 4]  # as FlagEmbedding does
        self._room(ids)
        return ids

    def _encode_apart(
        self, queries: Sequence[list[int]], documents: list[str]
    ) -> Iterator[tuple[list[int], list[int]]]:
        encodings = self._tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        for query, encoding in zip(queries, encodings, strict=True):
            yield query, encoding.ids

    def _encode_whole(
        self, asked: list[str], documents: list[str], queries: dict[str, list[int]]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenise prompt and document at once, as the reference does.

        A document may join the query's last piece, so the two part where their ids differ first.
        """
        whole = [query + document for query, document in zip(asked, documents, strict=True)]
        encodings = self._tokenizer.encode_batch_fast(whole, add_special_tokens=False)
        for query, encoding in zip(asked, encodings, strict=True):
            cut = _shared_prefix(queries[query], encoding.ids)
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
    for place, (a, b) in enumerate(zip(query, whole, strict=False)):
        if a != b:
            return place
    return min(len(query), len(whole))


def _pair_template(tokenizer: Tokenizer) -> Template:
    """Return the template that the tokenizer puts around a pair."""
    a = tokenizer.encode("a", add_special_tokens=False).ids
    b = tokenizer.encode("b", add_special_tokens=False).ids
    full = tokenizer.encode("a", "b", add_special_tokens=True)
    ids, sequence = full.ids, full.sequence_ids
    first, second = sequence.index(0), sequence.index(1)
    return Template(
        head=ids[:first],
        middle=ids[first + len(a) : second],
        tail=ids[second + len(b) :],
        has_types=any(full.type_ids),
    )
