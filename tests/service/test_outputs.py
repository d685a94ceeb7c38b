"""The table of outputs: none is missing, and chunks join as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.service.outputs import KINDS, PER_TOKEN
from embedding_service.service.prompts import Prepared
from embedding_service.settings.model import ModelOptions
from embedding_service.types import EmbedJob, Output
from embedding_service.worker.fake import DIMENSION, FakeBackend, fake_vectors

if TYPE_CHECKING:
    from embedding_service.types import Floats

ROOT = Path(__file__).parents[2]
JOB = EmbedJob(None, ["a", "b"], normalize=False)
# Three chunks of two inputs: the second input has two, of 1 and 3 tokens.
CHUNKED = Prepared([np.zeros(n, np.int32) for n in (2, 1, 3)], owner=[0, 1, 1], chunked=(1,))
WHOLE = Prepared([np.zeros(n, np.int32) for n in (2, 1, 3)], owner=[0, 1, 2])
WITH_ANOTHER_OUTPUT = """
import sys, types
from pathlib import Path

path = Path("embedding_service/types.py")
module = types.ModuleType("embedding_service.types")
sys.modules[module.__name__] = module
source = path.read_text().replace('DENSE = "dense"', 'DENSE = "dense"\\n    COLOURS = "colours"')
exec(compile(source, path, "exec"), module.__dict__)
import embedding_service.service.outputs
"""


@pytest.mark.process
def test_an_output_that_the_table_lacks_ends_the_import() -> None:
    """Whoever adds an output and forgets how its chunks join cannot start the service."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_ANOTHER_OUTPUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "AssertionError" in done.stderr.splitlines()[-1]
    assert "colours" in done.stderr


def joined(output: Output, rows: list[Floats], prepared: Prepared) -> Any:
    kind = KINDS[output]
    return kind.write(kind.join(rows, prepared), JOB, None)


def test_dense_vectors_of_chunks_are_averaged_by_their_tokens() -> None:
    """The mean of an input's chunks has their tokens for weights; whole inputs keep their vectors."""
    rows = [np.array([[value, 1]], np.float32) for value in (5, 2, 10)]
    assert joined(Output.DENSE, rows, CHUNKED).tolist() == [[5, 1], [8, 1]]
    assert joined(Output.DENSE, rows, WHOLE).tolist() == [[5, 1], [2, 1], [10, 1]]


@pytest.mark.parametrize("output", sorted(PER_TOKEN))
def test_token_vectors_of_chunks_follow_each_other(output: Output) -> None:
    """An input has the rows of all its chunks, in their order."""
    rows = [np.arange(n, n + 2, dtype=np.float32).reshape(2, 1) for n in (1, 3, 5)]
    assert [each.ravel().tolist() for each in joined(output, rows, CHUNKED)] == [
        [1, 2],
        [3, 4, 5, 6],
    ]
    assert [each.ravel().tolist() for each in joined(output, rows, WHOLE)] == [
        [1, 2],
        [3, 4],
        [5, 6],
    ]


def test_lexical_weights_of_chunks_are_the_largest() -> None:
    """A token id that is in several chunks of an input has its largest weight, once."""
    rows = [
        np.array(each, np.float32).reshape(-1, 2)
        for each in ([], [[7, 0.5], [9, 2]], [[3, 1], [7, 1.5]])
    ]
    chunked = [
        (each.indices.tolist(), each.values.tolist())
        for each in joined(Output.SPARSE, rows, CHUNKED)
    ]
    assert chunked == [([], []), ([3, 7, 9], [1, 1.5, 2])]
    whole = [
        (each.indices.tolist(), each.values.tolist()) for each in joined(Output.SPARSE, rows, WHOLE)
    ]
    assert whole == [([], []), ([7, 9], [0.5, 2]), ([3, 7], [1, 1.5])]
    assert all(each.indices.dtype == np.int64 for each in joined(Output.SPARSE, rows, WHOLE))


FACTS = FakeBackend(ModelOptions(engine="fake")).facts(DIMENSION)
IDS = [0, 107, 105, 107, 1]
ROWS = {output: fake_vectors(IDS, output) for output in Output}
STRANGE = {
    "one more column": lambda rows: np.hstack([rows, rows[:, :1]]),
    "half of the columns": lambda rows: rows[:, : max(1, rows.shape[1] // 2)],
    "no column": lambda rows: rows[:, :0],
    "rows as columns": lambda rows: rows.reshape(-1, 1) if rows.size > 1 else rows[:0],
    "twenty times": lambda rows: np.tile(rows, (20, 1)),
}


@pytest.mark.parametrize("output", list(Output))
def test_a_models_own_rows_fit(output: Output) -> None:
    """The rows that a model gives are known as such, whatever the text."""
    assert KINDS[output].fits(ROWS[output], FACTS, len(IDS))


@pytest.mark.parametrize("output", list(Output))
@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_rows_of_another_shape_do_not_fit(output: Output, change: Any) -> None:
    """A value from elsewhere that has another shape is nobody's result."""
    strange = change(ROWS[output])
    if strange.shape == ROWS[output].shape:
        pytest.skip("there is nothing to halve")
    assert not KINDS[output].fits(strange, FACTS, len(IDS))


@pytest.mark.parametrize(
    "rows",
    [
        [[1.5, 1]],
        [[-1, 1]],
        [[FACTS.vocab_size, 1]],
        [[7, 0]],
        [[7, -1]],
        [[8, 1], [7, 1]],
        [[7, 1]] * 2,
    ],
)
def test_weights_are_of_known_tokens(rows: list[list[float]]) -> None:
    """Weights stand beside ascending token ids of the model, and are above 0."""
    assert KINDS[Output.SPARSE].fits(np.array([[7, 0.5], [9, 2]], np.float32), FACTS, 5)
    assert not KINDS[Output.SPARSE].fits(np.array(rows, np.float32), FACTS, 5)
