"""The `openai` package, unmodified, against the running server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import openai
import pytest

from tests.clients.conftest import KEY, MINILM_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.conftest import Address

pytestmark = pytest.mark.engine

MODEL = "text-embedding-3-small"
TEXTS = [
    "The capital of France is Paris.",
    "Die Hauptstadt von Deutschland ist Berlin.",
    "日本の首都は東京です。",
]


@pytest.fixture
def client(served: Address) -> Iterator[openai.OpenAI]:
    """Return a client of the gateway with MiniLM."""
    with openai.OpenAI(**served._asdict(), max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def keyed_client(keyed: Address) -> Iterator[openai.OpenAI]:
    """Return a client, with its key, of the gateway that wants one."""
    with openai.OpenAI(**keyed._asdict(), max_retries=0) as sdk:
        yield sdk


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    """Return what an answer holds as an array, and check its order."""
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], np.float32)


def test_default_encoding_is_float(client: openai.OpenAI) -> None:
    """The SDK's own default (base64, decoded by it) and `float` give the same lists of floats."""
    default = client.embeddings.create(model=MODEL, input=TEXTS)
    floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert all(isinstance(number, float) for number in default.data[0].embedding)
    assert np.array_equal(vectors(default), vectors(floats))


def test_base64_is_little_endian_floats(client: openai.OpenAI) -> None:
    """An explicit `base64` is handed on as the string of float32 bytes."""
    import base64

    answer = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="base64")
    text: str = answer.data[0].embedding  # type: ignore[assignment]
    floats = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float")
    assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), vectors(floats)[0])


def test_one_text_and_a_list(client: openai.OpenAI) -> None:
    """A string is a list of one; vectors have length 1, in order; the usage counts real tokens."""
    one = client.embeddings.create(model=MODEL, input=TEXTS[1])
    several = client.embeddings.create(model=MODEL, input=TEXTS, user="somebody")
    assert np.abs(vectors(one)[0] - vectors(several)[1]).max() <= 1e-5
    assert vectors(several).shape == (3, 384)
    assert np.linalg.norm(vectors(several), axis=1) == pytest.approx(1, abs=1e-6)
    assert several.usage.prompt_tokens == several.usage.total_tokens > one.usage.total_tokens > 3
    assert several.model == MINILM_NAME
    assert several.object == "list"


def test_token_ids(client: openai.OpenAI) -> None:
    """Lists of cl100k_base ids, as OpenAI's own tokenizer has them, are embedded as their texts."""
    import bpe_openai

    ids = [bpe_openai.get_encoding("cl100k_base").encode(text) for text in TEXTS]
    expected = vectors(client.embeddings.create(model=MODEL, input=TEXTS))
    assert (
        np.abs(vectors(client.embeddings.create(model=MODEL, input=ids)) - expected).max() <= 1e-5
    )
    assert (
        np.abs(vectors(client.embeddings.create(model=MODEL, input=ids[0])) - expected[:1]).max()
        <= 1e-5
    )


def test_dimensions(keyed_client: openai.OpenAI) -> None:
    """`dimensions` gives the first numbers of the vector, scaled to length 1 again."""
    full = vectors(keyed_client.embeddings.create(model="fake", input="w1 w2"))[0]
    cut = vectors(keyed_client.embeddings.create(model="fake", input="w1 w2", dimensions=8))[0]
    assert cut == pytest.approx(full[:8] / np.linalg.norm(full[:8]), abs=1e-6)


def test_dimensions_of_a_model_that_cannot_be_cut(client: openai.OpenAI) -> None:
    """A model without Matryoshka training takes its own size; others are refused by the field."""
    assert (
        len(client.embeddings.create(model=MODEL, input="a", dimensions=384).data[0].embedding)
        == 384
    )
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="a", dimensions=256)
    assert caught.value.param == "dimensions"


def test_what_goes_beyond_openai(client: openai.OpenAI) -> None:
    """Fields of `extra_body` reach the server."""
    answer = client.embeddings.create(
        model=MODEL, input="word " * 600, extra_body={"truncate": "right"}
    )
    assert answer.usage.total_tokens == 256


def test_bad_request(client: openai.OpenAI) -> None:
    """A wrong request raises `BadRequestError` with all four keys of the envelope."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=[])
    error = caught.value
    assert (error.type, error.param, error.code) == (
        "invalid_request_error",
        "input",
        "invalid_value",
    )
    assert error.request_id
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="word " * 600)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 256 tokens" in str(caught.value)


def test_wrong_key(keyed: Address, keyed_client: openai.OpenAI) -> None:
    """A wrong key raises `AuthenticationError`, the right one does not."""
    with openai.OpenAI(base_url=keyed.base_url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.embeddings.create(model="fake", input="w1")
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    assert KEY not in str(caught.value)
    assert keyed_client.embeddings.create(model="fake", input="w1").data


def test_unknown_model(client: openai.OpenAI) -> None:
    """A model that is not served raises `NotFoundError`, for embeddings and for its description."""
    for request in (
        lambda: client.embeddings.create(model="text-embedding-9", input="a"),
        lambda: client.models.retrieve("text-embedding-9"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            request()
        assert caught.value.code == "model_not_found"


def test_full_queue(full: Address) -> None:
    """A request for which there is no room now raises `RateLimitError` that says when to come back."""
    with (
        openai.OpenAI(**full._asdict(), max_retries=0) as sdk,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        sdk.embeddings.create(model="fake", input="w1 w2 w3")
    assert caught.value.code == "engine_overloaded"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_models(client: openai.OpenAI) -> None:
    """`models.list` has the model and its aliases; `models.retrieve` finds each, also by slash."""
    names = [model.id for model in client.models.list()]
    assert names == [MINILM_NAME, MODEL, "text-embedding-ada-002"]
    for name in names:
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")
        assert model.created > 0


def test_request_id(client: openai.OpenAI) -> None:
    """`_request_id` is the id that the client chose, or one of the server's."""
    chosen = client.embeddings.create(
        model=MODEL, input="a", extra_headers={"x-request-id": "chosen-by-me"}
    )
    minted = client.embeddings.create(model=MODEL, input="a")
    assert chosen._request_id == "chosen-by-me"
    assert minted._request_id
    assert minted._request_id != client.embeddings.create(model=MODEL, input="a")._request_id


def test_async_client(served: Address) -> None:
    """`AsyncOpenAI` gets the same vectors, with many requests at once."""

    async def run() -> list[openai.types.CreateEmbeddingResponse]:
        async with openai.AsyncOpenAI(**served._asdict(), max_retries=0) as sdk:
            return await asyncio.gather(
                *(sdk.embeddings.create(model=MODEL, input=text) for text in TEXTS * 8)
            )

    with openai.OpenAI(**served._asdict()) as sdk:
        expected = vectors(sdk.embeddings.create(model=MODEL, input=TEXTS))
    answers = np.concatenate([vectors(answer) for answer in asyncio.run(run())])
    assert np.abs(answers - np.tile(expected, (8, 1))).max() <= 1e-5
