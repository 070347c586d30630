"""The split of a video or a file that names none."""

import hashlib
import re

_SPLIT_WORDS = re.compile(r"(?<![a-z])(?:(train)(?:ing)?|(val)(?:id|idation)?|(test)(?:ing)?)(?![a-z])", re.IGNORECASE)


def split_of(video_id: str, shares: dict[str, float]) -> str:
    """Choose the split of a video by a hash of its id, so that every run and every machine agrees.

    Args:
        video_id: any text.
        shares: split -> fraction of the videos, tried in this order; they need not sum to 1.

    Raises:
        ValueError: no share is above 0.
    """
    total = sum(shares.values())
    if total <= 0:
        raise ValueError(f"split shares {shares}: at least one must be above 0")
    left = int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8]) / 2**64 * total
    dealt = {split: share for split, share in shares.items() if share > 0}
    for split, share in dealt.items():
        left -= share
        if left < 0:
            return split
    return next(reversed(dealt))  # rounding of the sum


def split_in_name(name: str) -> str | None:
    """Find the split in a file's name, such as `charades_sta_test` or `val_1`: train, val, test, or None."""
    found = {next(filter(None, match.groups())).lower() for match in _SPLIT_WORDS.finditer(name)}
    return found.pop() if len(found) == 1 else None
