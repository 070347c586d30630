"""The publication's names of a student's weights, for tests that start from its numbers."""

import numpy as np
import torch

from prvr_ray.student.model import Student

_TOWER = {
    "input_norm": "input_proj.LayerNorm",
    "input": "input_proj.net.1",
    "position": "pos_embed.position_embeddings",
    "norm": "pos_embed.LayerNorm",
    "attention.query": "encoder.self.query",
    "attention.key": "encoder.self.key",
    "attention.value": "encoder.self.value",
    "attention.output": "encoder.output.dense",
    "attention.norm": "encoder.output.LayerNorm",
}
_MODULES = (
    {f"text.{ours}": f"query_{theirs}" for ours, theirs in _TOWER.items()}
    | {f"video.{ours}": f"visual_{theirs}" for ours, theirs in _TOWER.items()}
    | {"pooling": "modular_vector_mapping", "video_output": "out_mapping_linear"}
)


def published_name(parameter: str) -> str:
    """`branches.<branch>.<module>.<weight|bias>` as the publication calls it."""
    _, branch, rest = parameter.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    return f"{'exp_' if branch == 'exploration' else ''}{_MODULES[module]}.{kind}"


def load_published(model: Student, golden: dict[str, np.ndarray], prefix: str) -> None:
    """Take the weights `prefix/<published name>`; each must be there and none may be left."""
    names = {name: f"{prefix}/{published_name(name)}" for name, _ in model.named_parameters()}
    assert set(names.values()) == {key for key in golden if key.startswith(prefix)}
    model.load_state_dict({name: torch.tensor(golden[key]) for name, key in names.items()})
