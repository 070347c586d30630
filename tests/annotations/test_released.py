"""The released layout: its parts found and matched by name, and everything that does not fit left out by name."""

import h5py
import numpy as np
import pytest
from support import released_layout

from prvr_ray.annotations.released import ReleasedCaption, find_files, open_released, read_captions
from prvr_ray.schema import unpack_times, unpack_vectors


@pytest.fixture
def world(tmp_path):
    return released_layout.render(tmp_path)


def texts(world):
    return world.folder / "TextData"


def features(world):
    return world.folder / "FeatureData"


def rewrite(world, **changed):
    """Write a world again with some of its parts changed in place."""
    for part, change in changed.items():
        change(getattr(world, part))
    released_layout.write(world)


@pytest.mark.parametrize("mark", ["#enc#", "#"])
def test_rows_are_aligned_by_name_whatever_mark_the_release_writes(world, mark):
    released_layout.write(world, caption_mark=mark)
    with open_released(world.folder) as released:
        videos = {row["video_id"]: row for row in released.video_rows(released.splits)}
        queries = {row["query_id"]: row for row in released.query_rows(released.captions)}
        captions = {caption.caption_id: caption for caption in released.captions}
    assert released.excluded == {}
    assert set(videos) == set(world.frames)
    for video_id, row in videos.items():
        expected = world.frames[video_id].astype(np.float16)
        np.testing.assert_array_equal(unpack_vectors(row["student"], 24), expected)
        np.testing.assert_array_equal(unpack_vectors(row["teacher"], 16), world.teacher_frames[video_id].astype("f2"))
        assert (row["num_frames"], row["segment"], row["is_last"]) == (len(expected), 0, True)
        assert np.isnan(unpack_times(row["timestamps_s"])).tolist() == [True] * len(expected)
    assert set(queries) == {caption_id for split in world.captions.values() for caption_id in split}
    for caption_id, row in queries.items():
        np.testing.assert_array_equal(unpack_vectors(row["student"], 20), world.tokens[caption_id].astype("f2"))
        np.testing.assert_array_equal(
            unpack_vectors(row["teacher"], 16), world.teacher_queries[caption_id].astype("f2")
        )
        assert row["num_tokens"] == len(world.tokens[caption_id])
        split = captions[caption_id].split
        assert captions[caption_id].text == " ".join(world.captions[split][caption_id].split())
        assert captions[caption_id].video_id in videos


def test_a_video_longer_than_a_segment_is_cut_and_keeps_every_frame_in_order(world):
    long = np.random.default_rng(0).normal(size=(2500, 24)).astype(np.float32)
    rewrite(world, frames=lambda frames: frames.update(v_train_0=long))
    with open_released(world.folder) as released:
        rows = list(released.video_rows(["v_train_0"]))
    assert [row["segment"] for row in rows] == [0, 1, 2]
    assert [row["is_last"] for row in rows] == [False, False, True]
    assert max(row["num_frames"] for row in rows) <= 1024
    for column, dim, expected in (("student", 24, long), ("teacher", 16, world.teacher_frames["v_train_0"])):
        joined = np.concatenate([unpack_vectors(row[column], dim) for row in rows])
        np.testing.assert_array_equal(joined, expected.astype(np.float16))


def test_what_has_no_counterpart_is_named(world):
    world.captions["train"]["v_nowhere#enc#0"] = "a caption of an unknown video"
    rewrite(
        world,
        frames=lambda frames: frames.update(v_silent=np.ones((2, 24), np.float32)),
        teacher_frames=lambda frames: frames.pop("v_train_1"),
        tokens=lambda tokens: tokens.pop("v_train_2#enc#0"),
        teacher_queries=lambda vectors: vectors.update({"v_train_3#enc#0": np.full((1, 16), np.inf, np.float32)}),
    )
    lost = [caption_id for caption_id in world.captions["train"] if caption_id.startswith("v_train_1#")]
    with open_released(world.folder) as released:
        left = {row["query_id"] for row in released.query_rows(released.captions)}
        assert released.excluded == {
            "video_without_captions": ["v_silent"],
            "video_without_teacher_frames": ["v_train_1"],
            "caption_of_unusable_video": lost,
            "caption_of_unknown_video": ["v_nowhere#enc#0"],
            "caption_missing": ["v_train_2#enc#0"],
            "caption_not_finite": ["v_train_3#enc#0"],
        }
    named = {"v_nowhere#enc#0", "v_train_2#enc#0", "v_train_3#enc#0", *lost}
    assert left == {caption_id for split in world.captions.values() for caption_id in split} - named


def test_a_video_with_unusable_vectors_is_a_failure_row(world):
    rewrite(
        world,
        frames=lambda frames: frames["v_train_0"].__setitem__((0, 0), np.nan),
        teacher_frames=lambda frames: frames.update(v_train_1=np.ones((3, 15), np.float32)),
    )
    with open_released(world.folder) as released:
        rows = {row["video_id"]: row for row in released.video_rows(released.splits)}
    failed = {video_id: row["error_class"] for video_id, row in rows.items() if "error_class" in row}
    assert failed == {"v_train_0": "not_finite", "v_train_1": "wrong_shape"}
    assert all("student" not in rows[video_id] for video_id in failed)


def test_a_caption_needs_exactly_one_teacher_vector(world):
    rewrite(world, teacher_queries=lambda vectors: vectors.update({"v_val_0#enc#0": np.ones((2, 16), np.float32)}))
    with open_released(world.folder) as released:
        list(released.query_rows(released.captions))
    assert released.excluded == {"caption_wrong_shape": ["v_val_0#enc#0"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("v_train_0 no mark", r"tinytrain\.caption\.txt:2: expected VIDEO#enc#NUMBER text, found 'v_train_0 no mark'"),
        ("v_train_0#enc#7", r":2: expected"),
        ("v_train_0#enc#7  ", r":2: expected"),
        ("#enc#7 text", r":2: expected"),
        ("v#enc#0 again", r":2: caption v#enc#0 occurs twice"),
        ("\xff", r":2: not UTF-8"),
    ],
)
def test_a_malformed_caption_line_is_named(tmp_path, line, said):
    path = tmp_path / "tinytrain.caption.txt"
    path.write_bytes(b"v#enc#0 a caption\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=said):
        read_captions({"train": path})


def test_a_video_in_two_splits_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).write_text(f"v#enc#{split} text\n")
    with pytest.raises(ValueError, match=r"val:1: video v is in two splits, train and val"):
        read_captions({split: tmp_path / split for split in ("train", "val")})


def test_captions_of_both_spellings_are_read(tmp_path):
    (tmp_path / "a").write_text("v#enc#0 one  two\n\nv#1 three # four\r\n")
    assert read_captions({"test": tmp_path / "a"}) == [
        ReleasedCaption("v#enc#0", "v", "one two", "test"),
        ReleasedCaption("v#1", "v", "three # four", "test"),
    ]


def test_a_split_without_a_usable_caption_is_refused(world):
    rewrite(world, frames=lambda frames: [frames.pop(f"v_val_{number}") for number in range(3)])
    with (
        pytest.raises(ValueError, match=r"split val is empty: .*tinyval\.caption\.txt .*caption_of_unknown_video: \d"),
        open_released(world.folder),
    ):
        pass


def test_an_empty_caption_file_is_refused(world):
    (texts(world) / "tinytest.caption.txt").write_text("\n")
    with pytest.raises(ValueError, match="split test is empty"), open_released(world.folder):
        pass


def test_teachers_of_two_kinds_are_refused(world):
    rewrite(world, teacher_queries=lambda vectors: vectors.update({key: np.ones((1, 12)) for key in vectors}))
    with (
        pytest.raises(ValueError, match=r"16 dimensions and .* 12: they are not of one teacher"),
        open_released(world.folder),
    ):
        pass


def test_all_missing_files_are_named_at_once(world):
    (texts(world) / "roberta_tiny_query_feat.hdf5").unlink()
    (features(world) / "i3d" / "feature.bin").unlink()
    with pytest.raises(
        ValueError, match=r"no FeatureData/<feature>/feature\.bin, TextData/roberta_tiny_query_feat\.hdf5$"
    ):
        find_files(world.folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not in the released layout: no FeatureData"):
        find_files(tmp_path)


def test_of_several_datasets_one_is_chosen_by_name(world):
    released_layout.render(world.folder, dataset="other")
    with pytest.raises(ValueError, match="several datasets; choose one with --name: other, tiny"):
        find_files(world.folder)
    assert find_files(world.folder, "other").tokens.name == "roberta_other_query_feat.hdf5"
    with pytest.raises(ValueError, match=r"no FeatureData/new_clip_vit_32_third_vid_features\.hdf5"):
        find_files(world.folder, "third")


def test_several_frame_features_are_refused_by_name(world):
    (features(world) / "resnet").mkdir()
    (features(world) / "resnet" / "feature.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="several frame features, i3d, resnet"):
        find_files(world.folder)


def test_versions_change_with_the_files_that_they_speak_of(world):
    def versions():
        with open_released(world.folder) as released:
            return released.video_etag, released.text_hash(released.captions[0])

    before = versions()
    assert versions() == before
    with h5py.File(texts(world) / "roberta_tiny_query_feat.hdf5", "a") as file:
        file["more"] = np.ones((1, 20), np.float32)
    after = versions()
    assert after[0] == before[0]
    assert after[1] != before[1]
