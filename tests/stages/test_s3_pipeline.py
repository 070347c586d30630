"""From videos in a bucket to answers in a bucket: ingest, train, index and score against an S3 server.

The stages run in a process of their own: the workers of an embedded Ray have the environment that it was started in,
and here that must name the test's server.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SPLITS = {"train": 6, "val": 3, "test": 4}
CONFIG = {
    "ingest": {"fps": 2.0},
    "student": {"hidden_dim": 32},
    "train": {"num_epochs": 2, "videos_per_batch": 4, "lr": 1e-3},
    "score": {"top_k": 3},
}


def run_stages(root: str, videos: str, captions: str, encoder: str) -> None:
    """What the child process does."""
    from prvr_ray.config import resolve
    from prvr_ray.stages.imports import import_collection
    from prvr_ray.stages.index import index
    from prvr_ray.stages.ingest import ingest
    from prvr_ray.stages.score import score
    from prvr_ray.stages.session import connect
    from prvr_ray.stages.train import train

    config = resolve({**CONFIG, "ingest": {**CONFIG["ingest"], "encoder": encoder}})
    import_collection("jsonl", captions, root)
    with connect():
        summaries = [
            ingest(config.ingest, root=root, videos=videos),
            ingest(config.ingest, root=root, videos=videos),
            train(config, root=root, run="small"),
            index(config.index, root=root, run="small", index="small"),
            score(config.score, root=root, index="small", queries="test", output="small"),
        ]
    print(json.dumps(summaries))


@pytest.fixture
def bucket(s3_root, tmp_path):
    """The demo world's small sister: videos in a bucket, captions and an untrained teacher on the disk."""
    from prvr_ray.corpus.synthetic import plan_world, queries_of, render
    from prvr_ray.encoders.tiny_teacher import IMAGE_SIZE, save_encoder, train_tiny_teacher
    from prvr_ray.storage import open_store

    scripts = plan_world(2, SPLITS)
    videos = open_store(s3_root.replace("/collection", "/videos"))
    for script in scripts:
        videos.put(script.video_id, render(script, str(tmp_path)).read_bytes())
    captions = tmp_path / "captions.jsonl"
    names = ("query_id", "text", "split")
    lines = [{**query["moments"][0], **{name: query[name] for name in names}} for query in queries_of(scripts)]
    captions.write_text("\n".join(map(json.dumps, lines)))
    stills = np.random.default_rng(0).integers(0, 256, (8, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    model = train_tiny_teacher(stills, ["a red star"] * 8, num_steps=2, batch_size=4)
    return s3_root, videos.uri, str(captions), save_encoder(model, tmp_path / "teacher")


def test_videos_in_a_bucket_become_answers_in_a_bucket(bucket):
    from prvr_ray.collection import open_collection
    from prvr_ray.storage import open_store, read_table

    root = bucket[0]
    done = subprocess.run([sys.executable, __file__, *bucket], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, again, train, _, _ = json.loads(done.stdout.splitlines()[-1])
    assert first["videos"] == {"total": 13, "ingested": 13, "failed": 0, "by_error_class": {}}
    assert (first["queries"], again["queries"], again["frames"]) == (39, 0, 0)  # the second ingest found all done
    assert train["train"] == {"videos": 6, "queries": 18}

    collection = open_collection(root)
    wanted = {row["query_id"]: row for row in collection.queries("test").to_pylist()}
    test_videos = {row["video_id"]: row for row in collection.videos().to_pylist() if row["split"] == "test"}
    assert len(wanted) == 12
    assert len(test_videos) == 4
    scores = open_store(root).child("scores/small")
    parts = [item.key for item in scores.list() if item.key.endswith(".parquet")]
    rows = [row for part in parts for row in read_table(scores, part).to_pylist()]
    assert sorted((row["query_id"], row["rank"]) for row in rows) == sorted((q, k) for q in wanted for k in (1, 2, 3))
    for row in rows:
        assert 0 <= row["start_s"] <= row["peak_s"] <= row["end_s"]
        assert -1.001 <= row["score"] <= 1.001


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_stages(*sys.argv[1:])
