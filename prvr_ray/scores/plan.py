"""Plans a score job: its queries, its shards, and how both are divided."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import EncodedQueries, FeatureSet, declare_spec
from prvr_ray.collection.filters import matching_videos
from prvr_ray.config import ScoreSettings
from prvr_ray.encoders import find_long_texts
from prvr_ray.index.index import IndexFolder
from prvr_ray.runs.run import RunFolder
from prvr_ray.scores.job import QUERIES_PER_FILE, ScoreJob
from prvr_ray.scores.query_encoder import QueryPlan, text_encoder_name
from prvr_ray.scores.query_files import is_file, read_queries
from prvr_ray.storage import check_name, put_json_if_absent

# A partial is at most 1/8 the size of its unit's shards, or 1/32 where that still leaves enough units for all workers:
# partials are written, read and merged on top of reading the shards.
_MIN_RATIO, _RATIO, _ENOUGH_UNITS = 8, 32, 64
_ANSWER_BYTES, _MOMENT_BYTES = 20, 24  # of a partial
_MOST_ANSWERS = 1 << 26  # of a block, of one query file at least: a scorer holds 28 bytes for each

OLDER: dict[str, Any] = {"filters": []}  # what jobs of versions without these keys did

Json = dict[str, Any]
Counts = dict[str, Any]

_NUM_NAMED = 10  # examples in a summary


def find_queries(
    source: str, folder: IndexFolder, output: str, encoder: str = ""
) -> tuple[pa.Table, QueryPlan, Counts]:
    """Return the queries by id, how to encode them, and how many are left out for lack of text or of features.

    Args:
        source: a split, a file, or `-`; see `prvr_ray.scores.query_files`.
        encoder: where the text encoder is now; empty: where the features' spec says.

    Raises:
        ValueError: no queries there, text that the index's run cannot read, a run that has gone on since, or an
            output that is no single folder's name.
    """
    check_name("output", output)
    run, spec = folder.run(), folder.spec()
    weights = {name: spec[name] for name in ("weights", "weights_sha256")} if run else None
    features = folder.collection.features(spec["features"])
    store = folder.collection.store.child(f"scores/{output}")
    role = "student" if run else "teacher"
    if is_file(source):
        found = read_queries(source)
        plan = QueryPlan(run, weights, features, text_encoder_name(features, role, encoder), store)
        return found.rows, plan, {"queries_without_text": found.num_empty, **_long_queries(found.rows, features, role)}
    queries, encoded = _split_queries(source, features)
    left_out: Counts = {"queries_without_features": len(encoded.missing) + len(encoded.stale)}
    if encoded.stale:
        left_out["queries_with_changed_text"] = {"count": len(encoded.stale), "such_as": encoded.stale[:_NUM_NAMED]}
    return encoded.rows, QueryPlan(run, weights, features, "", store), left_out | _long_queries(queries, features, role)


def _long_queries(queries: pa.Table, features: FeatureSet, role: str) -> Counts:
    """Queries that are longer than the context of the student's or the teacher's encoder, where there are any."""
    return find_long_texts(features.spec()[role], queries["query_id"].to_pylist(), queries["text"].to_pylist())


def plan_job(
    settings: ScoreSettings, folder: IndexFolder, rows: pa.Table, queries: QueryPlan, filters: Sequence[str] = ()
) -> tuple[Json, Json]:
    """Return the contents of spec.json, the request, and of plan.json, how a job started now would answer it.

    Args:
        filters: answer only with videos that match all of these; shards without such a video are not read.

    Raises:
        ValueError: the index holds nothing, or a filter is unusable or leaves no video.
    """
    removed = folder.collection.removed()  # first: what is removed in between must look new to a resumed call
    manifest, missing = folder.manifest()
    shards = folder.planned(manifest)
    if not any(shard["rows"] > len(shard["skip"]) for shard in shards):
        raise ValueError(f"index {folder.name!r} holds no windows; {'; '.join(missing) or '`prvr index` adds them'}")
    spec = _job_spec(settings, folder, rows, queries) | {"filters": list(filters)}
    num_videos = manifest.num_videos
    if filters:
        matching = matching_videos(folder.collection.videos(), filters)
        shards, num_videos = folder.restrict(shards, matching), min(num_videos, len(matching))
        if not shards:
            raise ValueError(f"{' and '.join(filters)} leaves {len(matching)} videos, none of them in this index")
    top_k = min(spec["top_k"], num_videos)
    per_block = min(settings.query_block, _MOST_ANSWERS // top_k)
    files = min(max(1, per_block // QUERIES_PER_FILE), -(-len(rows) // QUERIES_PER_FILE))
    answer_bytes = _ANSWER_BYTES * top_k + _MOMENT_BYTES * min(spec["num_moments"], top_k)
    partial_bytes = min(files * QUERIES_PER_FILE, len(rows)) * answer_bytes
    return spec, {
        "num_queries": len(rows),
        "top_k": top_k,
        "query_block": files * QUERIES_PER_FILE,
        "shards": shards,
        "units": cut_units(shards, unit_size(settings.unit_bytes, partial_bytes, shards)),
        "missing": missing,
        "removed": removed.to_pylist(),
    }


def begin_job(settings: ScoreSettings, folder: IndexFolder, queries: QueryPlan, spec: Json, plan: Json) -> ScoreJob:
    """Put spec and plan, or resume the job that has them; an unfinished one leaves out the videos removed since.

    Raises:
        ValueError: a job of that name asks something else; each difference is named.
    """
    spec = declare_spec(queries.store, spec, older=OLDER)
    existing = put_json_if_absent(queries.store, "plan.json", plan)
    removed = sorted({*plan["removed"]}.difference(existing.get("removed", ())))  # older plans do not say
    root, name = folder.collection.store.uri, queries.store.uri.rpartition("/")[2]
    job = ScoreJob(root, name, spec, existing, settings.mode, removed=tuple(removed))
    if not job.finished():
        job.drop_removed()
    return job


def sizes(plan: Json) -> dict[str, int]:
    """Return how many windows and bytes a plan reads, and in how many units."""
    num_blocks = -(-plan["num_queries"] // plan["query_block"])
    return {
        "windows": sum(shard["rows"] - len(shard["skip"]) for shard in plan["shards"]),
        "bytes": sum(shard["bytes"] for shard in plan["shards"]),
        "units": num_blocks * len(plan["units"]),
    }


def unit_size(wanted: int, partial_bytes: int, shards: list[Json]) -> int:
    """Return about how many bytes of shards a unit has: as requested, or more to keep its partial small beside it."""
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


def _split_queries(split: str, features: FeatureSet) -> tuple[pa.Table, EncodedQueries]:
    """The split's queries, and which of them have features."""
    known = features.collection.queries()
    in_split = known.filter(pc.equal(known["split"], split))
    if not len(in_split):
        splits = ", ".join(sorted(str(name) for name in known["split"].unique().to_pylist())) or "none"
        raise ValueError(f"--queries {split!r} is neither a parquet, jsonl, csv or txt file nor a split ({splits})")
    encoded = features.match_queries(in_split)
    encoded.check(f"split {split!r}")
    if not len(encoded.rows):
        raise ValueError(f"no query of split {split!r} has features; `prvr ingest` encodes captions")
    return in_split, encoded


def _job_spec(settings: ScoreSettings, folder: IndexFolder, rows: pa.Table, queries: QueryPlan) -> Json:
    """Return the request; a second job of the same name must make the same one."""
    index_spec = folder.spec()
    made_by: Json = {name: index_spec[name] for name in ("run", "weights_sha256", "made_by") if name in index_spec}
    text = rows["text" if "text" in rows.schema.names else "text_hash"].to_pylist()
    asked = json.dumps([rows["query_id"].to_pylist(), text]).encode()
    return {
        "index": folder.name,
        **made_by,
        "dim": index_spec["dim"],
        "weights": [[branch, _weight(queries.run, branch)] for branch in index_spec["branches"]],
        "queries_sha256": hashlib.sha256(asked).hexdigest(),
        "top_k": settings.top_k,
        "num_moments": min(settings.num_moments, settings.top_k),
        "moment_threshold": settings.moment_threshold,
    }


def _weight(run: RunFolder | None, branch: str) -> float:
    """Of a branch in the served score: the run's own; 1 for the teacher alone."""
    return getattr(run.config().student, f"{branch}_weight") if run else 1.0
