"""Questions of a score job to vectors: from a split's features, or from text by the run's own encoder. No Ray here."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import safetensors.numpy

from prvr_ray.collection import FeatureSet
from prvr_ray.encoders import Encoder, describe_encoder, load_encoder
from prvr_ray.runs import RunFolder
from prvr_ray.stages.score_job import pack_names, query_key
from prvr_ray.stages.student_vectors import encode_queries
from prvr_ray.storage import Store


def text_encoder_name(features: FeatureSet) -> str:
    """The encoder that turns text into what the run's student reads.

    Raises:
        ValueError: the features were imported, or the encoder's weights are not those that made them.
    """
    spec = features.spec()
    student = spec["student"]
    if "imported" in spec:
        raise ValueError(
            f"features/{features.store.uri.rpartition('/')[2]} were imported: their text vectors "
            f"({student.get('text_name', student['name'])}) come from no encoder that is here, so new text cannot be "
            f"asked; ask a split whose text features were imported too, or train on features of `prvr ingest`"
        )
    found = describe_encoder(student["name"])
    if found.weights_sha256 != student["weights_sha256"]:
        raise ValueError(
            f"encoder {student['name']!r} has weights {found.weights_sha256[:12]} here, the features were made with "
            f"{student['weights_sha256'][:12]}"
        )
    return student["name"]


def encode_texts(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    """Token states of texts, as ingest would have stored them: float16."""
    return [states_TD.astype(np.float16) for states_TD in encoder.encode_text(texts)[1]]


@dataclass(frozen=True)
class QueryPlan:
    """What a worker needs to encode questions.

    weights: the student that made the index, as `RunFolder.best_weights` says.
    encoder: name of the text encoder; empty: the rows are located rows of `features.queries()`.
    """

    run: RunFolder
    weights: dict[str, str]
    features: FeatureSet
    encoder: str
    store: Store


class QueryEncoder:
    """Encodes questions and puts their vectors."""

    def __init__(self, plan: QueryPlan, device: str):
        self._plan, self._student, self._device = plan, plan.run.load_student(plan.weights), device
        self._encoder = load_encoder(plan.encoder, device) if plan.encoder else None

    def put(self, file: int, rows: pa.Table) -> None:
        """Put the vectors of the questions of one file of the job.

        Raises:
            ValueError: a vector that is not finite, naming the question.
        """
        ids, tokens = self._tokens(rows)
        vectors = encode_queries(self._student, tokens, self._device)
        is_broken_Q = ~np.all([np.isfinite(rows_QD).all(1) for rows_QD in vectors.values()], axis=0)
        if is_broken_Q.any():
            raise ValueError(f"the vector of query {ids[is_broken_Q.argmax()]!r} holds NaN or infinity")
        data = safetensors.numpy.save({**vectors, "ids": pack_names(ids)})
        # An earlier attempt's vectors may have been read already: they stay.
        self._plan.store.put_if_absent(query_key(file), data)

    def _tokens(self, rows: pa.Table) -> tuple[list[str], list[np.ndarray]]:
        if self._encoder:
            return rows["query_id"].to_pylist(), encode_texts(self._encoder, rows["text"].to_pylist())
        found = {query.query_id: query.tokens for query in self._plan.features.read_queries(rows)}
        return sorted(found), [found[query_id] for query_id in sorted(found)]
