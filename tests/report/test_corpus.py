"""The section about the collection shows what was decoded only in part."""

import support.collection_rows as make

from prvr_ray.collection import open_collection
from prvr_ray.report.corpus import corpus_section, read_corpus
from prvr_ray.report.page import Table


def test_partial_videos_are_counted_and_the_worst_comes_first(tmp_path):
    collection = open_collection(str(tmp_path))
    names = ("whole", "cut", "hole")
    make.put(collection.video_shards, *(make.video(name, split="test") for name in names))
    rows = (make.segment(name, decoded_share=share) for name, share in zip(names, (1.0, 0.5, 0.04), strict=True))
    make.put(collection.features().video_shards, *rows)
    section = corpus_section(read_corpus(collection, "default"))
    (table,) = (block for block in section.blocks if isinstance(block, Table) and "part" in block.caption)
    assert table.caption == "2 videos decoded only in part, the worst first"
    assert table.rows == [["hole", "4%"], ["cut", "50%"]]
