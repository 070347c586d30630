"""A small ROOT as version 0 wrote it (commit abdcba0), kept in tests/data/root-v0.tar.xz, and how it was made.

The archive holds `videos/` (14 numbered videos of 2 to 3 s), `captions.csv`, `root/` (ingested captions and videos, a
run of two epochs, a study of two trials, an index, scores, an evaluation) and `released/` (a root imported from the
released layout) with its source in `source/`. The encoder's weights are 8 MB, so they are not in it: `write_encoder`
makes them again, bit for bit, from numpy's frozen RandomState.

Recipe, with that commit's `prvr` and this module's folder on PYTHONPATH:

    python -m support.old_root /tmp/prvr-v0
    cd /tmp/prvr-v0
    prvr import --layout csv --source captions.csv --root root
    prvr ingest --videos videos --root root --encoder teacher/model.json:teacher/weights.safetensors --fps 4
        --ingest.segment_frames 4 --ingest.num_decoders 1
    prvr train --root root --run base $STUDENT
    prvr tune --root root --study search $STUDENT --tune.num_trials 2 --tune.confirm_top 0
    prvr index --root root --run base --index main
    prvr score --root root --index main --queries test --output answers --top-k 3
    prvr evaluate --root root --run base --split test
    prvr import --layout released --source source --root released
    tar -cJf root-v0.tar.xz captions.csv videos root source released

where STUDENT is `--student.hidden_dim 8 --student.num_heads 2 --student.max_frames 8 --student.max_tokens 8
--train.num_epochs 2 --train.videos_per_batch 4`.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from support import released_layout
from support.rendering import render
from support.small_clip import CONFIG, PREPROCESS

ARCHIVE = Path(__file__).parents[1] / "data" / "root-v0.tar.xz"
SPLITS = {"train": 8, "val": 3, "test": 3}
_MTIME_S = 1_700_000_000


def write_encoder(folder: Path) -> str:
    """A small CLIP whose weights no later torch or numpy makes differently; its name, `model.json:weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(7)
    shapes = open_clip.CLIP(**CONFIG).state_dict()
    weights = {
        name: torch.tensor(0.1 * random.standard_normal(tuple(shapes[name].shape)), dtype=torch.float32)
        for name in sorted(shapes)
    }
    save_file(weights, folder / "weights.safetensors")
    (folder / "model.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}))
    return f"{folder}/model.json:{folder}/weights.safetensors"


def write_sources(folder: Path) -> None:
    """The videos, their captions, the encoder and a folder in the released layout."""
    write_encoder(folder / "teacher")
    (folder / "videos").mkdir()
    lines = ["video_id,start_s,end_s,text,split"]
    for split, count in SPLITS.items():
        for number in range(count):
            video = folder / "videos" / f"{split}-{number}.mp4"
            render(video, 20 + number, fps=10, height=24, width=32, gop=5)
            os.utime(video, (_MTIME_S, _MTIME_S))
            lines += [f"{video.stem},0.5,1.{n},caption {n} of video {number} of {split},{split}" for n in (1, 2)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    released_layout.render(folder / "source")


if __name__ == "__main__":
    write_sources(Path(sys.argv[1]))
