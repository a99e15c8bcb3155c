"""Configs: merging, overriding, and what a mistake says."""

import json
import textwrap

import pytest
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.errors import SegjaxError


@pytest.fixture
def file(tmp_path):
    """Writes a config file below configs/ and returns its path."""

    def write(body, name="mine"):
        path = tmp_path / "configs" / "group" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        header = "from ml_collections import ConfigDict\n"
        path.write_text(header + textwrap.dedent(body))
        return path

    return write


BODY = """
def get_config():
    config = ConfigDict()
    backbone = dict(width=8, depth=1, heads=1, patch=8)
    config.model = dict(system="regproxy", classes=3, backbone=backbone)
    config.steps = 7
    config.augment = dict(crop=(64, 64))
    return config
"""


def test_a_file_is_laid_over_the_defaults(file):
    config = configs.load(file(BODY))
    expected = configs.defaults()
    expected.model = dict(
        system="regproxy", classes=3, backbone=dict(width=8, depth=1, heads=1, patch=8)
    )
    expected.steps = 7
    expected.augment.crop = (64, 64)
    assert config.to_dict() == expected.to_dict()


def test_files_beside_are_found(file):
    file("def crop():\n    return (32, 48)\n", name="../parts")
    body = """
    from configs import parts
    def get_config():
        return ConfigDict(dict(augment=dict(crop=parts.crop())))
    """
    assert configs.load(file(body)).augment.crop == (32, 48)


def test_two_checkouts_do_not_mix(file, tmp_path):
    body = """
    from configs import parts
    def get_config():
        return ConfigDict(dict(seed=parts.SEED))
    """
    other = tmp_path / "other" / "configs" / "b.py"
    other.parent.mkdir(parents=True)
    other.write_text("from ml_collections import ConfigDict\n" + textwrap.dedent(body))
    (other.parent / "parts.py").write_text("SEED = 2\n")
    file("SEED = 1\n", name="../parts")
    assert [configs.load(path).seed for path in (file(body), other, file(body))] == [1, 2, 1]


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("--config.steps=5", "steps", 5),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.eval.flip=True", "eval.flip", True),
        ("--config.eval.flip", "eval.flip", True),
        ("--config.augment.crop=(32, 48)", "augment.crop", (32, 48)),
        ("--config.eval.ratios=(0.5, 1.0, 1.5)", "eval.ratios", (0.5, 1.0, 1.5)),
        ("--config.mesh.axes=(('fsdp', -1),)", "mesh.axes", (("fsdp", -1),)),
        ("--config.model.dtype=bfloat16", "model.dtype", "bfloat16"),
        ("--config.model.backbone.depth=2", "model.backbone.depth", 2),
        ("--config.model.backbone=vit_s16", "model.backbone", "vit_s16"),
        ("--config.data.dataset.train=9", "data.dataset.train", 9),
        ("--config.data.dataset.size=(64, 64)", "data.dataset.size", (64, 64)),
        ("--config.init.checkpoint=a/b=c.pth", "init.checkpoint", "a/b=c.pth"),
    ],
)  # fmt: skip
def test_overrides_have_the_type_of_the_field(file, override, field, value):
    plain, config = configs.load(file(BODY)), configs.load(file(BODY), [override])
    node = config
    for name in field.split("."):
        node = node[name]
    assert node == value and type(node) is type(value)
    changed = [line.partition(":")[0] for line in configs.diff(plain, config)]
    assert all(line.startswith(f"config.{field}") or "backbone" in line for line in changed)
    assert changed


def test_a_value_may_stand_apart(file):
    assert configs.load(file(BODY), ["--config.steps", "5"]).steps == 5


def test_another_dataset_takes_its_own_options(file):
    overrides = ["--config.data.dataset.name=folder", "--config.data.dataset.root=/photos"]
    assert configs.load(file(BODY), overrides).data.dataset.to_dict() == {
        "name": "folder",
        "root": "/photos",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.optimizer.wieght_decay=1",
            "config.optimizer.wieght_decay is not a field; did you mean"
            " config.optimizer.weight_decay?",
        ),
        (
            "--config.learning_rate=1",
            "config.learning_rate is not a field; did you mean config.optimizer.learning_rate?",
        ),
        (
            "--config.model.early_blok=1",
            "config.model.early_blok is not a field; did you mean config.model.early_block?",
        ),
        ("--config.steps=many", "config.steps: 'many' is not an integer."),
        ("--config.steps=-1", "config.steps is -1; it must be 0 or more."),
        ("--config.augment.crop=5", "config.augment.crop: (5,) is not a pair of numbers."),
        (
            "--config.eval.mode=tiles",
            "config.eval.mode: there is no 'tiles'; take one of slide, whole.",
        ),
        (
            "--config.accumulate=3",
            "config.accumulate: 3 slices do not divide config.data.batch, 16.",
        ),
        ("--steps=3", "'--steps=3' is not an option; fields are set as --config.field=value."),
    ],
)
def test_a_wrong_override_is_one_sentence(file, override, message):
    with pytest.raises(SegjaxError) as error:
        configs.load(file(BODY), [override])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(steps="5"), "config.steps: '5' is not an integer."),
        (dict(eval=dict(flip=1)), "config.eval.flip: 1 is not True or False."),
        (dict(optimizer=3), "config.optimizer: 3 is not a dict of fields."),
        (
            dict(eval=dict(widnow=1)),
            "config.eval.widnow is not a field; did you mean config.eval.pad_windows?",
        ),
        (
            dict(model=dict(system="regproxy", classes=2, regoin=(4, 4))),
            "config.model.regoin is not a field; did you mean config.model.region?",
        ),
        (
            dict(data=dict(dataset=dict(name="shapescapes", trian=3))),
            "config.data.dataset.trian is not a field; did you mean config.data.dataset.train?",
        ),
        (
            dict(augment=dict(flip_pairs=(14, 15))),
            "config.augment.flip_pairs: 14 is not a pair of class numbers; write"
            ' "((14, 15), (16, 17))".',
        ),
        (
            dict(augment=dict(flip_pairs=((1, 2),), recipe="large_scale_jitter")),
            "config.augment.flip_pairs: the recipe large_scale_jitter exchanges no classes; take"
            " scale_crop.",
        ),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, message):
    with pytest.raises(SegjaxError) as error:
        configs.load(ConfigDict(fields))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import nothing_such\n", "ModuleNotFoundError: No module named 'nothing_such' (line 2)."),
        ("def get_config():\n    return undefined\n", "'undefined' is not defined (line 3)."),
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\n", "it has no get_config()"),
        ("def get_config():\n    return 3\n", "it gives a int, not a ConfigDict."),
    ],
)
def test_a_file_that_fails_says_where(file, body, message):
    with pytest.raises(SegjaxError) as error:
        configs.load(file(body))
    assert message in str(error.value) and "mine.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_json_keeps_every_value_and_tuples(file, tmp_path):
    config = configs.load(file(BODY), ["--config.mesh.axes=(('data', 2), ('fsdp', -1))"])
    configs.save(config, tmp_path / "config.json")
    read = configs.read(tmp_path / "config.json")
    assert read.to_dict() == config.to_dict() and not configs.diff(read, config)
    assert [path.name for path in tmp_path.iterdir() if "json" in path.name] == ["config.json"]


def test_json_of_an_older_version_gets_new_fields(tmp_path):
    content = configs.load(ConfigDict(dict(steps=3))).to_dict()
    del content["eval"]["pad_windows"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert configs.read(tmp_path / "config.json").eval.pad_windows is True


def test_broken_json_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SegjaxError, match=r"config\.json: this config is not readable as JSON"):
        configs.read(tmp_path / "config.json")


def test_diff_names_each_field_that_differs():
    a = configs.load(ConfigDict(dict(seed=1)))
    b = configs.load(ConfigDict(dict(data=dict(dataset=dict(name="shapescapes", train=4)))))
    assert configs.diff(a, b) == [
        "config.seed: 1 -> 0",
        "config.data.dataset.train: (absent) -> 4",
    ]


def test_overriding_does_not_read_the_command_line(file, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "--config.steps=99"])
    assert configs.load(file(BODY), ["--config.seed=1"]).steps == 7
