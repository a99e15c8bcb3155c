"""Every shipped config resolves, builds without allocating, and has its parameter count."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from segjax import config as configs
from segjax import systems
from segjax.data import datasets

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
    "deeplab_v3plus/cityscapes_r101": 62_582_006,
    "deeplab_v3plus/shapescapes_tiny": 958_912,
    "ocrnet/cityscapes_hrnet_w48": 70_371_446,
    "hssn/cityscapes_deeplab_v3plus_r101": 67_310_589,
    "hssn/cityscapes_maskformer_swin_s": 63_832_037,
    "hssn/cityscapes_ocrnet_hrnet_w48": 71_085_220,
    "hssn/lip_deeplab_v3plus_r101": 67_310_333,
    "hssn/mapillary_deeplab_v3plus_r101": 67_400_160,
    "hssn/person_part_deeplab_v3plus_r101": 67_300_323,
    "hssn/shapescapes_tiny": 1_354_440,
    "cascade_psp/big_r50": 67_683_433,
    "cascade_psp/package": 67_683_433,
    "cascade_psp/pascal_relabelled": 67_683_433,
    "cascade_psp/shapescapes_tiny": 549_281,
    "crm/big_r50": 9_300_961,
    "crm/pascal_relabelled": 9_300_961,
    "crm/shapescapes_tiny": 297_985,
    "segmenter/ade20k_ti16_linear": 5_712_342,
    "segmenter/ade20k_ti16_mask": 6_713_388,
    "segmenter/ade20k_s16_mask": 26_033_964,
    "segmenter/ade20k_b16_mask": 102_497_580,
    "segmenter/ade20k_l16_mask": 333_234_476,
    "segmenter/cityscapes_b16_mask": 103_379_750,
    "segmenter/cityscapes_l16_mask": 333_820_966,
    "segmenter/shapescapes_tiny": 1_347_864,
    "mask2former/shapescapes_tiny": 2_657_579,
    "mask2former/coco_panoptic_r50": 43_983_878,
    "mask2former/coco_panoptic_r101": 62_923_782,
    "mask2former/coco_panoptic_swin_t": 47_435_264,
    "mask2former/coco_panoptic_swin_s": 68_753_168,
    "mask2former/coco_panoptic_swin_b": 106_917_822,
    "mask2former/coco_panoptic_swin_l": 215_535_610,
    "mask2former/coco_instance_r50": 43_970_257,
    "mask2former/ade20k_semantic_r50": 43_988_247,
    "mask2former/ade20k_semantic_r101": 63_033_495,
    "mask2former/ade20k_semantic_swin_t": 47_439_633,
    "mask2former/ade20k_semantic_swin_l": 215_488_779,
    "mask2former/cityscapes_panoptic_r50": 44_007_700,
    "maskformer/coco_panoptic_r50": 45_012_038,
    "maskformer/coco_panoptic_r101": 63_951_942,
    "maskformer/coco_panoptic_swin_t": 41_752_640,
    "maskformer/coco_panoptic_swin_l": 211_571_258,
    "maskformer/ade20k_semantic_r50": 41_254_743,
    "maskformer/ade20k_semantic_r101c": 60_318_039,
    "maskformer/ade20k_semantic_swin_s": 63_074_913,
    "maskformer/ade20k_panoptic_r50": 45_016_407,
    "maskformer/cityscapes_semantic_r101": 60_160_980,
}

# Rows of the two zoos whose counts nobody published: a count above of the same network with other
# heads stands for them.
COUNTED_BY_OTHERS = ("mask2former", "maskformer")


def config_names():
    paths = sorted((ROOT / "configs").glob("*/*.py"))
    return [f"{p.parent.name}/{p.stem}" for p in paths if p.parent.name != "common"]


def test_no_config_is_left_out():
    left_out = set(config_names()) - set(PARAMETERS)
    assert not set(PARAMETERS) - set(config_names())
    assert all(name.split("/")[0] in COUNTED_BY_OTHERS for name in left_out)


@pytest.mark.parametrize("name", sorted(set(config_names()) - set(PARAMETERS)))
def test_config_of_the_zoos_resolves(name):
    config = configs.load(str(ROOT / "configs" / f"{name}.py"))
    assert systems.of_config(config).classes == config.model.classes
    dataset = config.data.dataset.to_dict()
    assert datasets.label_space(dataset).classes == config.model.classes


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_config_builds_with_its_parameter_count(name):
    config = configs.load(str(ROOT / "configs" / f"{name}.py"))
    system = systems.of_config(config)
    side = (64, 64) if name.split("/")[0] in COUNTED_BY_OTHERS else config.augment.crop
    batch = {"image": jax.ShapeDtypeStruct((1, *side, 3), jnp.uint8)}
    variables = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.parametrize("name", config_names())
def test_config_opens_with_its_command(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"--config=configs/{name}.py" in text.split('"""')[1]
