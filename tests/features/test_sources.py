"""Which videos a folder, a prefix or a manifest names; names are data, whatever they hold."""

import os
import threading

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import listed
from support.stubborn_s3 import Bucket, stubborn_s3

from prvr_ray.collection.metadata import unpack_metadata
from prvr_ray.config import IngestSettings
from prvr_ray.features.sources import open_parent
from prvr_ray.storage import LocalStore, s3

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
    sources, skipped = listed(str(tmp_path), EXTENSIONS)
    assert ids(sources) == sorted([*NAMES, NEW_LINE])
    assert skipped == 3
    for source in sources:
        store, key = open_parent(source.uri)
        assert store.get(key) == source.video_id.encode()
        assert source.size == len(source.video_id.encode())


def test_a_name_that_is_no_text_counts_as_skipped(tmp_path):
    (tmp_path / "good.mp4").write_bytes(b"")
    open(os.path.join(os.fsencode(tmp_path), b"bad\xff.mp4"), "wb").close()
    sources, skipped = listed(str(tmp_path), EXTENSIONS)
    assert ids(sources) == ["good.mp4"]
    assert skipped == 1


def test_a_changed_file_has_another_etag(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    before = listed(str(tmp_path), EXTENSIONS)[0][0]
    assert listed(str(tmp_path), EXTENSIONS)[0][0] == before
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert listed(str(tmp_path), EXTENSIONS)[0][0].etag != before.etag


def test_s3_keys_are_data(s3_root):
    bucket = s3_root.split("/")[2]
    client = boto3.client("s3")
    keys = ["videos/" + name for name in [*NAMES, "x" * 1000 + ".mp4", "a/../b.mp4", "a//b.mp4", "./c.mp4"]]
    for key in [*keys, "videos/notes.txt", "videos-of-others/a.mp4"]:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    sources, skipped = listed(f"s3://{bucket}/videos", EXTENSIONS)
    assert sorted(ids(sources)) == sorted(key.removeprefix("videos/") for key in keys)
    assert skipped == 1
    for source in sources:
        store, key = open_parent(source.uri)
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
    sources, skipped = listed(str(manifest), EXTENSIONS)
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
    sources, _ = listed(str(tmp_path / "list.csv"), EXTENSIONS)
    assert [source.missing for source in sources] == [None, None]


def test_a_manifest_that_gives_an_id_twice_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("uri,video_id\na.mp4,x\nb.mp4,x\n")
    with pytest.raises(ValueError, match="'x' to two rows"):
        listed(str(tmp_path / "list.csv"), EXTENSIONS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("uri\n", "no row"),
        ("url\na.mp4\n", "list.csv:1: no column uri; found: url"),
        ("uri,video_id\n,a\n", "list.csv:2: uri is empty"),
        ("uri\nhttps://user:s3cret@example.org/a.mp4\n", "credentials"),
    ],
)
def test_an_unusable_manifest_says_why_and_keeps_secrets(tmp_path, content, words):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        listed(str(tmp_path / "list.csv"), EXTENSIONS)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.jsonl", b'{"uri": "a.mp4"}\n{"uri": \n', ":2: not JSON"),
        ("list.jsonl", b'["a.mp4"]\n', ":1: record: each line must be a JSON object"),
        ("list.jsonl", b'{"uri": "\xff.mp4"}\n', ":1: not UTF-8"),
        ("list.csv", b"uri\n\xff.mp4\n", ":2: not UTF-8"),
        ("list.csv", b"uri\n" + b"x" * 200_000 + b"\n", ":2: uri: longer than the field limit"),
        ("list.parquet", b"PAR1", "not Parquet"),
    ],
)
def test_a_damaged_manifest_is_named_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{words}") as error:
        listed(str(tmp_path / name), EXTENSIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no files; --videos takes a folder"),
        (["0.tar", "1.tar", "readme"], r"3 files \(2 with \.tar, 1 with no ending\).*unpack archives first"),
        (["train.csv"], "1 with .csv.*by its own path, not its folder"),
        (["._a.mp4"], "1 files"),
    ],
)
def test_a_folder_without_a_video_is_refused_with_what_is_there(tmp_path, names, words):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"no videos at .*{words}"):
        listed(str(tmp_path), EXTENSIONS)


def test_hidden_files_are_skipped(tmp_path):
    for name in ["a.mp4", "._a.mp4", ".b.mp4", ".trash/c.mp4", "d/._e.mkv"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources, skipped = listed(str(tmp_path), EXTENSIONS)
    assert (ids(sources), skipped) == (["a.mp4"], 4)


def test_a_manifest_s_files_need_no_permission_to_list(tmp_path, monkeypatch):
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "list.csv").write_text("uri\ns3://bucket/a.mp4\ns3://bucket/more/b.mp4\ns3://bucket/gone.mp4\n")
    with stubborn_s3(Bucket({"/bucket/a.mp4": b"1", "/bucket/more/b.mp4": b"22"})) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3._s3_client.cache_clear()
        sources, _ = listed(str(tmp_path / "list.csv"), EXTENSIONS)
    s3._s3_client.cache_clear()
    assert [(source.size, source.etag) for source in sources] == [(1, "abc"), (0, ""), (2, "abc")]
    assert [source.missing for source in sources] == [None, "s3://bucket/gone.mp4 does not exist (404)", None]


def test_a_scheme_that_is_unknown_names_its_row(tmp_path):
    (tmp_path / "list.csv").write_text("uri\na.mp4\nhttps://example.org/b.mp4\n")
    with pytest.raises(ValueError, match=r"list\.csv:3: uri: unknown scheme https://"):
        listed(str(tmp_path / "list.csv"), EXTENSIONS)


def test_a_folder_that_cannot_be_listed_ends_the_command_and_one_of_a_manifest_does_not(tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("uri\nvideos/a.mp4\n")

    def refuse(store, prefix=""):
        raise PermissionError(f"no permission for {store.uri}")

    monkeypatch.setattr("prvr_ray.storage.LocalStore.list", refuse)
    monkeypatch.setattr("prvr_ray.storage.LocalStore.stat", refuse)
    with pytest.raises(PermissionError, match="no permission for"):
        listed(str(tmp_path / "videos"), EXTENSIONS)
    (source,), _ = listed(str(tmp_path / "list.csv"), EXTENSIONS)
    assert source.missing == f"no permission for {tmp_path}/videos"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_other_columns_of_a_manifest_become_metadata(tmp_path, kind):
    (tmp_path / "a.mp4").write_bytes(b"a")
    (tmp_path / "b.mp4").write_bytes(b"b")
    rows = [
        {"uri": "b.mp4", "camera": "front", "length_m": 2.5, "notes": "x" * 200_000},
        {"uri": "a.mp4", "camera": 'it\'s, "back"', "length_m": None, "notes": None},
    ]
    table, manifest = pa.Table.from_pylist(rows), tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(table.append_column("vectors", pa.array([[1.0], [2.0]])), manifest)
    elif kind == "csv":
        table.to_pandas().to_csv(manifest)
    else:
        table.to_pandas().to_json(manifest, orient="records", lines=True)
    sources, _ = listed(str(manifest), EXTENSIONS)
    assert [unpack_metadata(source.metadata) for source in sources] == [
        {"camera": 'it\'s, "back"'},
        {"camera": "front", "length_m": 2.5},  # without the long notes
    ]
