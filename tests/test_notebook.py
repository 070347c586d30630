"""The names for notebooks: what the package's docstring shows works, and importing the package loads nothing heavy."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from prvr_ray import cli, notebook, schema
from prvr_ray.collection import declare_spec, open_collection
from prvr_ray.config import Config, StudentSettings, TrainSettings
from prvr_ray.demo.tiny_teacher import IMAGE_SIZE, save_encoder, train_tiny_teacher
from prvr_ray.demo.world import FPS, frames_of, plan_world, queries_of, still
from prvr_ray.encoders import load_encoder
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.student_encoder import WindowEncoder, Windowing
from prvr_ray.runs.run import open_run
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.schema import pack_times, pack_vectors
from prvr_ray.storage import put_json, table_to_bytes
from prvr_ray.student.training import fit


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A collection of six videos, encoded by an open_clip model, with a run and its index `main`; made without Ray."""
    folder = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(0)
    images, captions = zip(*(still(rng, IMAGE_SIZE) for _ in range(64)), strict=True)
    model = train_tiny_teacher(np.stack(images).transpose(0, 3, 1, 2), captions, num_steps=2)
    encoder = load_encoder(save_encoder(model, folder / "teacher"), device="cpu")
    collection = open_collection(str(folder / "root"))
    scripts = plan_world(0, {"train": 3, "val": 2, "test": 1})
    put_tables(collection, encoder, scripts)
    config = Config(
        student=StudentSettings(hidden_dim=16),
        train=TrainSettings(num_epochs=1, videos_per_batch=3, hard_pool_size=1, cache_folder=str(folder / "cache")),
    )
    run, data = open_run(collection.store.uri, "demo"), TrainingData.of(collection.store.uri, "default")
    run.declare(config, data.plan)
    fit(*data.open_caches(config), config.student, config.train, on_epoch=run.put_epoch)
    put_index(collection, run)
    return collection


def put_tables(collection, encoder, scripts) -> None:
    queries = queries_of(scripts)
    collection.query_shards.append(pa.Table.from_pylist(queries, schema.QUERIES))
    videos = [{"video_id": s.video_id, "split": s.split, "added_at": 1.0, "removed": False} for s in scripts]
    collection.video_shards.append(pa.Table.from_pylist(videos, schema.VIDEOS))
    features, spec = collection.features(), {**asdict(encoder.spec), "dim": encoder.spec.embed_dim}
    declare_spec(features.store, {"shared": True, "teacher": spec, "student": spec})
    segments = [segment(script, encoder) for script in scripts]
    features.video_shards.append(pa.Table.from_pylist(segments, schema.FEATURE_VIDEOS))
    pooled_ND, states = encoder.encode_text([query["text"] for query in queries])
    encoded = [
        {"query_id": query["query_id"], "num_tokens": len(states_TD), "teacher": pack_vectors(pooled_D[None]),
         "student": pack_vectors(states_TD), "text_hash": schema.text_hash(query["text"])}
        for query, pooled_D, states_TD in zip(queries, pooled_ND, states, strict=True)
    ]  # fmt: skip
    features.query_shards.append(pa.Table.from_pylist(encoded, schema.FEATURE_QUERIES))


def segment(script, encoder) -> dict:
    pictures = [Image.fromarray(frame) for frame in list(frames_of(script))[::FPS]]
    small = [np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE))) for picture in pictures]
    vectors_FD = encoder.encode_frames(np.stack(small).transpose(0, 3, 1, 2))
    return {
        "video_id": script.video_id, "added_at": 1.0, "segment": 0, "is_last": True, "num_frames": len(small),
        "timestamps_s": pack_times(np.arange(len(small))), "teacher": pack_vectors(vectors_FD),
        "duration_s": script.duration_s,
    }  # fmt: skip


def put_index(collection, run) -> None:
    features, windowing = collection.features(), Windowing("whole", 128, 0)
    index, student = collection.store.child("index/main"), run.load_student()
    spec = {"run": "demo", "features": "default", "branches": list(student.branches), "dim": 16}
    declare_spec(index, {**spec, **run.best_weights()})
    videos = features.read_videos(features.complete())
    table = pa.concat_tables(WindowEncoder(student, windowing, 4096).encode(videos))
    index.put("shard-0.parquet", table_to_bytes(table))


def test_the_docstrings_example_works(root):
    """In a fresh interpreter, as in a notebook."""
    script = (
        "import doctest, sys, prvr_ray\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'open_clip'} & set(sys.modules)\n"
        "failed, tried = doctest.testmod(prvr_ray, extraglobs={'ROOT': sys.argv[1]})\n"
        "sys.exit(f'imported {heavy}' if heavy else 0 if tried and not failed else 'failed')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, root.store.uri], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_search_ranks_all_videos_by_brute_force(root):
    found = notebook.search(root, "main", "a red circle rises", k=100)
    run, encoder = (
        notebook.load_run(root, "demo"),
        load_encoder(root.features().spec()["student"]["name"], device="cpu"),
    )
    student = run.load_student()
    tokens_TD = encoder.encode_text(["a red circle rises"])[1][0].astype(np.float16).astype(np.float32)
    expected = {}
    for video in root.features().read_videos(root.features().complete()):
        score = 0.0
        for branch, weight in (("inheritance", 0.7), ("exploration", 0.3)):
            query_D = encoded(student.encode_queries, tokens_TD)[branch][0]
            frames_FD = encoded(student.encode_frames, video.student.astype(np.float32))[branch][0]
            cosines_F = frames_FD @ query_D / np.linalg.norm(frames_FD, axis=1) / np.linalg.norm(query_D)
            score += weight * cosines_F.max()
        expected[video.video_id] = score
    assert [answer.video_id for answer in found] == sorted(expected, key=expected.__getitem__, reverse=True)
    np.testing.assert_allclose([answer.score for answer in found], sorted(expected.values(), reverse=True), atol=2e-3)


def test_a_list_of_texts_is_one_batch_and_answered_as_each_alone(root, monkeypatch):
    texts, load, num_loaded = ["a red circle rises", "a blue square falls"], IndexFolder.load, []
    alone = [[answer.video_id for answer in notebook.search(root, "main", text, k=3)] for text in texts]
    monkeypatch.setattr(IndexFolder, "load", lambda *arguments: num_loaded.append(1) or load(*arguments))
    together = notebook.search(root.store.uri, "main", texts, k=3)  # the root as a string
    assert [[answer.video_id for answer in answers] for answers in together] == alone
    assert len(num_loaded) == 2  # the one shard: for the scores, and for the moments


def test_k_beyond_the_videos_that_exist_takes_no_memory(root):
    assert len(notebook.search(root, "main", "a text", k=10**9)) == 6


@pytest.mark.parametrize("text", ["", "  ", [], ["a text", ""]])
def test_an_empty_text_is_refused(root, text):
    with pytest.raises(ValueError, match="search needs a sentence"):
        notebook.search(root, "main", text)


def encoded(encode, x_nD: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    unit = x_nD / (np.linalg.norm(x_nD, axis=1, keepdims=True) + 1e-5)
    with torch.inference_mode():
        vectors = encode(torch.from_numpy(unit)[None], torch.ones(1, len(unit)))
    return {branch: value.numpy() for branch, value in vectors.items()}


def test_the_command_prints_what_the_api_finds(root, capsys):
    arguments = ["search", "a red circle rises", "--root", root.store.uri, "--index", "main", "--top-k", "2", "--json"]
    assert cli.main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = notebook.search(root, "main", "a red circle rises", k=2)
    answers = json.loads(last)["answers"]
    assert [(a["rank"], a["video_id"], a["start_s"]) for a in answers] == [
        (rank, answer.video_id, answer.start_s) for rank, answer in enumerate(found, start=1)
    ]
    assert any(found[0].video_id in line for line in table)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda root: notebook.open_root(root.store.uri + "/none"), "no collection at"),
        (lambda root: notebook.load_run(root, "none"), "no run at"),
        (lambda root: notebook.search(root, "none", "a text"), "`prvr index` makes one"),
    ],
)
def test_what_is_not_there_is_named(root, call, said):
    with pytest.raises(ValueError, match=said):
        call(root)


def test_an_index_with_a_lost_shard_is_refused(root):
    index = root.store.child("index/main")
    put_json(index, "written-1.json", {"shard-9.parquet": "test/gone.mp4"})
    try:
        with pytest.raises(ValueError, match=r"shard-9.parquet is missing. Delete what is damaged and index again"):
            notebook.search(root, "main", "a text")
    finally:
        index.delete("written-1.json")


def test_an_index_of_an_earlier_student_is_refused(root):
    run = open_run(root.store.uri, "demo")
    best = run.best()
    run.store.put("checkpoints/best-00099.safetensors", run.store.get(best["weights"]))
    put_json(run.store, "best.json", {**best, "weights": "checkpoints/best-00099.safetensors"})
    try:
        with pytest.raises(ValueError, match=r"the best of run 'demo' is checkpoints/best-00099.safetensors .* now"):
            notebook.search(root, "main", "a text")
    finally:
        put_json(run.store, "best.json", best)


def test_an_unknown_name_lists_the_known_ones():
    import prvr_ray

    with pytest.raises(AttributeError, match="it has load_run, open_root, search"):
        prvr_ray.find  # noqa: B018
