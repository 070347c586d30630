"""cluster/README.md followed literally, against a local cluster with the node types of cluster/aws.yaml.

The commands are the README's own, run by bash in a checkout. Only what names a place is put in: the dashboard's
address, the bucket, the registry and the job's ID. What would start machines (`ray up`, `kubectl`) is stood in for.
"""

import os
import re
import shutil
import stat
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import boto3
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support.cluster_worlds import NUM_FRAMES, render_videos
from support.clusters import BIN, Head, running_head
from support.launched import shrunken_aws

from prvr_ray.collection import open_collection

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "cluster/README.md").read_text()
ENCODER, HUB_NAME = "ViT-B-32", "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
NUM_VIDEOS = 2

RAY = f"""#!/bin/sh
case "$1" in
  up|down) [ "$2 $3" = "-y cluster/aws.yaml" ] && [ -f "$3" ] ;;
  dashboard) [ -f "$2" ] ;;
  *) exec {BIN}/ray "$@" ;;
esac
"""
# What KubeRay does with a RayJob, less the machines.
KUBECTL = f"""#!{BIN}/python
import os, shlex, subprocess, sys, yaml
if sys.argv[1] == "create":
    entrypoint = yaml.safe_load(open(sys.argv[3]))["spec"]["entrypoint"].replace("/opt/prvr", os.getcwd())
    submit = ["{BIN}/ray", "job", "submit", "--address", os.environ["DASHBOARD"], "--"]
    sys.exit(subprocess.run([*submit, *shlex.split(entrypoint)]).returncode)
"""


def blocks(section: str) -> list[str]:
    """The shell blocks of a section, in order."""
    text = re.search(rf"^## {section}\n(.*?)^## ", README, re.M | re.S)[1]
    return [textwrap.dedent(block) for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.M | re.S)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a user has cloned, and the programs that would start machines."""
    folder, programs = tmp_path / "checkout", tmp_path / "programs"
    programs.mkdir()
    for name in ("prvr_ray", "jobs", "cluster"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in {"pip": "#!/bin/sh\n[ -f constraints.txt ]\n", "ray": RAY, "kubectl": KUBECTL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    shutil.copy(REPOSITORY / "constraints.txt", folder)
    return folder


@pytest.fixture
def bucket(s3_root: str, tmp_path: Path) -> str:
    """A bucket with videos, and the same below kuberay/, for a collection of its own."""
    name = s3_root.split("/")[2]
    for path in render_videos(tmp_path / "videos", NUM_VIDEOS).iterdir():
        for folder in ("videos", "kuberay/videos"):
            boto3.client("s3").upload_file(str(path), name, f"{folder}/{path.name}")
    return name


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of the README in the cache where a download would have put it, its weights random."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config(ENCODER)).half()
    folder = tmp_path / "hub" / HUB_NAME
    (folder / "snapshots/0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0")
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "snapshots/0/open_clip_model.safetensors")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def head(bucket: str, weights: None, checkout: Path) -> Iterator[Head]:
    with running_head(num_cpus=0, autoscaling=shrunken_aws()) as running:
        yield running


def follow(block: str, places: dict[str, str], checkout: Path, head: Head) -> str:
    """Run a block as it stands but for its places, to its end; what it printed."""
    for name, place in places.items():
        assert name in block
        block = block.replace(name, place)
    environment = {
        **os.environ,
        "PATH": f"{checkout.parent}/programs:{BIN}:{os.environ['PATH']}",
        "DASHBOARD": head.dashboard,
        "COLUMNS": "200",
    }
    ended = subprocess.run(
        ["bash", "-ec", block], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, f"{block}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


@pytest.mark.slow
def test_the_readme_leads_to_finished_jobs_on_a_cluster_and_with_a_rayjob(head, bucket, checkout):
    start, dashboard, first, long = blocks("AWS")
    follow(start, {}, checkout, head)
    follow(dashboard, {}, checkout, head)
    places = {"http://127.0.0.1:8265": head.dashboard, "s3://BUCKET": f"s3://{bucket}"}
    printed = follow(first, places, checkout, head)
    assert re.search(r"ok +\S+ encoder +ViT-B-32:laion2b_s34b_b79k: weights", printed)
    assert "to do" not in printed
    assert printed.count("SUCCEEDED") == 2
    assert re.search(rf"videos\.ingested +{NUM_VIDEOS}\b", printed)
    assert num_frames(f"s3://{bucket}/ROOT") == NUM_VIDEOS * NUM_FRAMES

    submit, *ask = re.split(r"(?m)^(?=prvr )", long)[1:]
    (job,) = re.findall(r"submitted (\S+);", follow(submit, places, checkout, head))
    for command in ask:
        printed = follow(command, {"http://127.0.0.1:8265": head.dashboard, " ID": f" {job}"}, checkout, head)
        assert job in printed

    (apply,) = blocks("Kubernetes")
    follow(apply, {"#REGISTRY#": "#localhost#", "YOUR-BUCKET": f"{bucket}/kuberay"}, checkout, head)
    assert num_frames(f"s3://{bucket}/kuberay/ROOT") == NUM_VIDEOS * NUM_FRAMES


def num_frames(root: str) -> int:
    """How many frames have features there."""
    features = open_collection(root).features()
    return sum(len(video.teacher) for video in features.read_videos(features.complete()))
