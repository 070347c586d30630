"""Turns videos and captions into features, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/ingest.py --videos s3://BUCKET/videos --root s3://BUCKET/ROOT --encoder ViT-B-32:laion2b_s34b_b79k

Reads the videos, and ROOT/videos and ROOT/queries.
Writes shards of ROOT/videos and ROOT/features/default, failures included.
Existing features are not computed again: submit the same command after any interruption.
Options are those of `prvr ingest`; `--config cluster/settings.yaml` sets the resources of its workers on the cluster.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
