"""Evaluates a run on a split, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/evaluate.py --root s3://BUCKET/ROOT --run base --split test

Reads ROOT/features/default, ROOT/queries and the best checkpoint of ROOT/runs/RUN.
Prints a table; with --json, the last line is JSON.
Options are those of `prvr evaluate`; `--config cluster/settings.yaml` sets the resources of its workers on the cluster.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
