"""The node types of cluster/aws.yaml for an autoscaler whose nodes are processes of this machine."""

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

from support.clusters import STORE_BYTES

AWS = Path(__file__).parents[2] / "cluster/aws.yaml"
MOST_NODES = 2  # of one type
IDLE_S = 6.0


def shrunken_aws() -> dict[str, Any]:
    """aws.yaml for nodes that are processes: two CPUs each, at most two of a type, ended after seconds without work."""
    config = prepare_config(yaml.safe_load(AWS.read_text()))
    types = config["available_node_types"]
    for node in types.values():
        node["node_config"] = {}
    for name in set(types) - {config["head_node_type"]}:
        types[name]["resources"] |= {"CPU": 2, "object_store_memory": STORE_BYTES}
        types[name]["max_workers"] = MOST_NODES
    types["ray.head.default"] = types.pop(config["head_node_type"])
    return {**config, "head_node_type": "ray.head.default", "idle_timeout_minutes": IDLE_S / 60}
