"""BGE-M3's vectors against FlagEmbedding's own `BGEM3FlagModel`, in fp32 on a tiny checkpoint."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.families import architectures, bge_m3, lexical
from embedding_service.types import Output
from tests.worker import direct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedding_service.types import Rows
    from tests.worker.conftest import Checkpoint

HIDDEN = 64
SPECIAL_IDS = (0, 1, 2, 3)  # <s> <pad> </s> <unk>
DENSE, SPARSE, COLBERT, HIDDEN_STATES = (
    Output.DENSE,
    Output.SPARSE,
    Output.COLBERT,
    Output.HIDDEN_STATES,
)
ALL = (DENSE, SPARSE, COLBERT, HIDDEN_STATES)
SUBSETS = [subset for size in (1, 2, 3, 4) for subset in itertools.combinations(ALL, size)]
HAND_WRITTEN = [
    "",
    "a",
    "the the the the quick quick fox",
    "Быстрая лиса прыгает через ленивую собаку",
    "敏捷 的 棕色 狐狸 跳过 了 懒狗",
    "الثعلب البني السريع",
    "빠른 갈색 여우 สุนัขจิ้งจอก 東京",
    "a fox</s> and <s>a dog <pad> <pad> in <mask> one <unk> pass",
    "<pad>",
    "<s></s><unk>",
    "😀 🦊 ẞ",
    "the 😀 fox 🦊 jumps 😀 over",
]


def texts() -> list[str]:
    """120 texts: the hand-written ones, lengths of 1 to 60 words, and two of about 1,000 tokens."""
    from tests.checkpoints import CORPUS

    words, choose = CORPUS.split()[:80], random.Random(3)
    lengths = [choose.randint(1, 60) for _ in range(106)] + [998, 998]
    return HAND_WRITTEN + [" ".join(choose.choices(words, k=length)) for length in lengths]


def ask(token_ids: list[list[int]], outputs: list[tuple[Output, ...]]) -> list[direct.Prompt]:
    return [
        (ids, {"task": bge_m3.TASK, "extra_kwargs": bge_m3.pooling_kwargs(asked)})
        for ids, asked in zip(token_ids, outputs, strict=True)
    ]


def run(
    model: Path, batches: list[list[direct.Prompt]], folder: Path, **engine_args: Any
) -> list[direct.Batch]:
    overrides = {"architectures": [architectures.BGE_M3]}
    return direct.run(model, batches, folder=folder, hf_overrides=overrides, **engine_args)


def unpack(answer: np.ndarray, token_ids: list[int], outputs: tuple[Output, ...]) -> Rows:
    return bge_m3.unpack(answer, n_tokens=len(token_ids), hidden=HIDDEN, outputs=outputs)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Path:
    return checkpoint("tiny_bge_m3")


@pytest.fixture(scope="module")
def token_ids(model: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    ids: list[list[int]] = AutoTokenizer.from_pretrained(model)(texts())["input_ids"]
    return ids


@pytest.fixture(scope="module")
def engines(
    checkpoint: Checkpoint,
    model: Path,
    token_ids: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], list[direct.Batch]]]:
    """Return a function that waits for the answers of an engine; two of them run at a time, started
    when first asked.

    `whole` answers all texts with everything, the first twenty with dense, all with mixed subsets;
    `two devices` all texts with everything; the checkpoints that lack a head answer one text twice.
    """
    everything = ask(token_ids, [ALL] * len(token_ids))
    mixed = list(itertools.islice(itertools.cycle(SUBSETS), len(token_ids)))
    some = [everything[:20], ask(token_ids[:20], [(DENSE,)] * 20), ask(token_ids, mixed)]
    one = [ask([token_ids[10]] * 2, [ALL, (DENSE,)])]
    jobs: dict[str, tuple[Path, list[list[direct.Prompt]], dict[str, Any]]] = {
        "whole": (model, [everything, *some], {}),
        "two devices": (model, [everything], {"tensor_parallel_size": 2}),
        "without heads": (checkpoint("tiny_bge_m3", heads=()), one, {}),
        "without colbert": (checkpoint("tiny_bge_m3", heads=("sparse",)), one, {}),
    }
    with ThreadPoolExecutor(2) as threads:
        runs = {
            name: threads.submit(run, folder, batches, tmp_path_factory.mktemp("engine"), **options)
            for name, (folder, batches, options) in jobs.items()
        }
        yield lambda name: runs[name].result()


@pytest.fixture(scope="module")
def served(engines: Callable[[str], list[direct.Batch]]) -> list[direct.Batch]:
    """One engine's answers: all texts with all, twenty with dense, all with subsets."""
    return engines("whole")


@pytest.fixture(scope="module")
def oracle(model: Path, engines: object) -> dict[str, Any]:
    """FlagEmbedding's answers for the same texts, and its dense vectors before normalisation."""
    from FlagEmbedding import BGEM3FlagModel

    options: dict[str, Any] = {"use_fp16": False, "devices": "cpu"}
    limits: dict[str, Any] = {"max_length": 8192, "batch_size": 16}  # 512 tokens unless told
    answers: dict[str, Any] = BGEM3FlagModel(str(model), **options).encode(
        texts(), return_dense=True, return_sparse=True, return_colbert_vecs=True, **limits
    )
    raw = BGEM3FlagModel(str(model), normalize_embeddings=False, **options)
    return answers | {"raw_dense": raw.encode(texts(), **limits)["dense_vecs"]}


def assert_parity(
    answers: list[np.ndarray], token_ids: list[list[int]], oracle: dict[str, Any]
) -> None:
    for row, (answer, ids) in enumerate(zip(answers, token_ids, strict=True)):
        (dense,), weights, colbert, hidden_states = unpack(answer, ids, ALL).values()
        np.testing.assert_allclose(dense, oracle["raw_dense"][row], atol=1e-5)
        np.testing.assert_array_equal(hidden_states[0], dense)
        np.testing.assert_allclose(
            dense / np.linalg.norm(dense), oracle["dense_vecs"][row], atol=1e-5
        )
        np.testing.assert_allclose(colbert, oracle["colbert_vecs"][row], atol=1e-5)
        tokens = lexical.of_tokens(np.array(ids), weights[:, 0], skip_ids=SPECIAL_IDS)
        sparse = lexical.largest(tokens)
        expected = {int(token): weight for token, weight in oracle["lexical_weights"][row].items()}
        assert sparse[:, 0].tolist() == sorted(expected)
        np.testing.assert_allclose(
            sparse[:, 1], [expected[token] for token in sorted(expected)], atol=1e-5
        )


@pytest.mark.engine
def test_the_texts_try_what_they_should(token_ids: list[list[int]], oracle: dict[str, Any]) -> None:
    """The oracle saw every token, and the texts cover all lengths and cases claimed."""
    lengths = [len(ids) for ids in token_ids]
    assert [len(vectors) + 1 for vectors in oracle["colbert_vecs"]] == lengths
    assert len(lengths) >= 100
    assert min(lengths) == 2
    assert 3 in lengths
    assert max(lengths) >= 1000
    inner = [set(ids[1:-1]) for ids in token_ids]
    assert all(any(special in ids for ids in inner) for special in SPECIAL_IDS)
    sizes = [len(weights) for weights in oracle["lexical_weights"]]
    assert 0 in sizes
    assert max(sizes) > 20


@pytest.mark.engine
def test_all_three_equal_flagembedding(
    served: list[direct.Batch], token_ids: list[list[int]], oracle: dict[str, Any]
) -> None:
    """Dense, sparse and ColBERT are FlagEmbedding's to 1e-5, and the sparse keys are the same."""
    assert_parity(served[0].answers, token_ids, oracle)


@pytest.mark.engine
def test_two_devices_give_the_same(
    engines: Callable[[str], list[direct.Batch]], token_ids: list[list[int]], oracle: dict[str, Any]
) -> None:
    """With tensor parallelism 2 the vectors are still FlagEmbedding's."""
    (batch,) = engines("two devices")
    assert_parity(batch.answers, token_ids, oracle)


@pytest.mark.engine
def test_all_three_cost_one_pass(served: list[direct.Batch], token_ids: list[list[int]]) -> None:
    """The model is called as often, with as many tokens, for all three as for dense alone."""
    _, everything, dense, _ = served
    assert (everything.calls, everything.tokens) == (dense.calls, dense.tokens)
    assert dense.calls == 1
    assert dense.tokens == sum(len(ids) for ids in token_ids[:20])
    assert (
        dense.attended == 2 * dense.tokens
    )  # each token in each layer, through worker/cpu_attention.py


@pytest.mark.engine
def test_prompts_of_a_batch_ask_for_different_vectors(
    served: list[direct.Batch], token_ids: list[list[int]]
) -> None:
    """Each prompt gets exactly what it asked for, whatever its neighbours want."""
    everything, *_, mixed = served
    subsets = itertools.cycle(SUBSETS)
    for full, part, ids in zip(everything.answers, mixed.answers, token_ids, strict=True):
        outputs = next(subsets)
        vectors, asked = unpack(full, ids, ALL), unpack(part, ids, outputs)
        assert set(asked) == set(outputs)
        for output, rows in asked.items():
            np.testing.assert_allclose(rows, vectors[output], atol=1e-5)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "heads"), [("without heads", ()), ("without colbert", ("sparse",))]
)
def test_a_checkpoint_without_heads_serves_the_rest(
    name: str,
    heads: tuple[str, ...],
    checkpoint: Checkpoint,
    token_ids: list[list[int]],
    served: list[direct.Batch],
    engines: Callable[[str], list[direct.Batch]],
) -> None:
    """A missing head leaves engine and other vectors as they were; `unpack` sees it."""
    ids = token_ids[10]
    available = bge_m3.available_outputs(str(checkpoint("tiny_bge_m3", heads=heads)))
    assert available == {DENSE, HIDDEN_STATES, *heads}
    (batch,) = engines(name)
    expected = unpack(served[0].answers[10], ids, ALL)
    found = unpack(batch.answers[0], ids, tuple(available))
    assert found.keys() == available
    for output, rows in found.items():
        np.testing.assert_allclose(rows, expected[output], atol=1e-5)
    np.testing.assert_array_equal(batch.answers[1], batch.answers[0][:HIDDEN])
    with pytest.raises(ValueError, match="numbers"):
        unpack(batch.answers[0], ids, ALL)


def test_available_outputs_looks_for_the_files(tmp_path: Path) -> None:
    """A folder's head files decide what it can give."""
    assert bge_m3.available_outputs(str(tmp_path)) == {DENSE, HIDDEN_STATES}
    (tmp_path / "sparse_linear.pt").touch()
    assert bge_m3.available_outputs(str(tmp_path)) == {DENSE, SPARSE, HIDDEN_STATES}
    (tmp_path / "colbert_linear.pt").touch()
    assert bge_m3.available_outputs(str(tmp_path)) == set(ALL)


def test_available_outputs_reads_the_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a repository gives what its cached snapshot has."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--m3"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "colbert_linear.pt").touch()
    assert bge_m3.available_outputs("someone/m3", cache_dir=str(tmp_path)) == {
        DENSE,
        COLBERT,
        HIDDEN_STATES,
    }


@pytest.mark.parametrize("outputs", SUBSETS)
def test_unpack_gives_views(outputs: tuple[Output, ...]) -> None:
    """Each part lies where the model put it, shares its memory, and has its shape."""
    sizes = {DENSE: (1, 4), SPARSE: (3, 1), COLBERT: (2, 4), HIDDEN_STATES: (3, 4)}
    flat = np.arange(sum(int(np.prod(sizes[output])) for output in outputs), dtype=np.float32)
    vectors = bge_m3.unpack(flat, n_tokens=3, hidden=4, outputs=outputs)
    parts = list(vectors.values())
    assert [part.shape for part in parts] == [sizes[output] for output in outputs]
    assert all(np.shares_memory(part, flat) for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), flat)
