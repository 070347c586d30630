"""The notebook API: open a collection, load a run, search. `import prvr_ray` loads these functions on first use."""

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

from prvr_ray.collection import Collection, existing_collection
from prvr_ray.encoders import Encoder, find_long_texts, load_encoder
from prvr_ray.runs.run import RunFolder, open_run
from prvr_ray.scores.lookup import Found, open_lookup


def open_root(root: str) -> Collection:
    """Open a collection: `.videos()` and `.queries(split)` are pyarrow tables, `.features(name)` a feature set.

    Args:
        root: a local folder or s3://bucket/prefix.

    Raises:
        ValueError: there is no collection.
    """
    return existing_collection(root)


def load_run(root: Collection, run: str) -> RunFolder:
    """Open a training run: `.load_student()`, `.config()`, `.metrics()` of every epoch, `.best()`.

    Raises:
        ValueError: the run does not exist.
    """
    folder = open_run(root.store.uri, run)
    folder.config()
    return folder


@overload
def search(
    root: Collection | str, index: str, text: str, k: int = 10, *, encoder: str = "", filter: Sequence[str] = ()
) -> list[Found]: ...
@overload
def search(
    root: Collection | str, index: str, text: list[str], k: int = 10, *, encoder: str = "", filter: Sequence[str] = ()
) -> list[list[Found]]: ...
def search(
    root: Collection | str,
    index: str,
    text: str | list[str],
    k: int = 10,
    *,
    encoder: str = "",
    filter: Sequence[str] = (),
) -> list[Found] | list[list[Found]]:
    """Find the k best videos for a sentence, best first, each with its moment. Reads the index from storage.

    Args:
        root: a collection of `open_root`, or its URI.
        index: name of an index made by `prvr index`.
        text: a sentence; or a list of them, for which the index is read only once.
        encoder: location of the text encoder, MODEL:WEIGHTS; empty: as in the features' spec.
        filter: search only videos whose metadata match all of these, such as `camera = front`.

    Returns:
        At most k answers, fewer if the index holds fewer videos; for a list of sentences, one list of answers each.

    Raises:
        ValueError: a sentence is empty, a filter is unusable or leaves no video, the index does not exist, or its
            features have no text encoder.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(item, str) and item.strip() for item in texts):
        raise ValueError("search needs a sentence, such as 'a person opens a fridge'")
    lookup = open_lookup(open_root(root) if isinstance(root, str) else root, index, filters=filter)
    found = lookup.best(lookup.embed_texts(_encoder(lookup.find_text_encoder(encoder)), texts), k)
    return found[0] if isinstance(text, str) else found


def find_cut_text(root: Collection, index: str, text: str) -> str | None:
    """Return a warning if a sentence is longer than the encoder's context, so that its end is not searched."""
    cut = find_long_texts(open_lookup(root, index).features.spec()["student"], [text], [text])
    if not cut:
        return None
    return f"the encoder reads {cut['texts_cut']['context_length']} tokens: the end of this sentence is not searched"


@lru_cache(maxsize=1)
def _encoder(name: str) -> Encoder:
    return load_encoder(name)
