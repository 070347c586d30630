"""The names for notebooks: a collection, a run, a search. `import prvr_ray` offers them and loads them when used."""

from functools import lru_cache

from prvr_ray.collection import Collection, existing_collection
from prvr_ray.encoders import Encoder, load_encoder
from prvr_ray.lookup import Found, open_lookup
from prvr_ray.runs import RunFolder, open_run
from prvr_ray.stages.query_vectors import encode_texts, text_encoder_name


def open_root(root: str) -> Collection:
    """Open a collection: `.videos()` and `.queries(split)` are pyarrow tables, `.features(name)` a feature set.

    Args:
        root: a local folder or s3://bucket/prefix.

    Raises:
        ValueError: there is nothing.
    """
    return existing_collection(root)


def load_run(root: Collection, run: str) -> RunFolder:
    """Open a training run: `.load_student()`, `.config()`, `.metrics()` of every epoch, `.best()`.

    Raises:
        ValueError: there is no such run.
    """
    folder = open_run(root.store.uri, run)
    folder.config()
    return folder


def search(root: Collection, index: str, text: str, k: int = 10) -> list[Found]:
    """Find the k best videos for a sentence, best first, each with its moment. Reads the index from storage.

    Args:
        root: of `open_root`.
        index: name of an index that `prvr index` made.

    Raises:
        ValueError: there is no such index, or its features came without a text encoder.
    """
    lookup = open_lookup(root, index)
    encoder = _encoder(text_encoder_name(lookup.features))
    [found] = lookup.best(lookup.embed(encode_texts(encoder, [text])), k)
    return found


@lru_cache(maxsize=1)
def _encoder(name: str) -> Encoder:
    return load_encoder(name)
