"""Every shipped config resolves, builds without allocating, and has its parameter count."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from segjax import config as configs
from segjax import systems

ROOT = pathlib.Path(__file__).parents[1]

# Exact counts of the released models; the small ones are ours.
PARAMETERS = {
    "regproxy/ade20k_ti16": 5_779_494,
    "regproxy/ade20k_s16": 22_249_254,
    "regproxy/ade20k_b16": 87_261_990,
    "regproxy/ade20k_l16": 306_102_566,
    "regproxy/ade20k_r26_s32": 36_392_038,
    "regproxy/ade20k_r50_l32": 329_692_518,
    "regproxy/cityscapes_ti16": 5_999_971,
    "regproxy/cityscapes_s16": 22_690_339,
    "regproxy/cityscapes_b16": 88_144_291,
    "regproxy/cityscapes_l16": 306_689_187,
    "regproxy/folder": 22_192_274,
    "regproxy/shapescapes_tiny": 938_396,
    "linear_vit/shapescapes_tiny": 901_772,
    "linear_vit/ade20k_ti16": 5_712_342,
    "linear_vit/ade20k_s16": 22_041_366,
    "linear_vit/ade20k_b16": 86_551_446,
    "linear_vit/ade20k_l16": 304_893_078,
    "linear_vit/cityscapes_ti16": 5_932_819,
    "linear_vit/cityscapes_s16": 22_482_451,
    "linear_vit/cityscapes_b16": 87_433_747,
    "linear_vit/cityscapes_l16": 305_479_699,
    "superpixel_vit/ade20k_ti16": 5_712_342,
    "superpixel_vit/ade20k_s16": 22_041_366,
    "superpixel_vit/ade20k_b16": 86_551_446,
    "superpixel_vit/cityscapes_ti16": 5_932_819,
    "superpixel_vit/cityscapes_s16": 22_482_451,
    "superpixel_vit/cityscapes_b16": 87_433_747,
    "superpixel_vit/shapescapes_slic_tiny": 901_772,
    "superpixel_vit/shapescapes_square_tiny": 901_772,
    "setr/ade20k_naive": 305_558_616,
    "setr/ade20k_pup": 317_291_096,
    "setr/ade20k_mla": 309_570_286,
    "setr/shapescapes_naive_tiny": 922_480,
    "setr/shapescapes_pup_tiny": 989_680,
    "setr/shapescapes_mla_tiny": 985_020,
    "upernet/ade20k_vit_b16": 144_175_148,
    "upernet/shapescapes_tiny": 1_082_328,
    "segmenter/ade20k_ti16_linear": 5_712_342,
    "segmenter/ade20k_ti16_mask": 6_713_388,
    "segmenter/ade20k_s16_mask": 26_033_964,
    "segmenter/ade20k_b16_mask": 102_497_580,
    "segmenter/ade20k_l16_mask": 333_234_476,
    "segmenter/cityscapes_b16_mask": 103_379_750,
    "segmenter/cityscapes_l16_mask": 333_820_966,
    "segmenter/shapescapes_tiny": 1_347_864,
}


def config_names():
    paths = sorted((ROOT / "configs").glob("*/*.py"))
    return [f"{p.parent.name}/{p.stem}" for p in paths if p.parent.name != "common"]


def test_no_config_is_left_out():
    assert set(config_names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", config_names())
def test_config_builds_with_its_parameter_count(name):
    config = configs.load(str(ROOT / "configs" / f"{name}.py"))
    system = systems.build(config.model)
    batch = {"image": jax.ShapeDtypeStruct((1, *config.augment.crop, 3), jnp.uint8)}
    variables = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.parametrize("name", config_names())
def test_config_opens_with_its_command(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"--config=configs/{name}.py" in text.split('"""')[1]
