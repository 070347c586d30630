"""Which encoder makes which column of a query's row."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from prvr_ray.features.encode_worker import EncodePlan, EncodeQueries
from prvr_ray.schema import text_hash, unpack_vectors


@dataclass
class Constant:
    """An encoder whose vectors are all one value."""

    value: float

    def encode_text(self, texts):
        return np.full((len(texts), 2), self.value), [np.full((3, 2), -self.value) for _ in texts]


@pytest.mark.parametrize(("values", "of_tokens"), [([1.0], -1.0), ([1.0, 2.0], -2.0)])
def test_the_teacher_pools_and_the_student_has_its_own_encoders_tokens(monkeypatch, values, of_tokens):
    monkeypatch.setattr(EncodePlan, "load", lambda plan: [Constant(value) for value in values])
    worker = EncodeQueries(EncodePlan(("a", "b")[: len(values)], (0,), 1, 1, 0))
    [row] = worker(pa.table({"query_id": ["q"], "text": ["a text"]})).to_pylist()
    assert (row["query_id"], row["text_hash"], row["num_tokens"]) == ("q", text_hash("a text"), 3)
    assert unpack_vectors(pa.scalar(row["teacher"], pa.large_binary()), 2).tolist() == [[1, 1]]
    assert unpack_vectors(pa.scalar(row["student"], pa.large_binary()), 2).tolist() == [[of_tokens] * 2] * 3
