"""Encoders against plain open_clip on the same frames and texts, with small random models of both classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from prvr_ray.encoders import describe_encoder, load_encoder
from prvr_ray.encoders.checkpoint import shorten
from prvr_ray.encoders.encoder import send_frames
from prvr_ray.encoders.spec import resolve_encoder

TEXTS = [
    "a red circle",
    "wow!! a blue square moves to the left and then, much later, far beyond the context, stops",
    "",
]
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 40, "heads": 2, "layers": 2},
}
CUSTOM_TEXT = {"custom_text": True, "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}}
COCA = {
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    "vision_cfg": {**CONFIG["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**CONFIG["text_cfg"], "embed_cls": True, "output_tokens": True},
}


def write_model(folder, config, suffix=".safetensors"):
    """A random model of a config: its `config.json:weights` name and the plain open_clip model."""
    torch.manual_seed(3)
    options = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP
    model = (open_clip.CustomTextCLIP if config.get("custom_text") else kind)(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial values, where texts are all alike
            parameter += 0.05 * torch.randn_like(parameter)
    weights = folder / f"weights{suffix}"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(state, weights) if suffix == ".safetensors" else torch.save({"state_dict": state}, weights)
    (folder / "model.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}))
    return f"{folder}/model.json:{weights}", model


def frames(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def cosine(a, b):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).min().item()


@pytest.mark.parametrize("overrides", [{}, CUSTOM_TEXT, COCA], ids=["classic", "custom_text", "coca"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_vectors_equal_plain_open_clip(tmp_path, overrides, suffix):
    name, model = write_model(tmp_path, CONFIG | overrides, suffix)
    encoder = load_encoder(name, device="cpu", micro_batch=3)
    images = frames(7)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.spec.mean, encoder.spec.std))
    with torch.no_grad():
        expected = model.encode_image((torch.from_numpy(images) / 255 - mean) / std, normalize=False)
        tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
        expected_text = model.encode_text(tokens, normalize=False)
    vectors = encoder.encode_frames(images)
    pooled, _ = encoder.encode_text(TEXTS)
    assert vectors.dtype == pooled.dtype == np.float32
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)  # raw: lengths are equal too
    np.testing.assert_allclose(pooled, expected_text.numpy(), rtol=1e-4, atol=1e-5)
    assert min(cosine(vectors, expected), cosine(pooled, expected_text)) > 0.9999
    assert encoder.spec.mean == (0.1, 0.2, 0.3)
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())


@pytest.mark.parametrize("overrides", [{}, CUSTOM_TEXT], ids=["classic", "custom_text"])
def test_token_states_are_the_transformer_output_that_open_clip_pools_and_projects(tmp_path, overrides):
    name, model = write_model(tmp_path, CONFIG | overrides)
    pooled, states = load_encoder(name, device="cpu").encode_text(TEXTS)
    projection = (model.text if overrides else model).text_projection.detach().numpy()
    assert [len(state) for state in states] == [5, 16, 2]  # bos, 3 words, eos; cut at the context length; bos, eos
    assert all(state.dtype == np.float32 and state.shape[1] == 40 for state in states)
    for vector, state in zip(pooled, states, strict=True):  # open_clip pools the end-of-text token: the last valid one
        np.testing.assert_allclose(state[-1] @ projection, vector, rtol=1e-4, atol=1e-5)


def test_coca_token_states_leave_out_the_appended_class_token(tmp_path):
    name, _ = write_model(tmp_path, CONFIG | COCA)
    _, states = load_encoder(name, device="cpu").encode_text(TEXTS)
    assert [len(state) for state in states] == [5, 16, 2]


def test_vectors_do_not_depend_on_the_micro_batch(tmp_path):
    name, _ = write_model(tmp_path, CONFIG)
    one, many = (load_encoder(name, device="cpu", micro_batch=size) for size in (1, 64))
    np.testing.assert_allclose(one.encode_frames(frames(5)), many.encode_frames(frames(5)), atol=1e-5)
    np.testing.assert_allclose(one.encode_text(TEXTS)[0], many.encode_text(TEXTS)[0], atol=1e-5)


def test_cuda_out_of_memory_halves_the_micro_batch_and_loses_nothing(tmp_path, monkeypatch):
    name, _ = write_model(tmp_path, CONFIG)
    encoder = load_encoder(name, device="cpu", micro_batch=8)
    expected = encoder.encode_frames(frames(11))
    sizes, encode = [], encoder._model.encode_image

    def small_gpu(pixels, normalize):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.cuda.OutOfMemoryError("injected")
        return encode(pixels, normalize=normalize)

    monkeypatch.setattr(encoder._model, "encode_image", small_gpu)
    np.testing.assert_allclose(encoder.encode_frames(frames(11)), expected, atol=1e-5)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]


def test_bf16_stays_close_to_float32(tmp_path):
    name, _ = write_model(tmp_path, CONFIG)
    full, half = (load_encoder(name, device="cpu", precision=precision) for precision in ("fp32", "bf16"))
    assert cosine(full.encode_frames(frames(4)), half.encode_frames(frames(4))) > 0.999
    assert cosine(full.encode_text(TEXTS)[0], half.encode_text(TEXTS)[0]) > 0.999


def test_no_frames_and_no_texts_give_empty_vectors(tmp_path):
    encoder = load_encoder(write_model(tmp_path, CONFIG)[0], device="cpu")
    assert encoder.encode_frames(frames(0)).shape == (0, 24)
    pooled, states = encoder.encode_text([])
    assert pooled.shape == (0, 24)
    assert states == []


@pytest.mark.parametrize("wrong", [frames(2, size=33), frames(2).astype(np.float32), frames(2)[0]])
def test_frames_of_another_size_or_type_are_refused(tmp_path, wrong):
    encoder = load_encoder(write_model(tmp_path, CONFIG)[0], device="cpu")
    with pytest.raises(ValueError, match=r"takes \(F, 3, 32, 32\) torch.uint8"):
        encoder.encode_frames(wrong)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_describe_agrees_with_the_loaded_encoder(tmp_path, suffix):
    name, _ = write_model(tmp_path, CONFIG, suffix)
    described = describe_encoder(name)
    assert described == load_encoder(name, device="cpu").spec
    assert (described.image_size, described.embed_dim, described.token_dim) == ((32, 32), 24, 40)
    assert (described.resize_mode, described.interpolation, described.context_length) == ("shortest", "bicubic", 16)


def test_a_registry_model_with_a_local_checkpoint_gets_the_registry_config(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    spec = describe_encoder(f"ViT-S-32-alt:{tmp_path}/w.safetensors")
    assert (spec.image_size, spec.embed_dim, spec.token_dim, spec.context_length) == ((224, 224), 256, 256, 77)


def test_other_weights_are_another_spec(tmp_path):
    name, _ = write_model(tmp_path, CONFIG)
    before = describe_encoder(name)
    state = {key: value.clone() for key, value in write_model(tmp_path, CONFIG)[1].state_dict().items()}
    state["logit_scale"] += 1
    save_file(state, tmp_path / "weights.safetensors")
    assert describe_encoder(name).weights_sha256 != before.weights_sha256


def check_refused(name, *parts):
    """Both entry points refuse a name with the same single line."""
    for entry in (describe_encoder, load_encoder):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts below are the match
            entry(name)
        message = str(caught.value)
        assert "\n" not in message
        assert all(part in message for part in parts), message


def test_unknown_names_list_close_matches(tmp_path):
    check_refused("ViT-B32:laion2b_s34b_b79k", "MODEL:PRETRAINED", "ViT-B-32")
    check_refused("ViT-B-32", "MODEL:PRETRAINED")
    check_refused("ViT-B-32:laion2b_s34b_b79", "close matches: laion2b_s34b_b79k", "openai")
    check_refused(f"ViT-B-32:{tmp_path}/none.safetensors", "there is no file")
    check_refused(f"{tmp_path}/none.json:{tmp_path}/none.safetensors", "there is no file")
    check_refused("ViT-B-32:openai", "ViT-B-32-quickgelu:openai")


def test_checkpoints_that_do_not_fit_are_refused_in_one_line(tmp_path):
    write_model(tmp_path, CONFIG)
    weights = tmp_path / "weights.safetensors"
    check_refused(f"ViT-S-32-alt:{weights}", "does not fit", str(weights))
    for suffix in (".safetensors", ".pt"):
        (tmp_path / f"broken{suffix}").write_bytes(b"no tensors here")
        check_refused(f"{tmp_path}/model.json:{tmp_path}/broken{suffix}", "does not fit")
    (tmp_path / "empty.pt").touch()
    check_refused(f"{tmp_path}/model.json:{tmp_path}/empty.pt", "does not fit")
    torch.save({"state_dict": {}}, tmp_path / "nothing.pt")
    check_refused(f"{tmp_path}/model.json:{tmp_path}/nothing.pt", "does not fit")


class Payload:
    """A pickle that would leave a file behind if it ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_never_runs_code(tmp_path):
    write_model(tmp_path, CONFIG)
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    check_refused(f"{tmp_path}/model.json:{tmp_path}/evil.pt", "does not fit")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"embed_dim": 3}', '{"embed_dim": 1, "vision_cfg": {}, "text_cfg": {"x": 1}}']
)
def test_files_that_are_no_model_config_are_refused(tmp_path, content):
    write_model(tmp_path, CONFIG)
    (tmp_path / "model.json").write_text(content)
    check_refused(
        f"{tmp_path}/model.json:{tmp_path}/weights.safetensors", "model.json" if len(content) < 20 else "config"
    )


def test_weights_that_cannot_be_downloaded_are_one_clear_line(tmp_path):
    script = """
from prvr_ray.encoders import describe_encoder
try:
    describe_encoder("ViT-B-32:laion2b_s34b_b79k")
except ValueError as error:
    print(error)
"""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "could not be downloaded" in done.stdout
    assert "ViT-B-32:/path/to/checkpoint" in done.stdout


def test_a_local_checkpoint_of_a_known_model_has_that_models_preprocessing(tmp_path):
    """mean, std and resize_mode as SigLIP's paper and open_clip's registry give them."""
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    preprocess = resolve_encoder(f"ViT-B-16-SigLIP:{weights}").preprocess
    wanted = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash")
    assert (preprocess["mean"], preprocess["std"], preprocess["resize_mode"]) == wanted
    with pytest.raises(
        ValueError, match=r"released weights of ViT-L-14 differ in their preprocessing; .*preprocess_cfg"
    ):
        resolve_encoder(f"ViT-L-14:{weights}")  # some of them were trained with CLIP's mean, some with a half


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_spec_says_the_trained_logit_scale_and_whether_the_text_tower_is_causal(tmp_path, suffix):
    name, model = write_model(tmp_path, CONFIG, suffix)
    spec = describe_encoder(name)
    assert spec.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    assert spec.causal_text
    (tmp_path / "free").mkdir()
    free = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}, "custom_text": True}
    assert not describe_encoder(write_model(tmp_path / "free", free, suffix)[0]).causal_text


def wrapped(kind, state):
    if kind == "numpy":
        return {"state_dict": state, "best": np.float64(0.5), "epoch": np.int64(3), "lr": np.float32(0.1)}
    if kind == "compiled":
        return {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}, "epoch": 3}
    if kind == "lightning":
        return {"state_dict": {f"model.{name}": value for name, value in state.items()}, "hyper_parameters": {"lr": 1}}
    return {f"_orig_mod.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("kind", ["numpy", "compiled", "lightning", "bare"])
def test_checkpoints_as_trainers_save_them_give_the_same_vectors(tmp_path, kind):
    name, model = write_model(tmp_path, CONFIG)
    torch.save(wrapped(kind, model.state_dict()), tmp_path / "saved.pt")
    saved = f"{tmp_path}/model.json:{tmp_path}/saved.pt"
    expected, found = load_encoder(name, device="cpu"), load_encoder(saved, device="cpu")
    np.testing.assert_array_equal(found.encode_frames(frames(2)), expected.encode_frames(frames(2)))
    assert describe_encoder(saved) == found.spec
    assert found.logit_scale == expected.logit_scale


def test_a_checkpoint_that_cannot_be_read_safely_comes_with_the_command_that_saves_it_again(tmp_path):
    _, model = write_model(tmp_path, CONFIG)
    archive = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(archive, tmp_path / "script.pt")
    check_refused(f"{tmp_path}/model.json:{tmp_path}/script.pt", "a TorchScript archive", "torch.jit.load")
    torch.save({"state_dict": model.state_dict(), "args": Payload(tmp_path / "ran")}, tmp_path / "code.pt")
    check_refused(f"{tmp_path}/model.json:{tmp_path}/code.pt", "which only Python code could load", "python -c")
    assert not (tmp_path / "ran").exists()


def test_another_library_s_error_is_whole_words_without_colours():
    error = RuntimeError("\x1b[31mred\x1b[0m " + "word " * 100 + "\nsecond line")
    assert shorten(error) == "red " + "word " * 39 + "..."


def test_weights_that_may_not_be_read_say_so(tmp_path, monkeypatch):
    name, _ = write_model(tmp_path, CONFIG)

    open_path = Path.open

    def refuse(path, *arguments, **options):
        if path.name == "weights.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read any file
    with pytest.raises(ValueError, match=r"no permission to read .*weights\.safetensors"):
        load_encoder(name, device="cpu")


def write_word_tokenizer(folder):
    """A tokenizer of ten words, as transformers saves one."""
    words = ["[PAD]", "[EOS]", "[UNK]", "a", "red", "circle", "blue", "square", "moves", "left"]
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing("$A [EOS]", special_tokens=[("[EOS]", 1)])
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def test_a_model_with_a_tokenizer_of_transformers_encodes_text_as_open_clip_does(tmp_path):
    pytest.importorskip("transformers")
    write_word_tokenizer(tmp_path / "words")
    text = {**CUSTOM_TEXT["text_cfg"], "vocab_size": 16, "hf_tokenizer_name": f"{tmp_path}/words", "pool_type": "last"}
    name, model = write_model(tmp_path, CONFIG | {"custom_text": True, "text_cfg": text})
    pooled, states = load_encoder(name, device="cpu").encode_text(["a red circle", "blue square"])
    tokens = torch.tensor([[3, 4, 5, 1] + [0] * 12, [6, 7, 1] + [0] * 13])
    np.testing.assert_allclose(pooled, model.encode_text(tokens).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert [len(state) for state in states] == [4, 3]


def test_a_tokenizer_whose_package_is_missing_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    text = {**CONFIG["text_cfg"], "hf_tokenizer_name": f"{tmp_path}/words"}
    config = {**CONFIG, "custom_text": True, "text_cfg": text}
    (tmp_path / "model.json").write_text(json.dumps(config))
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ValueError, match=r"the package transformers; pip install 'prvr_ray\[transformers\]'"):
        describe_encoder(f"{tmp_path}/model.json:{tmp_path}/w.safetensors")


def test_frames_leave_for_the_device_as_bytes():
    frames_F3HW = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    sent = send_frames(frames_F3HW, torch.device("meta"))
    assert (sent.device.type, sent.nbytes / len(sent)) == ("meta", 150_528)
