"""`prvr report`: reads a ROOT, builds the page's sections and stores the page."""

import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import Collection, existing_collection
from prvr_ray.collection.history import read_history
from prvr_ray.config import ReportSettings
from prvr_ray.report import answers, comparison, recall, study
from prvr_ray.report.answers import Query, Video, answers_section, choose, find
from prvr_ray.report.comparison import comparison_section
from prvr_ray.report.corpus import Corpus, corpus_section, describe, read_corpus
from prvr_ray.report.evaluation import Bootstrap, Evaluation, read_evaluation
from prvr_ray.report.filmstrips import Projector
from prvr_ray.report.page import Page, Section, render
from prvr_ray.report.recall import beat_teacher, recall_section, where_it_fails
from prvr_ray.report.setup import setup_section
from prvr_ray.report.study import ablation_section, study_section
from prvr_ray.report.training import training_section
from prvr_ray.runs.run import RunFolder, open_run
from prvr_ray.scores.lookup import open_lookup
from prvr_ray.storage import Store, check_name, get_json


def report(
    settings: ReportSettings,
    *,
    root: str,
    run: str,
    split: str = "test",
    protocol: str = "held-out",
    index: str = "",
    study: str = "",
    compare: Sequence[str] = (),
    name: str = "",
) -> dict[str, Any]:
    """Write the page about a run.

    Args:
        root: the collection.
        run: name of the training run.
        split, protocol: those of the evaluation to show.
        index: the index to take answers from; empty: the only one of this run.
        study: the search study to show; empty: the only one.
        compare: runs to compare side by side.
        name: the report's name, ROOT/reports/<name>; empty: the run's name.

    Returns:
        The number of sections, what is missing, the page's size in bytes, and its URI. If ROOT is not writable, the
        page is in a temporary folder, and the summary has `not_kept` and exit_code 1.

    Raises:
        ValueError: no such collection, run or index; an index that lacks shards; or a name with a slash in it.
    """
    collection = existing_collection(root)
    check_name("report", name or run)
    sources = _Sources(settings, collection, open_run(root, run), split, protocol)
    sections = [
        sources.setup(),
        corpus_section(sources.corpus),
        training_section(sources.run.metrics()),
        sources.recall(),
        sources.answers(index),
        sources.study(study),
        sources.ablation(),
    ]
    if compare:
        sections.append(sources.comparison(compare))
    where = f"{collection.store.uri}, {split} split, protocol {protocol}"
    data = render(Page(f"Report of run {run}", where, sources.verdicts(), sections)).encode()
    return {
        "sections": sum(not section.missing for section in sections),
        "missing": [section.missing for section in sections if section.missing],
        "bytes": len(data),
        **_keep_page(collection.store.child(f"reports/{name or run}"), data),
    }


def _keep_page(store: Store, page: bytes) -> dict[str, Any]:
    """Write the page to ROOT; if that fails, to a temporary folder.

    Returns:
        Entries of the summary: `output`; after a failure also `not_kept` and exit_code 1.
    """
    try:
        store.put("index.html", page)
    except OSError as error:
        place = Path(tempfile.mkdtemp(prefix="prvr-report-")) / "index.html"
        place.write_bytes(page)
        not_kept = f"this report could not be kept in {store.uri}, so it lies in a temporary folder: {error}"
        return {"output": str(place), "not_kept": not_kept, "exit_code": 1}
    return {"output": f"{store.uri}/index.html"}


@dataclass(frozen=True)
class _Sources:
    """The artifacts that a page is built from, and the sections that need more than one of them."""

    settings: ReportSettings
    collection: Collection
    run: RunFolder
    split: str
    protocol: str

    @cached_property
    def features(self) -> str:
        return (self.run.plan() or {"features": "default"})["features"]

    @cached_property
    def corpus(self) -> Corpus:
        return read_corpus(self.collection, self.features)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        return self._evaluation(self._name(self.run))

    @property
    def how(self) -> Bootstrap:
        return Bootstrap(self.settings.num_resamples, self.settings.confidence, self.settings.seed)

    def verdicts(self) -> list[tuple[str, str]]:
        """Answer the three questions at the top of the page."""
        beat = fails = "Unknown until `prvr evaluate` has run."
        if self.evaluation:
            beat, fails = beat_teacher(self.evaluation, self.how), where_it_fails(self.evaluation)
        return [
            ("What was searched?", describe(self.corpus, self.split)),
            ("Did the student beat its teacher?", beat),
            ("Where does it fail?", fails),
        ]

    def setup(self) -> Section:
        feature_set = self.collection.features(self.features)
        spec = feature_set.spec() if feature_set.store.exists("spec.json") else None
        history = read_history(self.collection.store)
        return setup_section(self.collection.store.uri, spec, _settings_of(self.run), history)

    def recall(self) -> Section:
        if self.evaluation:
            return recall_section(self.evaluation, self.how)
        missing = f"Run {self._name(self.run)} has no evaluation on the {self.split} split, protocol {self.protocol}"
        return Section(recall.ANCHOR, recall.TITLE, missing=f"{missing}: `prvr evaluate` makes one.")

    def answers(self, index: str) -> Section:
        names = [index] if index else self._indexes()
        if self.evaluation is None or len(names) != 1:
            choice = f"an index, chosen with --index: {', '.join(names)}" if names else "`prvr index` first"
            needed = choice if self.evaluation else "`prvr evaluate` first"
            return Section(answers.ANCHOR, answers.TITLE, missing=f"Answers need {needed}.")
        first_ranks = self.evaluation.first_ranks
        chosen = self._chosen_queries(self.evaluation)
        queries = [query for of_kind in chosen.values() for query in of_kind]
        everything = open_lookup(self.collection, names[0], self.settings.moment_threshold)
        lookup = everything.only(self.corpus.video_ids(self.split))
        vectors = lookup.embed_stored([query.query_id for query in queries], self.evaluation.weights)
        found = find(lookup, queries, vectors, self.settings.num_answers, first_ranks)
        with contextlib.ExitStack() as stack:
            projector = stack.enter_context(Projector()) if self.settings.filmstrips else None
            return answers_section(chosen, found, first_ranks, self._videos(), projector)

    def study(self, name: str) -> Section:
        ended = self._summaries("study")
        name = next(iter(ended)) if not name and len(ended) == 1 else name
        if name in ended:
            return study_section(name, ended[name])
        lacking = f"No finished study {name}" if name else "Several studies" if ended else "No search study"
        choice = f"choose one with --study: {', '.join(ended)}" if ended else "`prvr tune` makes one"
        return Section(study.ANCHOR, study.TITLE, missing=f"{lacking}: {choice}.")

    def ablation(self) -> Section:
        ended = self._summaries("ablation")
        if not ended:
            missing = "No ablation: `prvr ablate` makes one."
            return Section(study.ABLATION_ANCHOR, study.ABLATION_TITLE, missing=missing)
        return ablation_section(ended[max(ended)])

    def comparison(self, names: Sequence[str]) -> Section:
        found = {name: self._evaluation(name) for name in names}
        unknown = [name for name, evaluation in found.items() if evaluation is None]
        if unknown or len(found) < 2:
            evaluated = f"evaluated on the {self.split} split, protocol {self.protocol}"
            lacking = f"not evaluated: {', '.join(unknown)}" if unknown else "only one is given"
            missing = f"A comparison needs at least two runs that `prvr evaluate` has {evaluated}; {lacking}."
            return Section(comparison.ANCHOR, comparison.TITLE, missing=missing)
        settings = {name: _settings_of(open_run(self.collection.store.uri, name)) for name in names}
        return comparison_section([evaluation for evaluation in found.values() if evaluation], settings, self.how)

    def _evaluation(self, run: str) -> Evaluation | None:
        return read_evaluation(self.collection, run, self.split, self.protocol)

    def _summaries(self, kind: str) -> dict[str, Any]:
        """Read the finished studies of a kind: name -> summary."""
        store = self.collection.store.child("tune")
        names = [item.key.removesuffix("/summary.json") for item in store.list() if item.key.endswith("/summary.json")]
        summaries = {name: get_json(store, f"{name}/summary.json") for name in names}
        return {name: summary for name, summary in summaries.items() if summary["kind"] == kind}

    def _indexes(self) -> list[str]:
        """List the indexes made with this run's student."""
        store = self.collection.store.child("index")
        names = [item.key.removesuffix("/spec.json") for item in store.list() if item.key.endswith("/spec.json")]
        return [name for name in names if get_json(store, f"{name}/spec.json").get("run") == self._name(self.run)]

    def _chosen_queries(self, evaluation: Evaluation) -> dict[str, list[Query]]:
        chosen = choose(evaluation, self.settings.num_examples, self.settings.seed)
        ids = pa.array([query_id for of_kind in chosen.values() for query_id in of_kind], pa.string())
        rows = self.corpus.queries.filter(pc.is_in(self.corpus.queries["query_id"], ids)).to_pylist()
        queries = {row["query_id"]: Query.of_row(row) for row in rows}
        return {kind: [queries[query_id] for query_id in of_kind] for kind, of_kind in chosen.items()}

    def _videos(self) -> dict[str, Video]:
        rows = self.corpus.videos.select(["video_id", "uri"]).to_pylist()
        lengths_s = self.corpus.durations_s
        return {row["video_id"]: Video(row["uri"], lengths_s.get(row["video_id"], math.nan)) for row in rows}

    @staticmethod
    def _name(run: RunFolder) -> str:
        return run.store.uri.rpartition("/")[2]


def _settings_of(run: RunFolder) -> Mapping[str, Mapping[str, Any]]:
    return run.config().model_dump(include={"student", "train"}, mode="json")
