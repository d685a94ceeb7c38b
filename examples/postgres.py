"""BGE-M3's vectors in PostgreSQL with pgvector: the table, and the statements for one text.

    python examples/postgres.py --base-url http://127.0.0.1:8890/v1 --model bge-m3 | psql

Prints SQL with the right types: `vector` (float32), `halfvec` (float16), `sparsevec` (token
weights; its indices start at 1) and `bit` (signs). Needs `pip install openai pgvector`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
from openai import OpenAI
from pgvector import Bit, HalfVector, SparseVector, Vector

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY = 250_002  # XLM-RoBERTa's; with `sparse_token_mapping: hash` it is sparse_index_space


def statements(client: OpenAI, model: str, texts: list[str]) -> Iterator[str]:
    """Yield the statements that create the table and insert `texts`."""
    answer = client.embeddings.create(model=model, input=texts, extra_body={"return_sparse": True})
    # With another number format than float32, name the encoding: the SDK reads base64 it chose
    # itself as float32.
    packed = client.embeddings.create(
        model=model, input=texts, encoding_format="float", extra_body={"embed_dtype": "ubinary"}
    )
    size = len(answer.data[0].embedding)
    yield "CREATE EXTENSION IF NOT EXISTS vector;"
    yield (
        f"CREATE TABLE documents (id bigserial PRIMARY KEY, body text, dense vector({size}), half halfvec({size}), "
        f"sparse sparsevec({VOCABULARY}), signs bit({size}));"
    )
    for text, item, signs in zip(texts, answer.data, packed.data, strict=True):
        dense = np.array(item.embedding, np.float32)
        weights = {
            int(i): weight for i, weight in (item.model_extra or {})["sparse_embedding"].items()
        }
        bits = np.unpackbits(np.array(signs.embedding, np.uint8))[:size].astype(bool)
        values = [
            "'" + text.replace("'", "''") + "'",
            f"'{Vector(dense).to_text()}'",
            f"'{HalfVector(dense).to_text()}'",
            f"'{SparseVector(weights, VOCABULARY).to_text()}'",
            f"B'{Bit(bits).to_text()}'",
        ]
        yield f"INSERT INTO documents (body, dense, half, sparse, signs) VALUES ({', '.join(values)});"
    yield "CREATE INDEX ON documents USING hnsw (dense vector_cosine_ops);"
    yield "CREATE INDEX ON documents USING hnsw (half halfvec_cosine_ops);"
    yield "CREATE INDEX ON documents USING hnsw (sparse sparsevec_ip_ops);"
    yield "CREATE INDEX ON documents USING hnsw (signs bit_hamming_ops);"


def main(arguments: list[str] | None = None) -> list[str]:
    """Print the statements; return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8890/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("texts", nargs="*", default=["What is BGE M3?", "Definition of BM25"])
    options = parser.parse_args(arguments)
    client = OpenAI(base_url=options.base_url, api_key=options.api_key)
    lines = list(statements(client, options.model, options.texts))
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
