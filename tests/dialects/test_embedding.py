"""Beyond OpenAI's contract: prompts, truncation, number formats, further kinds of vector."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.service.vectors import quantise, shape_dense
from embedding_service.types import EmbedDtype, Output
from embedding_service.worker.fake import DIMENSION, fake_vectors
from tests.calls import embed, error_of, ids_of, raw_vector, unit_vectors, vectors_of
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from embedding_service.types import Floats
    from tests.conftest import RunningGateway

CONTEXT = 10  # tokens, two of which are special
ROOM = CONTEXT - 2
PROMPTS = {"query": "w11 ", "document": "w12 ", "cluster": "w13 ", "nothing": ""}
WORDS = {
    EmbedDtype.FLOAT32: "<f4",
    EmbedDtype.FLOAT16: "<f2",
    EmbedDtype.INT8: "i1",
    EmbedDtype.UINT8: "u1",
    EmbedDtype.BINARY: "i1",
    EmbedDtype.UBINARY: "u1",
}


@pytest.fixture(scope="module")
def rich(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of a model with prompts, a template, three vectors, a short context."""
    gateway = start_gateway(
        **FAKE
        | {
            "aliases": {
                "as-query": {"input_type": "query"},
                "as-cluster": {"prompt_name": "cluster"},
                "instructed": {"instruction": "w20"},
                "plain": {},
            },
            "instruction_template": "w14 {instruction} w15 ",
            "max_model_len": CONTEXT,
            "engine_args": {"outputs": ["dense", "sparse", "colbert"], "prompts": PROMPTS},
        }
    )
    with gateway.client() as client:
        yield client
    gateway.stop()


def assert_embeds_as(response: httpx.Response, *texts: str) -> None:
    """Check that the answer holds the unit vectors of these very texts."""
    np.testing.assert_allclose(vectors_of(response), unit_vectors(*texts), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        ({}, ""),
        ({"input_type": "query"}, "w11 "),
        ({"input_type": "document"}, "w12 "),
        ({"prompt_name": "cluster"}, "w13 "),
        ({"prompt_name": "nothing"}, ""),
        ({"instruction": "w21 w22"}, "w14 w21 w22 w15 "),
        ({"instruction": ""}, ""),
        ({"instruction": "{instruction}"}, "w14 {instruction} w15 "),
        ({"prompt_name": "cluster", "input_type": "query"}, "w13 "),
        ({"instruction": "w21", "prompt_name": "cluster", "input_type": "query"}, "w14 w21 w15 "),
        ({"instruction": None, "prompt_name": None, "input_type": "document"}, "w12 "),
        ({"model": "plain"}, ""),
        ({"model": "as-query"}, "w11 "),
        ({"model": "as-cluster"}, "w13 "),
        ({"model": "instructed"}, "w14 w20 w15 "),
        ({"model": "instructed", "instruction": "w21"}, "w14 w21 w15 "),
        ({"model": "instructed", "prompt_name": "cluster"}, "w13 "),
        ({"model": "instructed", "input_type": "document"}, "w12 "),
        ({"model": "as-query", "input_type": "document"}, "w12 "),
        ({"model": "as-query", "instruction": ""}, ""),
    ],
)
def test_prompts_in_order_of_precedence(
    rich: httpx.Client, fields: dict[str, Any], prefix: str
) -> None:
    """The request's instruction wins, then its prompt_name, its input_type, and the alias last."""
    response = embed(rich, input=["w1", "w2 w3"], **fields)
    assert_embeds_as(response, f"{prefix}w1", f"{prefix}w2 w3")


def test_a_prompt_is_counted(rich: httpx.Client) -> None:
    """Usage holds the tokens of the prompt as well."""
    response = embed(rich, input=["w1", "w2"], instruction="w21")
    assert response.json()["usage"]["prompt_tokens"] == 2 * len(ids_of("w14 w21 w15 w1"))


def test_a_prompted_text_is_not_prompted_again(rich: httpx.Client) -> None:
    """A text that carries the prompt already is left as it is, its neighbours are not."""
    response = embed(rich, input=["w11 w1", "w1"], input_type="query")
    assert_embeds_as(response, "w11 w1", "w11 w1")


def test_token_ids_are_prompted_as_text(rich: httpx.Client) -> None:
    """Ids that are decoded as cl100k_base get the prompt that the text would get."""
    response = embed(rich, input=[86, 16], input_type="query")  # "w" and "1"
    assert_embeds_as(response, "w11 w1")


def test_an_unknown_prompt_name_is_a_400(rich: httpx.Client) -> None:
    """A prompt that the model does not have is refused with the names it has."""
    error = error_of(embed(rich, input="w1", prompt_name="clusters"), 400)
    assert error["param"] == "prompt_name"
    assert all(name in error["message"] for name in PROMPTS)


def test_instructions_need_a_template(client: httpx.Client) -> None:
    """A model without an instruction template refuses instructions instead of leaving them out."""
    assert error_of(embed(client, input="w1", instruction="w2"), 400)["param"] == "instruction"


LONG = [f"w{i}" for i in range(1, 20)]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate": "right"}, LONG[:ROOM]),
        ({"truncate": "left"}, LONG[-ROOM:]),
        ({"truncate": "right", "input_type": "query"}, ["w11", *LONG[: ROOM - 1]]),
        ({"truncate": "left", "input_type": "query"}, ["w11", *LONG[-(ROOM - 1) :]]),
    ],
)
def test_truncation_keeps_one_end_and_the_prompt(
    rich: httpx.Client, fields: dict[str, Any], kept: list[str]
) -> None:
    """`right` keeps the beginning, `left` the end, both the prompt; the answer names the cut."""
    response = embed(rich, input=["w1", " ".join(LONG), "w2"], **fields)
    prefix = "w11 " if "input_type" in fields else ""
    assert_embeds_as(response, f"{prefix}w1", " ".join(kept), f"{prefix}w2")
    assert response.headers["x-truncated-inputs"] == "1"
    assert "x-chunked-inputs" not in response.headers
    usage = response.json()["usage"]
    assert usage["truncated_inputs"] == [1]
    assert usage["total_tokens"] == CONTEXT + 2 * len(ids_of(f"{prefix}w1"))


@pytest.mark.parametrize("prompted", [False, True])
def test_chunk_mean_is_the_weighted_mean_of_the_chunks(
    rich: httpx.Client, *, prompted: bool
) -> None:
    """An over-long text is the token-weighted mean of its chunks' raw vectors, each prompted."""
    prompt, room = (["w11"], ROOM - 1) if prompted else ([], ROOM)
    chunks = [" ".join(prompt + LONG[start : start + room]) for start in range(0, len(LONG), room)]
    weights = [len(ids_of(chunk)) for chunk in chunks]
    mean = np.average([raw_vector(chunk) for chunk in chunks], axis=0, weights=weights).astype(
        np.float32
    )
    fields = {"input_type": "query"} if prompted else {}
    response = embed(rich, input=["w1", " ".join(LONG)], truncate="chunk_mean", **fields)
    got = vectors_of(response)
    np.testing.assert_allclose(got[0], unit_vectors(" ".join([*prompt, "w1"]))[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
    assert response.headers["x-chunked-inputs"] == "1"
    assert "x-truncated-inputs" not in response.headers
    usage = response.json()["usage"]
    assert usage["chunked_inputs"] == [1]
    assert usage["total_tokens"] == sum(weights) + len(ids_of(" ".join([*prompt, "w1"])))


@pytest.mark.parametrize("truncate", ["left", "right", "chunk_mean", "error"])
def test_what_fits_is_not_touched(rich: httpx.Client, truncate: str) -> None:
    """An input that just fits is embedded whole, and nothing is said about truncation."""
    response = embed(rich, input=" ".join(LONG[:ROOM]), truncate=truncate)
    assert_embeds_as(response, " ".join(LONG[:ROOM]))
    assert not {"x-truncated-inputs", "x-chunked-inputs"} & response.headers.keys()
    assert response.json()["usage"].keys() == {"prompt_tokens", "total_tokens"}


def test_a_prompt_that_leaves_no_room_is_a_400(rich: httpx.Client) -> None:
    """A prompt as long as the context is refused instead of embedding the prompt alone."""
    instruction = " ".join(LONG[: ROOM - 2])
    for truncate in ("left", "right", "chunk_mean"):
        error = error_of(
            embed(rich, input="w1 w2", instruction=instruction, truncate=truncate), 400
        )
        assert (error["param"], error["code"]) == ("instruction", "context_length_exceeded")


def test_an_endless_prompt_is_a_400(rich: httpx.Client) -> None:
    """A prompt of many characters is refused before it is copied to the front of every input."""
    error = error_of(embed(rich, input=["w1"] * 100, instruction="i" * 20_000), 400)
    assert error["param"] == "instruction"


def test_many_truncated_inputs_are_all_in_usage(rich: httpx.Client) -> None:
    """A long list of cut inputs is shortened in the header and whole in usage."""
    response = embed(rich, input=[" ".join(LONG)] * 200, truncate="right")
    assert response.json()["usage"]["truncated_inputs"] == list(range(200))
    assert response.headers["x-truncated-inputs"].endswith(", ...")


def test_normalize_false_gives_the_models_own_scale(rich: httpx.Client) -> None:
    """Without normalisation the vectors are what the model computed."""
    got = vectors_of(embed(rich, input=["w1", "w2 w3"], normalize=False))
    np.testing.assert_allclose(got, [raw_vector("w1"), raw_vector("w2 w3")], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_small_integers_need_unit_vectors(rich: httpx.Client, dtype: str) -> None:
    """int8 and uint8 without normalisation are refused: their scale is that of unit vectors."""
    error = error_of(embed(rich, input="w1", embed_dtype=dtype, normalize=False), 400)
    assert error["param"] == "normalize"


def decode(item: dict[str, Any], encoding: str, dtype: EmbedDtype) -> Any:
    if encoding == "float":
        return np.array(item["embedding"])
    return np.frombuffer(base64.b64decode(item["embedding"], validate=True), WORDS[dtype])


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("dtype", EmbedDtype)
def test_every_number_format_in_both_encodings(
    rich: httpx.Client, dtype: EmbedDtype, encoding: str
) -> None:
    """Each `embed_dtype` comes as numbers or as their raw little-endian bytes."""
    texts = ["w1", "w2 w3"]
    want = quantise(unit_vectors(*texts), dtype)
    data = embed(rich, input=texts, embed_dtype=dtype, encoding_format=encoding).json()["data"]
    got = np.array([decode(item, encoding, dtype) for item in data])
    assert got.shape == (2, DIMENSION // 8 if "binary" in dtype else DIMENSION)
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-6)


def test_unknown_fields_are_ignored_and_named(client: httpx.Client) -> None:
    """Fields that mean nothing here do no harm and are listed in `x-ignored-fields`."""
    response = embed(client, input="w1", service_tier="auto", store=True, **{"naïve\n": None})
    assert response.headers["x-ignored-fields"] == "service_tier, store, na?ve?"
    assert_embeds_as(response, "w1")
    assert "x-ignored-fields" not in embed(client, input="w1", user="someone").headers


def sparse_of(text: str) -> dict[str, float]:
    rows = fake_vectors(ids_of(text), Output.SPARSE).tolist()
    return {str(int(token)): weight for token, weight in rows}


def colbert_of(text: str) -> Floats:
    return fake_vectors(ids_of(text), Output.COLBERT)


TEXTS = ["w1 w2 w3 w1", "w4"]


def test_all_three_kinds_come_from_one_request(rich: httpx.Client) -> None:
    """Dense, sparse and ColBERT vectors of a text stand side by side; the answer names them."""
    body = embed(
        rich, input=TEXTS, return_dense=True, return_sparse=True, return_colbert=True
    ).json()
    assert body["embedding_types"] == ["dense", "sparse", "colbert"]
    for item, text, dense in zip(body["data"], TEXTS, unit_vectors(*TEXTS), strict=True):
        np.testing.assert_allclose(item["dense_embedding"], dense, rtol=1e-5)
        assert item["embedding"] == item["dense_embedding"]
        assert item["sparse_embedding"] == pytest.approx(sparse_of(text))
        np.testing.assert_allclose(item["colbert_embedding"], colbert_of(text), rtol=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "colbert"])
def test_one_kind_alone(rich: httpx.Client, kind: str) -> None:
    """An output that was not asked for is null."""
    body = embed(rich, input=TEXTS, return_dense=False, **{f"return_{kind}": True}).json()
    assert body["embedding_types"] == [kind]
    other = {"sparse": "colbert", "colbert": "sparse"}[kind]
    for item in body["data"]:
        assert item[f"{kind}_embedding"] is not None
        assert item["embedding"] is item["dense_embedding"] is item[f"{other}_embedding"] is None


def test_colbert_as_base64_has_its_shape(rich: httpx.Client) -> None:
    """ColBERT bytes come with the shape to read them in."""
    item = embed(rich, input=TEXTS[0], return_colbert=True, encoding_format="base64").json()[
        "data"
    ][0]
    rows = np.frombuffer(base64.b64decode(item["colbert_embedding"]), "<f4").reshape(
        item["colbert_shape"]
    )
    np.testing.assert_allclose(rows, colbert_of(TEXTS[0]), rtol=1e-6)


def test_asking_for_nothing_is_a_400(rich: httpx.Client) -> None:
    """A request that wants no vector at all is refused."""
    error = error_of(embed(rich, input="w1", return_dense=False), 400)
    assert error["param"] == "return_dense"
    assert "At least one vector type must be requested" in error["message"]


@pytest.mark.parametrize("kind", ["sparse", "colbert"])
def test_a_kind_that_the_model_lacks_is_a_400(client: httpx.Client, kind: str) -> None:
    """A dense model says that it has no sparse or ColBERT vectors."""
    assert (
        error_of(embed(client, input="w1", **{f"return_{kind}": True}), 400)["param"]
        == f"return_{kind}"
    )


def test_chunked_colbert_keeps_all_rows(rich: httpx.Client) -> None:
    """The ColBERT vectors of a chunked text are those of its chunks, one after the other."""
    chunks = [" ".join(LONG[start : start + ROOM]) for start in range(0, len(LONG), ROOM)]
    item = embed(rich, input=" ".join(LONG), truncate="chunk_mean", return_colbert=True).json()[
        "data"
    ][0]
    np.testing.assert_allclose(
        item["colbert_embedding"], np.concatenate(list(map(colbert_of, chunks))), rtol=1e-5
    )


def test_zero_vectors_do_not_divide_by_zero() -> None:
    """A row of zeros stays a row of zeros."""
    assert not shape_dense(np.zeros((1, 4), np.float32), dimensions=None, normalize=True).any()
