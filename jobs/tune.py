"""A search for better settings of the training, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/tune.py --root s3://BUCKET/ROOT --study first

Reads ROOT/features/default and the splits of ROOT/videos and ROOT/queries.
Writes ROOT/tune/STUDY: one folder a trial, and best.yaml.
The same command goes on without repeating finished trials.
Options are those of `prvr tune`; `--config cluster/settings.yaml` gives it the cluster's resources.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
