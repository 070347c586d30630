"""Settings: checked once, with messages that name the setting and what is allowed; the paper's values in presets."""

import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from prvr_ray.config import PRESETS, SECTIONS, Config, TrainSettings, resolve


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trains": {}}, r"unknown section 'trains'; one of ingest, student, train"),
        ({"train": 3}, r"section 'train' must hold `name: value` pairs, not 3"),
        ({"train": {"learning_rate": 1}}, r"unknown setting train\.learning_rate; train has .*num_epochs, .*lr, "),
        ({"train": {"lr": 0}}, r"train\.lr=0: Input should be greater than 0"),
        ({"train": {"lr": float("nan")}}, r"train\.lr=nan"),
        ({"train": {"dropout": 1.5}}, r"train\.dropout=1\.5: Input should be less than"),
        ({"train": {"num_epochs": "many"}}, r"train\.num_epochs='many': Input should be a valid integer"),
        ({"train": {"lr": {"a": 1}}}, r"train\.lr=\{'a': 1\}: Input should be a valid number"),
        ({"score": {"top_k": 0}}, r"score\.top_k=0: Input should be greater than or equal to 1"),
        ({"score": {"mode": "quick"}}, r"score\.mode='quick': Input should be 'auto', 'exact' or 'fast'"),
        ({"student": {"branches": []}}, r"student\.branches=\[\]"),
        ({"train": {"lr": -1}, "student": {"hidden_dim": 0}}, r"student\.hidden_dim=0: .*; train\.lr=-1"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(values, said):
    with pytest.raises(ValueError, match=said) as raised:
        resolve(values)
    assert "\n" not in str(raised.value)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'msrvtt'; one of tvr, activitynet, charades, demo"):
        resolve({}, "msrvtt")


@pytest.mark.parametrize(
    ("preset", "lr", "margin", "dropout"),
    # The table of METHOD, "Optimiser"
    [("tvr", 3e-4, 0.1, 0.2), ("activitynet", 2.5e-4, 0.2, 0.25), ("charades", 2.4e-4, 0.2, 0.15)],
)
def test_presets_hold_the_papers_settings(preset, lr, margin, dropout):
    config = resolve({}, preset)
    train, student = config.train, config.student
    assert (train.lr, train.margin, train.dropout, train.input_dropout) == (lr, margin, dropout, dropout)
    assert (train.videos_per_batch, train.num_epochs, train.seed, train.patience) == (128, 120, 9527, 11)
    assert (train.warmup, train.weight_decay, train.hard_pool_size) == (0.01, 0.01, 20)
    assert (student.hidden_dim, student.num_heads, student.max_frames, student.max_tokens) == (384, 4, 128, 30)


def test_values_win_over_a_preset_and_a_preset_over_defaults():
    config = resolve({"train": {"margin": 0.7}}, "tvr")
    assert (config.train.margin, config.train.lr) == (0.7, 3e-4)
    assert config.train.num_epochs == TrainSettings().num_epochs


def test_resolving_changes_neither_presets_nor_what_was_given():
    before = yaml.safe_dump(PRESETS)
    values = {"train": {"margin": 0.7}}
    resolve(values, "tvr")
    assert yaml.safe_dump(PRESETS) == before
    assert values == {"train": {"margin": 0.7}}


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_written_config_resolves_to_itself(preset):
    config = resolve({}, preset)
    assert resolve(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_settings_do_not_change_once_they_are_checked():
    with pytest.raises(ValidationError, match="frozen"):
        resolve({}).train.lr = 1.0


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_a_description_and_a_default(section):
    assert SECTIONS[section] is Config.model_fields[section].annotation
    for name, field in SECTIONS[section].model_fields.items():
        assert field.description, name
        assert field.get_default(call_default_factory=True) is not PydanticUndefined, name


def test_settings_are_read_without_heavy_packages():
    probe = (
        "import sys, prvr_ray.config\n"
        "sys.exit(str({'torch', 'ray', 'av', 'open_clip', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr.strip() == "set()"
