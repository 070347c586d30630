"""Turns the queries of a score job into vectors, from a split's features or from text.

A student reads the token states of a text; the teacher gives one pooled vector per text.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import safetensors.numpy

from prvr_ray.collection import FeatureSet
from prvr_ray.encoders import Encoder, find_encoder, load_encoder
from prvr_ray.index.student_encoder import encode_queries
from prvr_ray.index.teacher_encoder import TEACHER, unit_rows
from prvr_ray.runs.run import RunFolder
from prvr_ray.scores.job import query_key
from prvr_ray.scores.partial import pack_names
from prvr_ray.storage import Store
from prvr_ray.student.model import Student


def text_encoder_name(features: FeatureSet, role: str = "student", override: str = "") -> str:
    """Return the name of the encoder that turns text into the student's token states or the teacher's vectors.

    Args:
        role: student or teacher.
        override: location of the encoder, if the user gave one; empty: that of the features' spec.

    Raises:
        ValueError: the features were imported, or no encoder with the weights that made them is found.
    """
    spec = features.spec()
    encoder = spec[role]
    if "imported" in spec:
        raise ValueError(
            f"features/{features.store.uri.rpartition('/')[2]} were imported: their text vectors "
            f"({encoder.get('text_name', encoder['name'])}) come from no encoder that is here, so new text cannot be "
            f"encoded; use a split whose text features were imported too, or train on features of `prvr ingest`"
        )
    return find_encoder(encoder, features.collection.store.uri, override)


def encode_texts(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    """Return the token states of texts in float16, as ingest stores them."""
    return [states_TD.astype(np.float16) for states_TD in encoder.encode_text(texts)[1]]


def encode_pooled(encoder: Encoder, texts: list[str]) -> dict[str, np.ndarray]:
    """Return the teacher's unit vectors of texts. They are rounded to float16 first, as ingest stores them."""
    return {TEACHER: unit_rows(encoder.encode_text(texts)[0].astype(np.float16))}


@dataclass(frozen=True)
class QueryPlan:
    """What a worker needs to encode queries.

    run, weights: the student that made the index, as `RunFolder.best_weights` says; None: the teacher made it.
    encoder: name of the text encoder; empty: the rows are located rows of `features.queries()`.
    """

    run: RunFolder | None
    weights: dict[str, str] | None
    features: FeatureSet
    encoder: str
    store: Store


class QueryEncoder:
    """Encodes queries and puts their vectors."""

    def __init__(self, plan: QueryPlan, device: str):
        self._plan, self._device = plan, device
        self._student = plan.run.load_student(plan.weights) if plan.run else None
        self._encoder = load_encoder(plan.encoder, device) if plan.encoder else None

    def put(self, file: int, rows: pa.Table) -> None:
        """Put the vectors of one query file.

        Raises:
            ValueError: a vector that is not finite, naming the query.
        """
        ids, vectors = self._by_teacher(rows) if self._student is None else self._by_student(self._student, rows)
        is_broken_Q = ~np.all([np.isfinite(rows_QD).all(1) for rows_QD in vectors.values()], axis=0)
        if is_broken_Q.any():
            raise ValueError(f"the vector of query {ids[is_broken_Q.argmax()]!r} holds NaN or infinity")
        data = safetensors.numpy.save({**vectors, "ids": pack_names(ids)})
        # An existing file is not replaced, because a unit may already have been scored with its vectors.
        self._plan.store.put_if_absent(query_key(file), data)

    def _by_student(self, student: Student, rows: pa.Table) -> tuple[list[str], dict[str, np.ndarray]]:
        ids, tokens = self._tokens(rows)
        keep_last = self._plan.features.has_causal_text
        return ids, encode_queries(student, tokens, self._device, keep_last=keep_last)

    def _by_teacher(self, rows: pa.Table) -> tuple[list[str], dict[str, np.ndarray]]:
        if self._encoder:
            return rows["query_id"].to_pylist(), encode_pooled(self._encoder, rows["text"].to_pylist())
        found = {query.query_id: query.teacher for query in self._plan.features.read_queries(rows)}
        return sorted(found), {TEACHER: unit_rows([found[query_id] for query_id in sorted(found)])}

    def _tokens(self, rows: pa.Table) -> tuple[list[str], list[np.ndarray]]:
        if self._encoder:
            return rows["query_id"].to_pylist(), encode_texts(self._encoder, rows["text"].to_pylist())
        found = {query.query_id: query.tokens for query in self._plan.features.read_queries(rows)}
        return sorted(found), [found[query_id] for query_id in sorted(found)]
