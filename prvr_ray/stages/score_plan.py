"""Plans a score job: which questions, which shards, and how both are cut into units. No Ray here."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import FeatureSet, declare_spec
from prvr_ray.config import ScoreSettings
from prvr_ray.stages.index_folder import IndexFolder
from prvr_ray.stages.query_files import is_file, read_questions
from prvr_ray.stages.query_vectors import QueryPlan, text_encoder_name
from prvr_ray.stages.score_job import QUERIES_PER_FILE, ScoreJob
from prvr_ray.storage import check_name, put_json_if_absent

# A partial is at most 1/8 of the shards that it was made from; 1/32 where that leaves enough units to share out, for
# partials are put, read and merged besides.
_MIN_RATIO, _RATIO, _ENOUGH_UNITS = 8, 32, 64
_ANSWER_BYTES, _MOMENT_BYTES = 20, 24  # of a partial

Json = dict[str, Any]
Counts = dict[str, int]


def find_questions(source: str, folder: IndexFolder, output: str) -> tuple[pa.Table, QueryPlan, Counts]:
    """The questions by id, how to encode them, and how many are left out: they have no text, or no features of it.

    Args:
        source: a split, a file, or `-`; see `prvr_ray.stages.query_files`.

    Raises:
        ValueError: no questions there, text that the index's run cannot read, a run that has gone on since, or an
            output that is no single folder's name.
    """
    check_name("output", output)
    run, spec = folder.run(), folder.spec()
    weights = {name: spec[name] for name in ("weights", "weights_sha256")}
    features = folder.collection.features(spec["features"])
    store = folder.collection.store.child(f"scores/{output}")
    if is_file(source):
        found = read_questions(source)
        plan = QueryPlan(run, weights, features, text_encoder_name(features), store)
        return found.rows, plan, {"queries_without_text": found.num_empty}
    rows, num_left_out = _split_queries(source, features)
    return rows, QueryPlan(run, weights, features, "", store), {"queries_without_features": num_left_out}


def plan_job(settings: ScoreSettings, folder: IndexFolder, rows: pa.Table, queries: QueryPlan) -> tuple[Json, Json]:
    """What is asked, and how it would be done now: spec.json and plan.json.

    Raises:
        ValueError: the index holds nothing.
    """
    removed = folder.collection.removed()  # first: what is removed in between must look new to a resumed call
    shards, missing = folder.plan()
    if not any(shard["rows"] > len(shard["skip"]) for shard in shards):
        raise ValueError(f"index {folder.name!r} holds no windows; {'; '.join(missing) or '`prvr index` adds them'}")
    spec = _spec(settings, folder, rows, queries)
    files = min(max(1, settings.query_block // QUERIES_PER_FILE), -(-len(rows) // QUERIES_PER_FILE))
    answer_bytes = _ANSWER_BYTES * spec["top_k"] + _MOMENT_BYTES * spec["num_moments"]
    partial_bytes = min(files * QUERIES_PER_FILE, len(rows)) * answer_bytes
    return spec, {
        "num_queries": len(rows),
        "query_block": files * QUERIES_PER_FILE,
        "shards": shards,
        "units": cut_units(shards, unit_size(settings.unit_bytes, partial_bytes, shards)),
        "missing": missing,
        "removed": removed.to_pylist(),
    }


def begin_job(settings: ScoreSettings, folder: IndexFolder, queries: QueryPlan, spec: Json, plan: Json) -> ScoreJob:
    """Put spec and plan, or go on with those that stand; a job that is not finished leaves out what was removed since.

    Raises:
        ValueError: a job of that name asks something else; each difference is named.
    """
    spec = declare_spec(queries.store, spec)
    standing = put_json_if_absent(queries.store, "plan.json", plan)
    removed = sorted({*plan["removed"]}.difference(standing.get("removed", ())))  # older plans do not say
    root, name = folder.collection.store.uri, queries.store.uri.rpartition("/")[2]
    job = ScoreJob(root, name, spec, standing, settings.mode, removed=tuple(removed))
    if not job.finished():
        job.drop_removed()
    return job


def sizes(plan: Json) -> dict[str, int]:
    """How much a plan reads, and in how many units."""
    num_blocks = -(-plan["num_queries"] // plan["query_block"])
    return {
        "windows": sum(shard["rows"] - len(shard["skip"]) for shard in plan["shards"]),
        "bytes": sum(shard["bytes"] for shard in plan["shards"]),
        "units": num_blocks * len(plan["units"]),
    }


def unit_size(wanted: int, partial_bytes: int, shards: list[Json]) -> int:
    """Bytes of shards in one unit, about: what is wanted, or more where its partial would not be small beside it."""
    total = sum(shard["bytes"] for shard in shards)
    return max(wanted, _MIN_RATIO * partial_bytes, min(_RATIO * partial_bytes, total // _ENOUGH_UNITS))


def cut_units(shards: list[Json], unit_bytes: int) -> list[tuple[int, int]]:
    """Cut shards into consecutive ranges [start, stop) of about unit_bytes each."""
    ends = np.cumsum([shard["bytes"] for shard in shards])
    units, start = [], 0
    while start < len(shards):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + unit_bytes, side="right")))
        units.append((start, stop))
        start = stop
    return units


def _split_queries(split: str, features: FeatureSet) -> tuple[pa.Table, int]:
    """The split's queries with features, and how many have none."""
    known = features.collection.queries()
    in_split = known.filter(pc.equal(known["split"], split))["query_id"]
    if not len(in_split):
        splits = ", ".join(sorted(str(name) for name in known["split"].unique().to_pylist())) or "none"
        raise ValueError(f"--queries {split!r} is neither a parquet, jsonl, csv or txt file nor a split ({splits})")
    encoded = features.queries()
    rows = encoded.filter(pc.is_in(encoded["query_id"], in_split.combine_chunks()))
    if not len(rows):
        raise ValueError(f"no query of split {split!r} has features; `prvr ingest` encodes captions")
    return rows.sort_by("query_id"), len(in_split) - len(rows)


def _spec(settings: ScoreSettings, folder: IndexFolder, rows: pa.Table, queries: QueryPlan) -> Json:
    """What is asked: a job of the same name must ask the same."""
    index_spec, student = folder.spec(), queries.run.config().student
    text = rows["text" if "text" in rows.schema.names else "text_hash"].to_pylist()
    asked = json.dumps([rows["query_id"].to_pylist(), text]).encode()
    return {
        "index": folder.name,
        "run": index_spec["run"],
        "weights_sha256": index_spec["weights_sha256"],
        "dim": index_spec["dim"],
        "weights": [[branch, getattr(student, f"{branch}_weight")] for branch in index_spec["branches"]],
        "queries_sha256": hashlib.sha256(asked).hexdigest(),
        "top_k": settings.top_k,
        "num_moments": min(settings.num_moments, settings.top_k),
        "moment_threshold": settings.moment_threshold,
    }
