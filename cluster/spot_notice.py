"""Tells Ray that the cloud is about to take this spot node: training then checkpoints, and no new work starts here.

    python cluster/spot_notice.py aws | gcp | kubernetes [OPTIONS of `ray drain-node`]

Runs on every worker node beside Ray (aws.yaml and gcp.yaml start it) and asks the machine's metadata service every few
seconds. AWS gives two minutes' notice, Google Cloud thirty seconds. On Kubernetes the script is the pods' preStop hook:
the call itself is the notice, and the pod lives until the hook returns.
"""

import http.client
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = os.environ.get("METADATA_URL", "http://169.254.169.254")
AHEAD_S = {"aws": 120, "gcp": 30, "kubernetes": 15}  # the most that GKE gives a pod on a spot node
POLL_S = 2.0
ANSWER_S = 2.0


def main(cloud: str, options: list[str]) -> int:
    """Wait for the notice, pass it on to Ray once, and return the exit code."""
    while cloud != "kubernetes" and not is_told(cloud):
        time.sleep(POLL_S)
    end = time.monotonic() + AHEAD_S[cloud]
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    told = subprocess.run([*command, "--deadline-remaining-seconds", str(AHEAD_S[cloud]), *options])
    if cloud == "kubernetes":
        time.sleep(max(0.0, end - time.monotonic()))
    return told.returncode


def is_told(cloud: str) -> bool:
    """Whether the cloud has given notice; False if the metadata service does not answer, so that it is asked again."""
    try:
        return _is_told_by_aws() if cloud == "aws" else _is_told_by_gcp()
    except (OSError, http.client.HTTPException):
        return False


def _is_told_by_aws() -> bool:
    token = _ask("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    try:
        _ask("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError:  # 404 until there is a notice
        return False
    return True


def _is_told_by_gcp() -> bool:
    return _ask("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}).strip() == "TRUE"


def _ask(path: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(METADATA + path, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return answer.read().decode()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in AHEAD_S:
        sys.exit(f"usage: {sys.argv[0]} {' | '.join(AHEAD_S)} [options of ray drain-node]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
