"""`prvr score`: exact top-k answers to many questions over an index, on a pool of Ray actors.

What a job is made of, and what its workers do, stands in `score_job`, its planning in `score_plan`; here its work is
dealt out.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from prvr_ray.collection import existing_collection
from prvr_ray.config import ScoreSettings
from prvr_ray.stages.devices import device_of
from prvr_ray.stages.index_folder import IndexFolder
from prvr_ray.stages.progress import Steps
from prvr_ray.stages.query_vectors import QueryEncoder, QueryPlan
from prvr_ray.stages.resources import Worker, pool_size, require, room
from prvr_ray.stages.score_job import QUERIES_PER_FILE, Questions, ScoreJob, query_key
from prvr_ray.stages.score_plan import begin_job, find_questions, plan_job, sizes
from prvr_ray.stages.session import connect
from prvr_ray.storage import put_json

Json = dict[str, Any]
_MOST_LOSSES = 5  # of the scorers of one task: after that the task is taken to be what ends them


def score(
    settings: ScoreSettings,
    *,
    root: str,
    index: str,
    queries: str,
    output: str,
    address: str | None = None,
    allow_missing: bool = False,
    dry_run: bool = False,
) -> Json:
    """Answer questions with the best videos of an index. What a killed call did is gone on from.

    Args:
        root: the collection.
        index: to search.
        queries: a split of the collection, a parquet, jsonl, csv or txt file of text, or `-`: lines of standard input.
        output: name of the job; its answers go to scores/<output>.
        address: of a Ray cluster; None: embedded.
        allow_missing: go on without shards that are lost or damaged; the plan says so.
        dry_run: only say what would be done.

    Returns:
        Counts of queries, windows, bytes and units; and the shards that were missing.

    Raises:
        ValueError: unusable questions, no such index, shards that are lost, or a job of that name that asks otherwise.
    """
    folder = IndexFolder(existing_collection(root), index)
    rows, query_plan, left_out = find_questions(queries, folder, output)
    spec, plan = plan_job(settings, folder, rows, query_plan)
    _refuse(plan["missing"], allow_missing)
    counts: Json = {"queries": len(rows), **left_out}
    if left_out.get("queries_without_features"):
        counts["warning"] = "queries without features have no answers; `prvr ingest` encodes captions"
    if dry_run:
        return {**counts, **sizes(plan), "output": query_plan.store.uri}
    job = begin_job(settings, folder, query_plan, spec, plan)
    if done := job.finished():
        return _finish(job, {**done, "units_scored": 0})
    gone = folder.unreadable(job.plan["shards"])
    _refuse(list(gone.values()), allow_missing)
    job = replace(job, absent=tuple(gone))
    job.note_absent()
    units = job.wanted_units()
    if job.wanted_blocks():
        with connect(address):
            scorers = start_scorers(job, len(units), query_plan, settings)
            files = _query_files(rows, query_plan)
            _deal(scorers, "put_queries", files, "queries", [len(part) for _, part in files])
            _deal(scorers, "score", units, "units")
            _deal(scorers, "merge", [(block,) for block in job.wanted_blocks()], "blocks")
    missing = [*job.plan["missing"], *gone.values()]
    return _finish(job, {**counts, **sizes(job.plan), "units_scored": len(units), "missing": missing})


def _refuse(missing: list[str], allow_missing: bool) -> None:
    if missing and not allow_missing:
        advice = "Restore it, or delete what is damaged and index again, or go on without by --allow-missing"
        raise ValueError(f"{'; '.join(missing)}. {advice}")


def start_scorers(job: ScoreJob, num_tasks: int, queries: QueryPlan, settings: ScoreSettings) -> list[Any]:
    """Ask for the actors of the pool; those of nodes that are still to start come later."""
    worker = Worker("scorer", settings.scorer_cpus, settings.scorer_gpus, labels=settings.scorer_labels)
    require(worker)
    num_scorers = pool_size(1, settings.num_scorers or max(1, room(worker)), num_tasks)
    # Spot nodes come and go: an actor starts again elsewhere, and what it had in hand is done again.
    remote = ray.remote(Scorer).options(max_restarts=-1, max_task_retries=-1, **worker.options)
    return [remote.remote(job, queries, settings.scorer_gpus) for _ in range(num_scorers)]


def _deal(scorers: list[Any], method: str, tasks: list[tuple], unit: str, sizes: list[int] | None = None) -> None:
    """Give each scorer that has come up a task, and the next one when it is done. The first error ends the job.

    The task of a lost scorer goes to the next free one, for no node may come where Ray could start the lost one again.
    A task that is done twice puts the same content under the same name.
    """
    sizes = sizes or [1] * len(tasks)
    waiting, losses = deque(range(len(tasks))), Counter[int]()
    free: list[Any] = []
    hands: dict[Any, tuple[Any, int | None]] = {scorer.ready.remote(): (scorer, None) for scorer in scorers}
    num_left = len(tasks)
    with Steps(method, sum(sizes), unit) as steps:
        while num_left:
            while free and waiting:
                scorer, next_task = free.pop(), waiting.popleft()
                call = getattr(scorer, method).options(max_task_retries=0)
                hands[call.remote(*tasks[next_task])] = scorer, next_task
            (done, *_), _ = ray.wait(list(hands))
            scorer, task = hands.pop(done)
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
                hands[scorer.ready.remote()] = scorer, None


def _is_done(answer: Any, method: str, num_losses: int) -> bool:
    """Whether a task has ended, or its scorer was lost. Raises ValueError: why the job cannot go on."""
    try:
        reason = ray.get(answer)
    except (RayActorError, OutOfMemoryError) as error:
        if num_losses == _MOST_LOSSES:
            raise ValueError(
                f"one task of {method!r} lost {num_losses + 1} scorers; the last: {str(error).strip().splitlines()[-1]}"
            ) from None
        return False
    if reason:
        raise ValueError(reason)
    return True


def _query_files(rows: pa.Table, queries: QueryPlan) -> list[tuple[int, pa.Table]]:
    """The questions whose vectors do not stand, by file."""
    standing = {item.key for item in queries.store.list("queries/")}
    files = enumerate(range(0, len(rows), QUERIES_PER_FILE))
    return [
        (number, rows.slice(start, QUERIES_PER_FILE)) for number, start in files if query_key(number) not in standing
    ]


class Scorer:
    """An actor of the pool. Its methods return None, or why the job cannot go on: that must not be tried again."""

    def __init__(self, job: ScoreJob, queries: QueryPlan, num_gpus: float):
        self._job, self._queries = job, queries
        self._device = device_of(num_gpus)
        self._resident: tuple[int, Questions] | None = None

    def ready(self) -> None:
        """Answer: this actor has come up."""

    def put_queries(self, file: int, rows: pa.Table) -> str | None:
        """Encode questions and put their vectors."""
        return _reason(self._encoder.put, file, rows)

    def score(self, block: int, unit: int) -> str | None:
        """Put one partial, unless an earlier attempt did."""
        if self._job.store.exists(self._job.unit_key(block, unit)):
            return None
        return _reason(self._score, block, unit)

    def merge(self, block: int) -> str | None:
        """Turn a block's partials into its parts."""
        return _reason(self._merge, block)

    @cached_property
    def _encoder(self) -> QueryEncoder:
        return QueryEncoder(self._queries, self._device)

    def _score(self, block: int, unit: int) -> None:
        if self._resident is None or self._resident[0] != block:
            self._resident = block, self._job.questions(block, self._device)
        self._job.store.put(self._job.unit_key(block, unit), self._job.score(unit, self._resident[1]))

    def _merge(self, block: int) -> None:
        for key, data in self._job.merge(block):
            self._job.store.put(key, data)


def _reason(work: Callable[..., None], *arguments: Any) -> str | None:
    try:
        work(*arguments)
    except ValueError as error:
        return str(error)
    return None


def _finish(job: ScoreJob, summary: Json) -> Json:
    """Put the summary, and drop what only a resumed call would need."""
    summary = {**summary, "output": job.store.uri}
    put_json(job.store, "finished.json", summary)
    for item in job.store.list("partials/"):
        job.store.delete(item.key)
    return summary
