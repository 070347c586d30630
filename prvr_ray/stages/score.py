"""`prvr score`: exact top-k answers to many queries over an index, on a pool of Ray actors.

`prvr_ray.scores.plan` plans a job, and `prvr_ray.scores.job` describes it and does the work of one actor. This module
starts the actors and assigns their tasks.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from prvr_ray.collection import existing_collection, preview_spec
from prvr_ray.config import ScoreSettings
from prvr_ray.devices import choose_device
from prvr_ray.index.index import IndexFolder
from prvr_ray.progress import Steps
from prvr_ray.scores.job import ADVICE, QUERIES_PER_FILE, QueryVectors, ScoreJob, query_key
from prvr_ray.scores.plan import OLDER, begin_job, find_queries, plan_job, sizes
from prvr_ray.scores.query_encoder import QueryEncoder, QueryPlan
from prvr_ray.stages.resources import Worker, choose_pool_size, count_room, require
from prvr_ray.stages.session import connect
from prvr_ray.storage import put_json
from prvr_ray.worker_errors import raise_told, tell

Json = dict[str, Any]
_FIRST_NOTICE_S, _NEXT_NOTICE_S = 60.0, 180.0  # without any scorer
_MOST_LOSSES = 5  # lost scorers per task; one more, and the task itself is taken to be the cause


def score(
    settings: ScoreSettings,
    *,
    root: str,
    index: str,
    queries: str,
    output: str,
    address: str | None = None,
    allow_missing: bool = False,
    encoder: str = "",
    filter: Sequence[str] = (),
    dry_run: bool = False,
) -> Json:
    """Answer queries with the best videos of an index. Resumes from the work of an interrupted call.

    Args:
        root: the collection.
        index: to search.
        queries: a split of the collection, a parquet, jsonl, csv or txt file of text, or `-`: lines of standard input.
        output: name of the job; its answers go to scores/<output>.
        address: of a Ray cluster; None: embedded.
        allow_missing: leave out shards that are missing or damaged; the summary names them.
        encoder: where the text encoder is now, MODEL:WEIGHTS; empty: where the features' spec says.
        filter: see `prvr_ray.collection.filters`.
        dry_run: only say what would be done.

    Returns:
        Counts of queries, windows (with removed videos'), bytes and units; missing shards; `top_k_cut_to` if it was.

    Raises:
        ValueError: unusable queries, no such index, missing shards, or a job of that name that asks otherwise.
    """
    folder = IndexFolder(existing_collection(root), index)
    rows, query_plan, left_out = find_queries(queries, folder, output, encoder)
    spec, plan = plan_job(settings, folder, rows, query_plan, filter)
    if plan["missing"] and not allow_missing:
        raise ValueError(f"{'; '.join(plan['missing'])}. {ADVICE}")
    counts: Json = {"queries": len(rows), **left_out}
    if plan["top_k"] < settings.top_k:
        counts["top_k_cut_to"] = plan["top_k"]
    if left_out.get("queries_without_features"):
        counts["warning"] = "queries without features have no answers; `prvr ingest` encodes captions"
    if dry_run:
        preview_spec(query_plan.store, spec, older=OLDER)
        return {**counts, **sizes(plan), "output": query_plan.store.uri}
    job = begin_job(settings, folder, query_plan, spec, plan)
    if done := job.finished():
        return _finish(job, {**done, "units_scored": 0})
    job = replace(job, allow_missing=allow_missing)
    job.drop_incomplete()
    units = job.pending_units()
    if job.pending_blocks():
        with connect(address):
            scorers = start_scorers(job, len(units), query_plan, settings)
            files = _pending_query_files(rows, query_plan)
            run_on_pool(scorers, "put_queries", files, "queries", [len(part) for _, part in files])
            run_on_pool(scorers, "score", units, "units")
            run_on_pool(scorers, "merge", [(block,) for block in job.pending_blocks()], "blocks")
    missing = [*job.plan["missing"], *job.missing_shards()]
    return _finish(job, {**counts, **sizes(job.plan), "units_scored": len(units), "missing": missing})


def start_scorers(job: ScoreJob, num_tasks: int, queries: QueryPlan, settings: ScoreSettings) -> list[Any]:
    """Ask for the actors of the pool; those of nodes that are still to start come later."""
    worker = Worker("scorer", settings.scorer_cpus, settings.scorer_gpus, labels=settings.scorer_labels)
    require(worker)
    num_scorers = choose_pool_size(1, settings.num_scorers or max(1, count_room(worker)), num_tasks)
    # Spot nodes come and go: an actor restarts elsewhere, and its unfinished call is repeated.
    remote = ray.remote(Scorer).options(max_restarts=-1, max_task_retries=-1, **worker.options)
    return [remote.remote(job, queries, settings.scorer_gpus) for _ in range(num_scorers)]


def run_on_pool(scorers: list[Any], method: str, tasks: list[tuple], unit: str, sizes: list[int] | None = None) -> None:
    """Call a method once for each task; a scorer gets a task when it has started, and the next when it is done.

    The first error ends the job. The task of a lost scorer goes to the next free one, since Ray may find no node to
    start the lost one again. A task that is done twice puts the same content under the same name.

    Args:
        tasks: arguments of each call.
        unit: what progress counts. sizes: how much of it each task is; None: one.
    """
    sizes = sizes or [1] * len(tasks)
    waiting, losses = deque(range(len(tasks))), Counter[int]()
    free: list[Any] = []
    in_flight: dict[Any, tuple[Any, int | None]] = {scorer.ready.remote(): (scorer, None) for scorer in scorers}
    num_left = len(tasks)
    with Steps(method, sum(sizes), unit) as steps:
        while num_left:
            while free and waiting:
                scorer, next_task = free.pop(), waiting.popleft()
                call = getattr(scorer, method).options(max_task_retries=0)
                in_flight[call.remote(*tasks[next_task])] = scorer, next_task
            done = _wait(in_flight, method, steps)
            scorer, task = in_flight.pop(done)
            if task is None:
                ray.get(done)
                free.append(scorer)
            elif _is_done(done, method, losses[task]):
                num_left -= 1
                steps.advance(sizes[task])
                free.append(scorer)
            else:
                losses[task] += 1
                waiting.append(task)
                in_flight[scorer.ready.remote()] = scorer, None


def _wait(in_flight: dict[Any, tuple[Any, int | None]], method: str, steps: Steps) -> Any:
    """Return a call that has ended. While no scorer has started, say so after a minute, then every few minutes."""
    waited_s, timeout_s = 0.0, _FIRST_NOTICE_S
    while True:
        done, _ = ray.wait(list(in_flight), timeout=timeout_s)
        if done:
            return done[0]
        waited_s, timeout_s = waited_s + timeout_s, _NEXT_NOTICE_S
        if all(task is None for _, task in in_flight.values()):
            steps.say(
                f"{method}: none of {len(in_flight)} scorer(s) has started after {waited_s:.0f} s; `ray status` on the "
                "head says what the autoscaler waits for: a quota of 0 and missing capacity both look like this"
            )


def _is_done(answer: Any, method: str, num_losses: int) -> bool:
    """Return whether a task is done; if not, its scorer was lost. Raises the scorer's error if it tells one."""
    try:
        told = ray.get(answer)
    except (RayActorError, OutOfMemoryError) as error:
        if num_losses == _MOST_LOSSES:
            raise ValueError(
                f"one task of {method!r} lost {num_losses + 1} scorers; the last: {str(error).strip().splitlines()[-1]}"
            ) from None
        return False
    raise_told(told)
    return True


def _pending_query_files(rows: pa.Table, queries: QueryPlan) -> list[tuple[int, pa.Table]]:
    """The queries whose vectors are still to be put, by query file."""
    existing = {item.key for item in queries.store.list("queries/")}
    files = enumerate(range(0, len(rows), QUERIES_PER_FILE))
    return [
        (number, rows.slice(start, QUERIES_PER_FILE)) for number, start in files if query_key(number) not in existing
    ]


class Scorer:
    """An actor of the pool. Its methods tell their errors (`prvr_ray.worker_errors`)."""

    def __init__(self, job: ScoreJob, queries: QueryPlan, num_gpus: float):
        self._job, self._queries = job, queries
        self._num_gpus = num_gpus
        self._resident: tuple[int, QueryVectors] | None = None

    def ready(self) -> None:
        """Return once this actor has started."""

    def put_queries(self, file: int, rows: pa.Table) -> str | None:
        """Encode queries and put their vectors."""
        return tell(self._encode, file, rows)

    def score(self, block: int, unit: int) -> str | None:
        """Put one partial, unless an earlier attempt did."""
        if self._job.store.exists(self._job.partial_key(block, unit)):
            return None
        return tell(self._score, block, unit)

    def merge(self, block: int) -> str | None:
        """Put a block's parts."""
        return tell(self._merge, block)

    @cached_property
    def _device(self) -> str:
        """Chosen within a method, which can tell the driver of an unusable GPU; a constructor cannot."""
        return choose_device(self._num_gpus)

    @cached_property
    def _encoder(self) -> QueryEncoder:
        return QueryEncoder(self._queries, self._device)

    def _encode(self, file: int, rows: pa.Table) -> None:
        self._encoder.put(file, rows)

    def _score(self, block: int, unit: int) -> None:
        if self._resident is None or self._resident[0] != block:
            self._resident = block, self._job.read_queries(block, self._device)
        self._job.put_partial(block, unit, self._resident[1])

    def _merge(self, block: int) -> None:
        for key, data in self._job.merge(block):
            self._job.store.put(key, data)


def _finish(job: ScoreJob, summary: Json) -> Json:
    """Put the summary, and delete the partials, which only an unfinished job needs."""
    summary = {**summary, "output": job.store.uri}
    put_json(job.store, "finished.json", summary)
    for item in job.store.list("partials/"):
        job.store.delete(item.key)
    return summary
