"""Texts that the encoder cuts are counted by its own tokenizer; those that just fit are not."""

import json

import pytest
from open_clip.tokenizer import SimpleTokenizer
from support.small_clip import CONFIG

from prvr_ray.collection import declare_spec, open_collection
from prvr_ray.encoders import find_long_texts
from prvr_ray.features.importing import import_collection

CONTEXT = CONFIG["text_cfg"]["context_length"]
TEXTS = [
    "short",
    " ".join(["dog"] * 14),  # 16 tokens with start and end
    " ".join(["dog"] * 15),
    "antidisestablishmentarianism " * 4,
    "x" * 200,
    "",
    "ein Käse 日本 🎬 " * 5,
]


def spec(name="/a/place/that/is/gone/model.json:weights", context_length=CONTEXT):
    return {"name": name, "context_length": context_length}


def test_texts_that_are_cut_are_counted_by_the_encoder_s_tokenizer():
    encode = SimpleTokenizer().encode
    expected = [str(place) for place, text in enumerate(TEXTS) if len(encode(text)) + 2 > CONTEXT]
    assert "1" not in expected
    assert "2" in expected
    found = find_long_texts(spec(), [str(place) for place in range(len(TEXTS))], TEXTS)
    assert found == {"texts_cut": {"count": len(expected), "context_length": CONTEXT, "such_as": expected[:5]}}
    assert find_long_texts(spec("ViT-B-32:openai"), ["a", "b"], [TEXTS[1], TEXTS[2]])["texts_cut"]["such_as"] == ["b"]


def test_nothing_is_said_where_all_texts_fit_or_the_context_is_not_known():
    assert find_long_texts(spec(), ["a"], ["short"]) == find_long_texts(spec(), [], []) == {}
    assert find_long_texts({"name": "roberta"}, ["a"], ["x " * 1000]) == {}


@pytest.mark.parametrize("is_ingested", [False, True])
def test_an_import_says_which_captions_are_too_long(tmp_path, is_ingested):
    root = str(tmp_path / "root")
    if is_ingested:
        declare_spec(open_collection(root).features().store, {"teacher": spec(), "student": spec()})
    lines = [json.dumps({"query_id": f"q{n}", "video_id": "v", "text": "dog " * n}) for n in (5, 40, 80)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    summary = import_collection("jsonl", str(tmp_path / "c.jsonl"), root)
    if is_ingested:
        assert summary["texts_cut"] == {"count": 2, "context_length": CONTEXT, "such_as": ["q40", "q80"]}
    else:
        assert summary["texts_over_75_words"] == {"count": 1, "such_as": ["q80"]}
