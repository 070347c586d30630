"""Encodes a collection with a student, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/index.py --root s3://BUCKET/ROOT --run base --index main

Reads ROOT/features/default and the best checkpoint of ROOT/runs/RUN.
Writes shards of ROOT/index/INDEX.
Videos that are already indexed are skipped.
Options are those of `prvr index`; `--config cluster/settings.yaml` sets the resources of its workers on the cluster.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
