"""Which encoders made the features of a run, and whether another feature set has the same.

Vectors of two encoders may have the same dimension and nothing else in common: a student answers garbage with the wrong
ones, and no shape gives that away.
"""

from collections.abc import Mapping
from typing import Any

from prvr_ray.collection import differences

# Addresses, and what is measured of an encoder without deciding its vectors.
_NOT_IDENTITY = {"name", "address", "logit_scale", "causal_text"}

Encoders = dict[str, dict[str, Any]]


def identify_encoders(spec: Mapping[str, Any]) -> Encoders:
    """What decides the vectors of a feature set: teacher and student encoder, by content where there is a hash of it.

    Args:
        spec: spec.json of a feature set. Imported features have no hash; their names are all there is.
    """
    return {role: _identify(spec[role]) for role in ("teacher", "student")}


def check_encoders(recorded: Encoders | None, spec: Mapping[str, Any], who: str, where: str) -> str | None:
    """Refuse a feature set whose encoders are not those of a run.

    Args:
        recorded: of the run, by `identify_encoders`; None: an earlier version recorded none.
        spec: spec.json of the feature set.
        who, where: the run and the feature set, for messages.

    Returns:
        A line for the user where nothing could be compared.

    Raises:
        ValueError: other encoders; each difference is named.
    """
    if recorded is None:
        return f"{who} was made by an earlier version, which did not record the encoders of its features: not compared"
    found = differences(recorded, identify_encoders(spec))
    if found:
        raise ValueError(
            f"{who} was trained on features of other encoders than {where} has: {'; '.join(found)}. "
            f"Train a run on these features, or ingest with the encoders of that run"
        )
    return None


def _identify(encoder: Mapping[str, Any]) -> dict[str, Any]:
    ignored = _NOT_IDENTITY if "weights_sha256" in encoder else _NOT_IDENTITY - {"name"}
    return {key: value for key, value in encoder.items() if key not in ignored}
