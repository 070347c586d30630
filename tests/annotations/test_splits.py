"""Splits by hash and by file name."""

import pytest

from prvr_ray.annotations.splits import split_in_name, split_of


def test_shares_are_met_and_an_id_always_gets_the_same_split():
    ids = [f"video-{number}.mp4" for number in range(20_000)]
    dealt = [split_of(video_id, {"train": 0.8, "val": 0.1, "test": 0.1}) for video_id in ids]
    assert [dealt.count(split) / len(ids) for split in ("train", "val", "test")] == pytest.approx(
        [0.8, 0.1, 0.1], abs=0.01
    )
    # sha256("a") begins ca97...: 0xca97 / 0x10000 = 0.791, sha256("c") begins 2e7d...: 0.182
    assert split_of("a", {"train": 0.79, "test": 0.21}) == "test"
    assert split_of("a", {"train": 0.80, "test": 0.20}) == "train"
    assert split_of("c", {"train": 1, "test": 4}) == "train"
    assert split_of("a", {"train": 1, "test": 4}) == "test"


def test_a_share_of_zero_gets_nothing():
    assert {split_of(str(number), {"train": 0, "test": 0.3, "val": 0}) for number in range(100)} == {"test"}
    with pytest.raises(ValueError, match="above 0"):
        split_of("a", {"train": 0})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("charades_sta_test", "test"),
        ("val_1", "val"),
        ("tvr_val_release", "val"),
        ("Validation", "val"),
        ("training-set", "train"),
        ("latest", None),
        ("trainval", None),
        ("train_and_test", None),
        ("captions", None),
    ],
)
def test_a_file_name_tells_its_split_only_as_a_whole_word(name, split):
    assert split_in_name(name) == split
