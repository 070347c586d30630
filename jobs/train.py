"""Distils a student from the teacher, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/train.py --root s3://BUCKET/ROOT --run base --num-workers 4

Reads ROOT/features/default and the splits of ROOT/videos and ROOT/queries.
Writes ROOT/runs/RUN: configuration, plan, metrics and checkpoints.
The same command resumes from the latest checkpoint.
Options are those of `prvr train`; `--config cluster/settings.yaml` sets the resources of its workers on the cluster.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
