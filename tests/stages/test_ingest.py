"""Ingest through a local Ray: what stands afterwards, what a second run does, and vectors equal to plain open_clip."""

import json
import shutil

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rendering import render
from safetensors.torch import save_file

from prvr_ray import schema
from prvr_ray.collection import open_collection
from prvr_ray.config import IngestSettings
from prvr_ray.stages.ingest import ingest

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 40, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small random CLIP: its `config.json:weights` name and the plain open_clip model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    model = open_clip.CLIP(**CONFIG).eval()
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    (folder / "model.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess}))
    return f"{folder}/model.json:{folder}/weights.safetensors", model


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["a.mp4", "b.mkv", "more/c.mp4"]):
        render(folder / name, 30 + 10 * number, fps=10)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").write_text("not a video's name")
    return folder


@pytest.fixture
def settings(encoder):
    return IngestSettings(
        encoder=encoder[0], fps=2.0, segment_frames=4, num_decoders=1, max_failure_share=0.3, batch_frames=5
    )


def features_of(root):
    features = open_collection(str(root)).features()
    return {video.video_id: video for video in features.read_videos(features.complete())}


def test_ingest_encodes_every_frame_as_plain_open_clip_does(tmp_path, local_ray, encoder, videos, settings):
    root = tmp_path / "root"
    captions = [{"query_id": f"q{n}", "text": f"a red circle {n}", "video_ids": ["a.mp4"]} for n in range(3)]
    open_collection(str(root)).query_shards.append(pa.Table.from_pylist(captions, schema.QUERIES))

    summary = ingest(settings, root=str(root), videos=str(videos))

    assert summary["videos"] == {"total": 4, "ingested": 3, "failed": 1, "by_error_class": {"decode": 1}}
    assert summary["skipped"] == 1
    assert summary["exit_code"] == 0
    found = features_of(root)
    assert {name: len(video.timestamps_s) for name, video in found.items()} == {
        "a.mp4": 6,
        "b.mkv": 8,
        "more/c.mp4": 10,
    }
    for name, video in found.items():
        expected = plain_vectors(encoder[1], videos / name, video.timestamps_s)
        similarity = torch.nn.functional.cosine_similarity(expected, torch.tensor(video.teacher).float())
        assert similarity.min() > 0.9999
    features = open_collection(str(root)).features()
    queries = list(features.read_queries(features.queries()))
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a red circle 1"])
    pooled = encoder[1].encode_text(tokens)[0].detach().numpy()
    assert np.allclose(next(q.teacher for q in queries if q.query_id == "q1"), pooled, atol=2e-3)


def plain_vectors(model, path, timestamps_s):
    """What a straightforward script would compute: every frame decoded, the nearest ones encoded by open_clip."""
    import av

    config = open_clip.transform.PreprocessCfg(
        32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", resize_mode="squash"
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    with av.open(str(path)) as container:
        frames = {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    times = np.array(sorted(frames))
    nearest = [times[np.abs(times - times[0] - t).argmin()] for t in timestamps_s]
    with torch.no_grad():
        return model.encode_image(torch.stack([transform(Image.fromarray(frames[t])) for t in nearest]))


def test_a_second_run_does_what_is_new_and_nothing_else(tmp_path, local_ray, videos, settings):
    root = tmp_path / "root"
    ingest(settings, root=str(root), videos=str(videos))
    before = features_of(root)
    (videos / "more/c.mp4").unlink()
    shutil.copy(videos / "a.mp4", videos / "new.mp4")
    render(videos / "a.mp4", 50, fps=10)

    planned = ingest(settings, root=str(root), videos=str(videos), dry_run=True)
    summary = ingest(settings, root=str(root), videos=str(videos))

    assert planned["wanted"]["videos"] == 2
    assert summary["frames"] == 10 + 6
    after = features_of(root)
    assert {name: len(video.timestamps_s) for name, video in after.items()} == {
        "a.mp4": 10, "b.mkv": 8, "more/c.mp4": 10, "new.mp4": 6
    }  # fmt: skip
    assert np.array_equal(after["new.mp4"].teacher, before["a.mp4"].teacher)
    assert ingest(settings, root=str(root), videos=str(videos))["frames"] == 0
    everything = ingest(settings.model_copy(update={"retry": "all"}), root=str(root), videos=str(videos), dry_run=True)
    assert everything["wanted"]["videos"] == 1
