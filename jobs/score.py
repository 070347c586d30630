"""Finds the exact top-k answers with their moments, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/score.py --root s3://BUCKET/ROOT --index main --queries test --top-k 100 --output answers

Reads ROOT/index/INDEX and the queries of a split or of a file.
Writes ROOT/scores/OUTPUT: one part for every unit of work, then the merged answer.
Existing parts are not scored again.
Options are those of `prvr score`; `--config cluster/settings.yaml` sets the resources of its workers on the cluster.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
