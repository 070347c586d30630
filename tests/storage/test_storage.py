"""Stores: the same promises on a local folder and on S3; objects are there whole or not at all."""

import contextlib
import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from support.faulty_proxy import Faults, faulty_proxy
from support.ports import free_port
from support.stubborn_s3 import Bucket, stubborn_s3

from prvr_ray.storage import (
    LocalStore,
    ShardError,
    arrow,
    get_file,
    get_json,
    local,
    make_shard_name,
    open_store,
    put_json_if_absent,
    read_table,
    s3,
    table_to_bytes,
)
from prvr_ray.storage.store import put_lowest_claim


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    """A store of each kind; s3:// is the test server's."""
    if request.param == "local":
        return open_store(tmp_path / "root")
    return open_store(request.getfixturevalue("s3_root"))


def test_an_object_is_read_back_listed_replaced_and_deleted(store):
    assert store.list() == []
    store.put("a/one.bin", b"1")
    store.put("a/b/two.bin", b"22")
    store.put("three.bin", pa.py_buffer(b"333"))
    assert [(item.key, item.size) for item in store.list()] == [("a/b/two.bin", 2), ("a/one.bin", 1), ("three.bin", 3)]
    assert [item.key for item in store.list("a/")] == ["a/b/two.bin", "a/one.bin"]
    assert [item.key for item in store.list("a/o")] == ["a/one.bin"]
    assert [item.key for item in store.child("a").list()] == ["b/two.bin", "one.bin"]
    before = {item.key: item.etag for item in store.list()}
    store.put("a/one.bin", b"another")
    after = {item.key: item.etag for item in store.list()}
    assert {key for key in after if after[key] != before[key]} == {"a/one.bin"}
    assert store.get("a/one.bin") == b"another"
    store.delete("a/one.bin")
    store.delete("a/one.bin")
    assert not store.exists("a/one.bin")
    assert store.exists("a/b/two.bin")
    assert not store.exists("a/b/two")
    assert not store.exists("a/b")
    with pytest.raises(FileNotFoundError):
        store.get("a/one.bin")


def test_one_file_is_read_by_its_path_or_uri(store):
    store.put("clips/a b.yaml", b"train:")
    assert get_file(f"{store.uri}/clips/a b.yaml") == b"train:"
    with pytest.raises(FileNotFoundError, match="clips/none"):
        get_file(f"{store.uri}/clips/none")


def test_a_local_file_holds_the_object(store):
    store.put("clips/a b.mp4", b"frames")
    with store.local_file("clips/a b.mp4") as path:
        assert path.read_bytes() == b"frames"
        assert path.suffix == ".mp4"


@pytest.mark.parametrize(
    "key",
    ["with space.bin", "quo'te\".bin", "-dash", "ünïcödé ☃.bin", "100%25.bin", "a?b#c=d&e.bin", "x" * 200],
)
def test_names_are_only_names(store, key):
    store.put(key, b"1")
    assert [item.key for item in store.list()] == [key]
    assert store.get(key) == b"1"
    with store.open(key) as file:
        assert file.read() == b"1"
    store.delete(key)
    assert store.list() == []


def test_a_local_name_may_hold_a_line_end(tmp_path):
    store = open_store(tmp_path)
    store.put("two\nlines", b"1")
    assert [item.key for item in store.list()] == ["two\nlines"]
    assert store.get("two\nlines") == b"1"


def test_a_key_of_1000_characters_works_where_the_store_has_them(s3_root):
    store = open_store(s3_root)
    key = "/".join("d" * 99 for _ in range(10))
    store.put(key, b"1")
    assert [item.key for item in store.list()] == [key]
    with store.local_file(key) as path:
        assert path.read_bytes() == b"1"


def test_the_first_of_two_puts_wins(store):
    assert store.put_if_absent("spec.json", b"first")
    assert not store.put_if_absent("spec.json", b"second")
    assert store.get("spec.json") == b"first"


def test_of_many_racing_writers_exactly_one_wins_and_all_read_its_object(store):
    together = threading.Barrier(12)

    def write(number):
        together.wait()
        stands = put_json_if_absent(store, "plan.json", {"writer": number})
        return stands["writer"]

    with ThreadPoolExecutor(12) as writers:
        seen = list(writers.map(write, range(12)))
    assert len(set(seen)) == 1
    assert get_json(store, "plan.json") == {"writer": seen[0]}


def test_readers_never_see_half_an_object_while_it_is_replaced(store):
    contents = [bytes([value]) * 200_000 for value in range(4)]
    store.put("a.bin", contents[0])
    done = threading.Event()

    def write():
        for number in range(40):
            store.put("a.bin", contents[number % 4])
        done.set()

    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write)
        while not done.is_set() and not writing.done():
            assert store.get("a.bin") in contents
            assert [item.size for item in store.list()] == [200_000]
        writing.result()


def _put_for_ever(uri):
    store = LocalStore(uri)
    for number in range(10**9):
        store.put(f"shard-{number:06d}.parquet", b"x" * 2_000_000)


def test_a_killed_writer_leaves_whole_objects_only(tmp_path):
    store = open_store(tmp_path / "root")
    for delay_s in (0.05, 0.11, 0.23):
        writer = multiprocessing.get_context("spawn").Process(target=_put_for_ever, args=(store.uri,))
        writer.start()
        while not store.list():
            time.sleep(0.01)
        time.sleep(delay_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = store.list()
        assert {item.size for item in found} == {2_000_000}
        assert all(item.key.startswith("shard-") for item in found)


def test_a_full_disk_leaves_nothing_and_what_stood_before(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.put("a.bin", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
        store.put("a.bin", b"after")
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.bin'"):
        store.put_if_absent("b.bin", b"new")
    assert os.listdir(tmp_path) == ["a.bin"]
    assert store.get("a.bin") == b"before"


def test_what_s3_refuses_is_an_error_of_python_s_own_that_names_the_object(s3_root):
    nowhere = open_store(s3_root.replace("s3://", "s3://no-"))
    for call in (lambda: nowhere.put("a", b""), lambda: nowhere.put_if_absent("a", b""), nowhere.list):
        with pytest.raises(FileNotFoundError, match=f"{nowhere.uri}.* does not exist"):
            call()


def test_an_answer_that_breaks_off_is_asked_for_again(s3_endpoint, s3_root, monkeypatch):
    open_store(s3_root).put("a.bin", b"whole" * 1000)
    with faulty_proxy(s3_endpoint, Faults(busy=0.0, cut_before=0.0, cut_after=0.5)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3._s3_client.cache_clear()
        assert [open_store(s3_root).get("a.bin") for _ in range(10)] == [b"whole" * 1000] * 10


def test_a_password_in_the_endpoint_s_url_is_not_repeated(s3_root, monkeypatch):
    monkeypatch.setattr(s3, "_S3_ATTEMPTS", 1)
    for password in ("s3cret", "p@s3cret"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{password}@127.0.0.1:{free_port()}")
        s3._s3_client.cache_clear()
        with pytest.raises((ConnectionError, ValueError)) as raised:
            open_store(s3_root).get("a.bin")
        assert "s3cret" not in str(raised.value)


def test_a_conflict_of_two_conditional_puts_is_tried_again(s3_root, monkeypatch):
    from botocore.exceptions import ClientError

    conflict = ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 409}}, "PutObject")
    client, answers = s3._s3_client(False), [conflict, conflict]
    put = client.put_object

    def put_object(**arguments):
        if answers:
            raise answers.pop()
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", put_object)
    assert open_store(s3_root).put_if_absent("spec.json", b"mine")
    assert open_store(s3_root).get("spec.json") == b"mine"


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    store = open_store(tmp_path)
    store.put("a.bin", b"1")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~mask


def test_an_s3_put_is_one_request(s3_root):
    store = open_store(s3_root)
    requests = []
    events = s3._s3_client(False).meta.events
    events.register("before-send.s3", lambda request, **_: requests.append((request.method, request.url)))
    data = os.urandom(20 * 2**20)  # above the size at which multipart uploads begin
    store.put("shard.parquet", data)
    assert [method for method, _ in requests] == ["PUT"]
    assert store.get("shard.parquet") == data


def test_listing_goes_beyond_one_page(s3_root):
    store = open_store(s3_root)
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda number: store.put(f"k{number:05d}", b""), range(1003)))
    assert [item.key for item in store.list()] == [f"k{number:05d}" for number in range(1003)]


def test_stores_travel_to_other_processes(tmp_path):
    store = open_store(tmp_path)
    store.put("a", b"1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.get, ("a",)) == b"1"


class WithoutConditionalPut:
    """A store as gs:// or abfs:// is here: no conditional put of its own."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put_if_absent(self, key, data):
        return put_lowest_claim(self, key, data)


def test_without_conditional_put_all_writers_agree_on_one_object(tmp_path):
    store = WithoutConditionalPut(open_store(tmp_path))
    together = threading.Barrier(6)

    def write(number):
        together.wait()
        return put_json_if_absent(store, "plan.json", {"writer": number})["writer"]

    with ThreadPoolExecutor(6) as writers:
        list(writers.map(write, range(6)))
    standing = get_json(store, "plan.json")["writer"]
    assert put_json_if_absent(store, "plan.json", {"writer": 99})["writer"] == standing
    claims = store.list("plan.json.claim-")
    assert store.get(claims[0].key) == store.get("plan.json")


def test_listing_through_arrow_looks_no_further_than_the_prefixs_folder(tmp_path, monkeypatch):
    files = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    looked_at, selector = [], pyarrow.fs.FileSelector
    monkeypatch.setattr(arrow, "_arrow_filesystem", lambda scheme, anonymous: files)
    monkeypatch.setattr(
        pyarrow.fs, "FileSelector", lambda path, **options: looked_at.append(path) or selector(path, **options)
    )
    store = arrow.ArrowStore("gs://bucket/root")
    for key in ("parts/1-a", "parts/1-b", "parts/2/c", "partsothers", "other/d"):
        (tmp_path / "bucket/root" / key).parent.mkdir(parents=True, exist_ok=True)
        store.put(key, b"x")
    found = {prefix: [item.key for item in store.list(prefix)] for prefix in ("parts/1", "parts", "", "gone/x")}
    assert found == {
        "parts/1": ["parts/1-a", "parts/1-b"],
        "parts": ["parts/1-a", "parts/1-b", "parts/2/c", "partsothers"],
        "": ["other/d", "parts/1-a", "parts/1-b", "parts/2/c", "partsothers"],
        "gone/x": [],
    }
    assert looked_at == ["bucket/root/parts", "bucket/root", "bucket/root", "bucket/root/gone"]
    assert [store.exists(key) for key in ("parts/1-a", "parts/1", "parts")] == [True, False, False]


@pytest.fixture
def table():
    rows = [{"video_id": f"v{row}", "teacher": os.urandom(1000)} for row in range(50)]
    return pa.Table.from_pylist(rows, pa.schema([("video_id", pa.string()), ("teacher", pa.large_binary())]))


def test_a_table_and_single_columns_are_read_back(store, table):
    store.put("a.parquet", table_to_bytes(table))
    assert read_table(store, "a.parquet").equals(table)
    assert read_table(store, "a.parquet", ["video_id"]).equals(table.select(["video_id"]))


def test_vectors_are_stored_plain_and_without_statistics(table):
    metadata = pq.read_metadata(pa.BufferReader(table_to_bytes(table)))
    column = metadata.row_group(0).column(1)
    assert column.compression == "UNCOMPRESSED"
    assert not any("DICT" in encoding for encoding in column.encodings)
    assert column.statistics is None
    assert column.total_uncompressed_size < 50 * 1000 * 1.02


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-10], lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no"]
)
def test_a_damaged_shard_is_named(store, table, damage):
    store.put("shard-1.parquet", damage(table_to_bytes(table).to_pybytes()))
    with pytest.raises(ShardError, match=r"shard-1\.parquet cannot be read") as raised:
        read_table(store, "shard-1.parquet")
    assert store.uri in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_shard_is_named(store):
    with pytest.raises(ShardError, match=r"shard-1\.parquet is missing"):
        read_table(store, "shard-1.parquet")


def test_a_store_that_refuses_says_nothing_about_its_shards(refusing_s3):
    with pytest.raises(PermissionError, match=r"no permission for s3://.*shard-1\.parquet"):
        read_table(open_store(refusing_s3), "shard-1.parquet")


def test_a_bucket_is_read_in_its_own_region(s3_root, table):
    import boto3

    boto3.client("s3").create_bucket(
        Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    store = open_store("s3://far-away/root")
    store.put("a.parquet", table_to_bytes(table))
    assert read_table(store, "a.parquet").equals(table)


def test_json_that_is_none_is_named(store):
    store.put("plan.json", b"{half")
    with pytest.raises(ValueError, match=r"plan\.json is not JSON"):
        get_json(store, "plan.json")


def test_names_of_shards_sort_by_time_and_never_meet():
    names = [make_shard_name("shard") for _ in range(2000)]
    assert len(set(names)) == 2000
    assert [name.rpartition("-")[0] for name in names] == sorted(name.rpartition("-")[0] for name in names)
    assert all(Path(name).suffix == ".parquet" for name in names)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://host/path", "unknown scheme http://"),
        ("ftp://host/path", "unknown scheme ftp://"),
        ("s3:///path", "names no bucket; write s3://BUCKET/PREFIX"),
        ("gs://", "names no bucket"),
    ],
)
def test_an_unusable_uri_is_refused(uri, said):
    with pytest.raises(ValueError, match=said):
        open_store(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(ValueError, match="set them in the environment") as raised:
        open_store("s3://AKIAEXAMPLE:hunter2@bucket/prefix")
    assert "hunter2" not in str(raised.value)


def test_no_such_bucket_is_a_missing_file_that_names_it(s3_root):
    store = open_store("s3://no-such-bucket-anywhere/prefix")
    with pytest.raises(FileNotFoundError, match="no-such-bucket-anywhere"):
        store.list()
    with pytest.raises(FileNotFoundError, match="no-such-bucket-anywhere"):
        store.get("a")
    with pytest.raises(ShardError, match="no-such-bucket-anywhere"):
        read_table(store, "a.parquet")


def test_relative_paths_and_home_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert open_store("root/").uri == str(tmp_path / "root")
    assert open_store("~/root").uri == "/home/somebody/root"
    assert open_store(f"file://{tmp_path}/root").uri == f"{tmp_path}/root"
    assert open_store("s3://bucket/prefix/").uri == "s3://bucket/prefix"


def test_a_folder_in_which_nothing_may_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):  # noqa: PT011 - NotADirectoryError or FileExistsError, as the system likes
        open_store(tmp_path / "file" / "root").put("a", b"1")


def test_linked_folders_are_listed_but_links_back_up_end_there(tmp_path):
    (tmp_path / "disk" / "b").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    for path in ("root/a.mp4", "disk/c.mp4", "disk/b/d.mp4"):
        (tmp_path / path).write_bytes(b"1")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "disk" / "b")
    (tmp_path / "disk" / "b" / "up").symlink_to(tmp_path / "root")
    keys = [item.key for item in open_store(tmp_path / "root").list()]
    assert keys == ["a.mp4", "again/d.mp4", "more/b/d.mp4", "more/c.mp4"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.mp4").write_bytes(b"1")
    scandir = os.scandir

    def stale(path):
        if str(path).endswith("b"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        open_store(tmp_path).list()
    assert open_store(tmp_path / "none").list() == []


def test_dangling_links_are_passed_over(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "a").write_bytes(b"1")
    assert [item.key for item in open_store(tmp_path).list()] == ["a"]


def test_the_module_needs_no_boto3_for_local_folders():
    probe = (
        "import sys; from prvr_ray.storage import open_store; open_store('x').list(); sys.exit('boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0


def test_an_open_object_of_a_local_store_is_not_copied(tmp_path):
    store = open_store(tmp_path)
    store.put("big", b"x" * 50_000_000)
    before = pa.total_allocated_bytes()
    with contextlib.closing(store.open("big")) as file:
        assert file.read_buffer().size == 50_000_000
        assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_server_that_does_not_answer_is_a_connection_error_that_names_the_place(s3_root, monkeypatch):

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "_S3_ATTEMPTS", 1)
    s3._s3_client.cache_clear()
    with pytest.raises(ConnectionError, match="s3://nowhere/x"):
        open_store("s3://nowhere/x").list()
    s3._s3_client.cache_clear()


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.put("x", b""),
        lambda store: store.put_if_absent("x", b""),
        lambda store: store.get("x"),
        lambda store: store.list(),
        lambda store: store.delete("x"),
        lambda store: store.local_file("x").__enter__(),
    ],
    ids=["put", "put_if_absent", "get", "list", "delete", "local_file"],
)
def test_a_refusal_is_a_permission_error_that_names_the_place(refusing_s3, use):
    with pytest.raises(PermissionError, match=f"no permission for {refusing_s3}"):
        use(open_store(refusing_s3))


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """Sets AWS variables and forgets the clients that were made with others."""

    def set_variables(**variables):
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, **variables}.items():
            monkeypatch.setenv(name, value)
        s3._s3_client.cache_clear()

    yield set_variables
    s3._s3_client.cache_clear()


def test_shards_are_read_from_the_endpoint_of_the_aws_configuration_file(tmp_path, aws, table):
    """Arrow's own client does not know `endpoint_url`: each read waited for the public S3."""
    content = table_to_bytes(table).to_pybytes()
    bucket = Bucket({"/bucket/root/a.parquet": content, "/bucket/root/empty": b""})
    with stubborn_s3(bucket) as url:
        (tmp_path / "config").write_text(f"[default]\nendpoint_url = {url}\n")
        aws(AWS_CONFIG_FILE=str(tmp_path / "config"))
        begun = time.monotonic()
        assert read_table(open_store("s3://bucket/root"), "a.parquet", ["video_id"]).equals(table.select(["video_id"]))
        assert time.monotonic() - begun < 5
        assert bucket.signed == [True]  # footer and columns of a small shard are one request


def test_a_large_object_is_read_in_parts_at_any_place(s3_root, monkeypatch):
    monkeypatch.setattr(s3, "_TAIL_BYTES", 1000)
    monkeypatch.setattr(s3, "_RANGE_BYTES", 700)
    content = os.urandom(10_000)
    open_store(s3_root).put("a.bin", content)
    with open_store(s3_root).open("a.bin") as file:
        assert file.size() == 10_000
        for start, size in ((0, 10_000), (0, 1), (123, 5000), (8900, 300), (9500, 500), (9999, 10), (10_000, 5)):
            assert file.read_at(size, start) == content[start : start + size]


def test_expired_credentials_are_said_in_the_store_s_own_words(aws):
    refusal = (400, "ExpiredToken", "The provided token has expired.")
    with stubborn_s3(Bucket({}, refusal)) as url:
        aws(AWS_ENDPOINT_URL=url)
        store = open_store("s3://bucket/videos")
        uses = [lambda: store.get("a.mp4"), store.list, lambda: store.stat("a.mp4"), lambda: store.open("a.mp4")]
        uses.append(lambda: contextlib.ExitStack().enter_context(store.local_file("a.mp4")))
        for use in uses:  # HEAD alone says "400 Bad Request"
            with pytest.raises(
                PermissionError, match=r"ExpiredToken: The provided token has expired\.\).*look expired"
            ):
                use()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_public_objects_are_read_without_credentials(aws, monkeypatch, how):
    bucket = Bucket({"/bucket/videos/a.mp4": b"frames"})
    with stubborn_s3(bucket) as url:
        aws(AWS_ENDPOINT_URL=url, **({"AWS_NO_SIGN_REQUEST": "YES"} if how == "variable" else {}))
        store = open_store("s3://bucket", anonymous=how == "argument").child("videos")
        with store.local_file("a.mp4") as path:
            assert path.read_bytes() == b"frames"
        assert not any(bucket.signed)
