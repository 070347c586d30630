"""Which videos a folder, a prefix or a manifest names; names are data, whatever they hold."""

import os
import threading

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prvr_ray.config import IngestSettings
from prvr_ray.stages.sources import Source, list_sources, parent_store
from prvr_ray.storage import LocalStore

EXTENSIONS = IngestSettings().extensions
NAMES = [
    "a b.mp4", "it's.mp4", '"quoted".mov', "-rf.mkv", "--help.mp4", "ümläut 日本 🎬.webm", "more/..mp4",
    "more/deep/X.MP4", "100%25.mp4", "a#b?c=d&e.mp4", "semi;colon$HOME.avi", "star*[1].mp4", "trailing .mp4",
]  # fmt: skip
NEW_LINE = "new\nline.mp4"  # not a key that the S3 test server takes


def ids(sources):
    return [source.video_id for source in sources]


def test_a_folder_s_videos_are_its_files_with_a_video_s_extension(tmp_path):
    for name in [*NAMES, NEW_LINE, "notes.txt", "mp4", "more/clip.mp4.part"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    sources, skipped = list_sources(str(tmp_path), EXTENSIONS)
    assert ids(sources) == sorted([*NAMES, NEW_LINE])
    assert skipped == 3
    for source in sources:
        store, key = parent_store(source.uri)
        assert store.get(key) == source.video_id.encode()
        assert source.size == len(source.video_id.encode())


def test_a_name_that_is_no_text_counts_as_skipped(tmp_path):
    (tmp_path / "good.mp4").write_bytes(b"")
    open(os.path.join(os.fsencode(tmp_path), b"bad\xff.mp4"), "wb").close()
    sources, skipped = list_sources(str(tmp_path), EXTENSIONS)
    assert ids(sources) == ["good.mp4"]
    assert skipped == 1


def test_a_changed_file_has_another_etag(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    before = list_sources(str(tmp_path), EXTENSIONS)[0][0]
    assert list_sources(str(tmp_path), EXTENSIONS)[0][0] == before
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert list_sources(str(tmp_path), EXTENSIONS)[0][0].etag != before.etag


def test_s3_keys_are_data(s3_root):
    bucket = s3_root.split("/")[2]
    client = boto3.client("s3")
    keys = ["videos/" + name for name in [*NAMES, "x" * 1000 + ".mp4", "a/../b.mp4", "a//b.mp4", "./c.mp4"]]
    for key in [*keys, "videos/notes.txt", "videos-of-others/a.mp4"]:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    sources, skipped = list_sources(f"s3://{bucket}/videos", EXTENSIONS)
    assert sorted(ids(sources)) == sorted(key.removeprefix("videos/") for key in keys)
    assert skipped == 1
    for source in sources:
        store, key = parent_store(source.uri)
        with store.local_file(key) as path:
            assert path.read_bytes() == b"videos/" + source.video_id.encode()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_names_videos_anywhere(tmp_path, kind):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here/a.mp4").write_bytes(b"1")
    (tmp_path / "there/b.mp4").write_bytes(b"22")
    rows = [
        {"uri": "a.mp4", "video_id": "", "split": "test"},
        {"uri": f"{tmp_path}/there/b.mp4", "video_id": "bee", "split": ""},
        {"uri": "gone.mp4", "video_id": "", "split": ""},
    ]
    manifest = tmp_path / f"here/list.{kind}"
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, manifest)
    elif kind == "csv":
        manifest.write_text("\ufeffuri,video_id,split\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        table.to_pandas().to_json(manifest, orient="records", lines=True)
    sources, skipped = list_sources(str(manifest), EXTENSIONS)
    assert skipped == 0
    assert [(s.video_id, s.uri, s.size, s.split, s.missing) for s in sources] == [
        ("a.mp4", f"{tmp_path}/here/a.mp4", 1, "test", None),
        ("bee", f"{tmp_path}/there/b.mp4", 2, None, None),
        ("gone.mp4", f"{tmp_path}/here/gone.mp4", 0, None, "there is no such file"),
    ]


def test_folders_of_a_manifest_are_listed_at_the_same_time(tmp_path, monkeypatch):
    """Each waits for the other: one after the other, neither would come to an end."""
    both, list_one = threading.Barrier(2, timeout=20), LocalStore.list

    def list_together(store, prefix):
        both.wait()
        return list_one(store, prefix)

    monkeypatch.setattr(LocalStore, "list", list_together)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "video.mp4").write_bytes(b"1")
    (tmp_path / "list.csv").write_text("uri\na/video.mp4\nb/video.mp4\n")
    sources, _ = list_sources(str(tmp_path / "list.csv"), EXTENSIONS)
    assert [source.missing for source in sources] == [None, None]


def test_a_manifest_that_gives_an_id_twice_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("uri,video_id\na.mp4,x\nb.mp4,x\n")
    with pytest.raises(ValueError, match="'x' to two rows"):
        list_sources(str(tmp_path / "list.csv"), EXTENSIONS)


@pytest.mark.parametrize(
    ("content", "words"),
    [("uri\n", "no row"), ("url\na.mp4\n", "no row"), ("uri\nhttps://user:s3cret@example.org/a.mp4\n", "credentials")],
)
def test_an_unusable_manifest_says_why_and_keeps_secrets(tmp_path, content, words):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        list_sources(str(tmp_path / "list.csv"), EXTENSIONS)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.jsonl", b'{"uri": "a.mp4"}\n{"uri": \n', "line 2: not JSON"),
        ("list.jsonl", b'["a.mp4"]\n', "line 1: a JSON object with `uri` is wanted"),
        ("list.jsonl", b'{"uri": "\xff.mp4"}\n', "utf-8"),
        ("list.csv", b"uri\n\xff.mp4\n", "utf-8"),
        ("list.csv", b"uri\n" + b"x" * 200_000 + b"\n", "field limit"),
        ("list.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_a_damaged_manifest_is_named_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{words}") as error:
        list_sources(str(tmp_path / name), EXTENSIONS)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no files at"):
        list_sources(str(tmp_path), EXTENSIONS)


def test_a_folder_that_cannot_be_listed_ends_the_command_and_one_of_a_manifest_does_not(tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("uri\nvideos/a.mp4\n")

    def refuse(store, prefix=""):
        raise PermissionError(f"no permission for {store.uri}")

    monkeypatch.setattr("prvr_ray.storage.LocalStore.list", refuse)
    with pytest.raises(PermissionError, match="no permission for"):
        list_sources(str(tmp_path / "videos"), EXTENSIONS)
    (source,), _ = list_sources(str(tmp_path / "list.csv"), EXTENSIONS)
    assert source.missing == f"no permission for {tmp_path}/videos"


def test_sources_are_values():
    assert Source("a", "/v/a") == Source("a", "/v/a", 0, "", None, None)
