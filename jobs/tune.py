"""Searches for better training settings, as a job of a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/tune.py --root s3://BUCKET/ROOT --study first

Reads ROOT/features/default and the splits of ROOT/videos and ROOT/queries.
Writes ROOT/tune/STUDY: one folder per trial, and best.yaml.
The same command resumes without repeating finished trials.
Options are those of `prvr tune`; `--config cluster/settings.yaml` sets the resources of its workers on the cluster.
"""

import sys

from prvr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
