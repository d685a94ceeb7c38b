"""The headers of answers that clients may read, and what each says.

Browsers read only those that a server exposes; the OpenAPI document describes them.
"""

from __future__ import annotations

from itertools import product

ALWAYS = {"x-request-id": "The request's own id, or the one that it was given; the log has it."}
OF_ANSWERS = {
    "openai-processing-ms": "Milliseconds from the last header to the answer.",
    "x-vector-space": "The space of the vectors, NAME@HEX: only within one may they be compared.",
    "x-truncated-inputs": "The inputs that were cut, by their index.",
    "x-chunked-inputs": "The inputs that were computed in several chunks, by their index.",
    "x-cache": "How many of the inputs were known: 3/8.",
    "x-token-ids": "Whose token ids the inputs were read as.",
    "x-ignored-fields": "The fields of the request that changed nothing.",
}
OF_ERRORS = {
    "x-error-code": "The error's code, as docs/errors.md has it.",
    "x-should-retry": "true if the same request may succeed later; OpenAI's SDKs obey.",
    "retry-after": "Seconds after which it is worth to try again.",
}
_RATES = [
    f"x-ratelimit-{figure}-{kind}"
    for figure, kind in product(("limit", "remaining", "reset"), ("requests", "tokens"))
]
EXPOSED = (*ALWAYS, *OF_ANSWERS, *OF_ERRORS, *_RATES)
