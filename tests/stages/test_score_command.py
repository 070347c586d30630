"""`prvr score` from the command line: text of every kind is answered or counted, and what cannot be is one line."""

import io
import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.score_world import WEIGHTS, answers
from support.served import HIDDEN_DIM, TOKEN_DIM, VIDEO_DIM, add_index, add_queries, add_run, add_videos
from support.small_clip import write_small_clip

from prvr_ray import cli, schema
from prvr_ray.config import IndexSettings
from prvr_ray.encoders import load_encoder
from prvr_ray.runs.run import open_run
from prvr_ray.schema import unpack_vectors
from prvr_ray.storage import put_json, table_to_bytes
from prvr_ray.student.batching import normalize

LONG = "a very long sentence " * 500


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A root whose text encoder is here, with an index `i` of 20 videos; the encoder and the student."""
    folder = tmp_path_factory.mktemp("asked")
    name, _ = write_small_clip(folder / "encoder", embed_dim=VIDEO_DIM, text_width=TOKEN_DIM)
    encoder, root = load_encoder(name, device="cpu"), folder / "root"
    described = {**asdict(encoder.spec), "dim": VIDEO_DIM}
    teacher = {"name": "made-up", "dim": 10}
    add_videos(root, [f"v{i:02d}" for i in range(20)], spec={"teacher": teacher, "student": described, "shared": False})
    add_queries(root, {"q0": ["v00"]})
    student = add_run(root)
    add_index(root, IndexSettings(), rows_per_shard=7)
    return root, encoder, student


def score(root, queries, *options, output="job"):
    arguments = ["--root", str(root), "--index", "i", "--queries", str(queries), "--output", output]
    return cli.main(["score", *arguments, "--quiet", "--json", *options])


def refusal(capsys):
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def expected_answers(root, encoder, student, text):
    """(video_id, score) by plain float64 sums over the index's files, best first."""
    states_TD = encoder.encode_text([text])[1][0].astype(np.float16)
    if len(states_TD) > 5:  # a causal tower: its last state is the only one that knows the whole text
        states_TD = states_TD[[0, 1, 2, 3, -1]]
    tokens = torch.from_numpy(normalize(states_TD))[None]
    vectors = student.encode_queries(tokens, torch.ones(tokens.shape[:2]))
    found = defaultdict(lambda: -np.inf)
    for path in (root / "index" / "i").glob("shard-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            value = 0.0
            for branch, weight in WEIGHTS.items():
                query = torch.nn.functional.normalize(vectors[branch][0], dim=0).detach().double().numpy()
                value += weight * (unpack_vectors(row[branch], HIDDEN_DIM).astype(np.float64) @ query).max()
            found[row["video_id"]] = max(found[row["video_id"]], value)
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def test_texts_of_a_file_are_answered_by_the_runs_own_encoder(world, without_ray, tmp_path, capsys):
    root, encoder, student = world
    texts = {"b": "a dog runs", "a": "a dog runs", "c": "", "d": LONG, "e": "ein Käse"}
    file = tmp_path / "questions.csv"
    file.write_text("query_id,text\n" + "".join(f"{name},{text}\n" for name, text in texts.items()) + "\n")
    assert score(root, file, "--top-k", "30", output="texts") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["queries"], summary["queries_without_text"]) == (4, 2)
    found = answers(root, "texts")
    assert list(found) == ["a", "b", "d", "e"]
    for query_id, rows in found.items():
        expected = expected_answers(root, encoder, student, texts[query_id].strip())
        assert [row["video_id"] for row in rows] == [video_id for video_id, _ in expected]
        assert [row["rank"] for row in rows] == list(range(1, 21))
        np.testing.assert_allclose([row["score"] for row in rows], [value for _, value in expected], atol=2e-6)
    assert [{**row, "query_id": ""} for row in found["a"]] == [{**row, "query_id": ""} for row in found["b"]]


def test_the_output_has_the_documented_columns_sorted_by_query_and_rank(world, without_ray, tmp_path, capsys):
    root, _, _ = world
    lines = tmp_path / "questions.txt"
    lines.write_text("a dog\na cat\na bird\n")
    assert score(root, lines, "--top-k", "3", "--score.num_moments", "1", output="columns") == 0
    (part,) = (root / "scores/columns").glob("part-*")
    table = pq.read_table(part)
    assert table.schema.names == [
        "query_id", "rank", "video_id", "score", "inheritance_score", "exploration_score", "peak_s", "start_s", "end_s",
    ]  # fmt: skip
    assert table.schema.equals(schema.SCORES)
    places = list(zip(table["query_id"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert places == [(f"line-{line}", rank) for line in (1, 2, 3) for rank in (1, 2, 3)]
    assert [value is not None for value in table["peak_s"].to_pylist()] == [True, False, False] * 3


def test_standard_input_is_asked_line_by_line(world, monkeypatch, capsys):
    root, _, _ = world
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a dog\n\na dog\n")))
    assert score(root, "-", "--dry-run") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["queries"], summary["queries_without_text"]) == (2, 1)
    assert not (root / "scores/job").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.txt", b"\n\n", "holds no text: 2 empty lines"),
        ("q.txt", b"\xff\xfea\0", "not UTF-8"),
        ("q.csv", b"caption\na dog\n", "no column text; found: caption"),
        ("q.jsonl", b'{"text"', ":1: not JSON"),
        ("q.parquet", b"PAR1", "q.parquet"),
    ],
)
def test_an_unusable_file_is_one_line_and_exit_code_2(world, tmp_path, capsys, name, content, said):
    file = tmp_path / name
    file.write_bytes(content)
    assert score(world[0], file) == 2
    assert said in refusal(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top-k", "0"], "score.top_k=0"),
        (["--top-k", "-3"], "greater than or equal to 1"),
        (["--mode", "quick"], "exact"),
        (["--index", "a/b"], "index 'a/b' is not a name"),
        (["--output", "monday/job"], "output 'monday/job' is not a name"),
        (["--output", ".."], "output '..' is not a name"),
        (["--index", "nobody"], "`prvr index` makes one"),
        (["--queries", "none.csv"], "there is no file none.csv"),
        (["--queries", "nobody"], "neither a parquet, jsonl, csv or txt file nor a split (test)"),
    ],
)
def test_an_unusable_wish_is_one_line_and_exit_code_2(world, capsys, options, said):
    assert score(world[0], "test", *options) == 2
    assert said in refusal(capsys)


def test_a_run_that_has_gone_on_since_is_refused(world, capsys):
    root, _, _ = world
    run = open_run(str(root), "run")
    best = run.best()
    run.store.put("checkpoints/best-00007.safetensors", run.store.get(best["weights"]))
    put_json(run.store, "best.json", {**best, "weights": "checkpoints/best-00007.safetensors"})
    try:
        assert score(root, "test") == 2
    finally:
        put_json(run.store, "best.json", best)
    assert "the best of run 'run' is checkpoints/best-00007.safetensors" in refusal(capsys)


def test_a_worker_that_finds_another_student_under_the_same_name_refuses_it(world):
    run = open_run(str(world[0]), "run")
    made_with = run.best_weights()
    run.load_student(made_with)
    for other in ({"weights_sha256": "0" * 64}, {"weights": "checkpoints/best-00099.safetensors"}):
        with pytest.raises(ValueError, match="another student now"):
            run.load_student({**made_with, **other})


@pytest.fixture
def shard(world):
    """A shard's path; what a test does to it is undone."""
    path = min((world[0] / "index" / "i").glob("shard-*.parquet"))
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


def test_vectors_that_are_not_finite_are_refused_with_their_video(world, without_ray, shard, capsys):
    rows = pq.read_table(shard).to_pylist()
    rows[1]["exploration"] = rows[1]["exploration"][:-2] + np.float16(np.nan).tobytes()
    shard.write_bytes(table_to_bytes(pa.Table.from_pylist(rows, schema.INDEX)))
    assert score(world[0], "test", output="nan") == 2
    assert f"frames of video '{rows[1]['video_id']}' hold NaN or infinity" in refusal(capsys)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_lost_shard_is_refused_and_left_out_on_request(world, without_ray, shard, capsys, damage):
    lost = set(pq.read_table(shard, columns=["video_id"])["video_id"].to_pylist())
    damage(shard)
    output = f"lost-{shard.exists()}"
    assert score(world[0], "test", output=output) == 2
    line = refusal(capsys)
    assert shard.name in line
    assert "--allow-missing" in line
    assert score(world[0], "test", "--allow-missing", output=output) == 0
    assert shard.name in json.loads(capsys.readouterr().out.splitlines()[-1])["missing"][0]
    answered = {row["video_id"] for rows in answers(world[0], output).values() for row in rows}
    assert answered == {f"v{i:02d}" for i in range(20)} - lost
