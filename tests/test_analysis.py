"""Costs from shapes: the figures of the released models, and that nothing is computed."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from segjax import analysis, cli, config, systems
from segjax.errors import SegjaxError

CONFIGS = Path(__file__).parents[1] / "configs" / "regproxy"

# name: parameters, all multiply-adds, mmcv's count (of one window), windows; as printed.
RELEASED = {
    "ade20k_ti16": (5_779_494, "10.55", "3.887", 4),
    "ade20k_s16": (22_249_254, "32.04", "15.10", 4),
    "ade20k_b16": (87_261_990, "108.0", "59.59", 4),
    "ade20k_l16": (306_102_566, "612.9", "325.93", 4),
    "ade20k_r26_s32": (36_392_038, "18.57", "3.94", 4),
    "ade20k_r50_l32": (329_692_518, "163.8", "82.24", 4),
    "cityscapes_ti16": (5_999_971, "37.2", "8.684", 8),
    "cityscapes_s16": (22_690_339, "99.1", "33.85", 8),
    "cityscapes_b16": (88_144_291, "296.9", "133.70", 8),
    "cityscapes_l16": (306_689_187, "961.9", "468.94", 8),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_cost_what_is_known(name):
    """Parameters exactly, multiply-adds to the printed digit (10^9)."""
    parameters, macs, mmcv, windows = RELEASED[name]
    cost = analysis.of_config(config.load(CONFIGS / f"{name}.py"))
    assert cost.parameters == parameters
    assert cost.parameter_bytes == 4 * parameters
    for count, printed in ((cost.macs, macs), (cost.macs_mmcv, mmcv)):
        digits = len(printed.partition(".")[2])
        assert f"{count / 1e9:.{digits}f}" == printed
    assert cost.windows == windows


def test_nothing_is_allocated():
    """ViT-L/16 has 1.2 GB of parameters."""
    jax.random.key(0)  # start the backend
    arrays = len(jax.live_arrays())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    analysis.of_config(config.load(CONFIGS / "ade20k_l16.py"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(jax.live_arrays()) == arrays
    assert grown < 400 * 1024


def test_macs_of_convolutions_products_loops_and_branches():
    x = jnp.zeros((2, 8, 8, 4))
    kernel = jnp.zeros((3, 3, 2, 6))
    dimensions = ("NHWC", "HWIO", "NHWC")

    def grouped(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=dimensions, feature_group_count=2
        )

    assert analysis.macs(grouped, x) == 2 * 4 * 4 * 6 * 9 * 2
    a = jnp.zeros((5, 7))
    assert analysis.macs(lambda a: a @ a.T, a) == 5 * 7 * 5
    square = jnp.zeros((5, 5))
    looped = lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, length=3)[0]  # noqa: E731
    assert analysis.macs(looped, square) == 3 * 125
    branched = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)  # noqa: E731
    assert analysis.macs(branched, square) == 250
    assert analysis.macs(lambda a: (a @ a, a + 1)[1], square) == 0  # nothing depends on it
    assert analysis.macs(jax.jit(jax.checkpoint(lambda a: a @ a)), square) == 125


def test_less_is_kept_for_the_backward_pass_with_remat():
    model = dict(system="regproxy", classes=12, image_size=(64, 64))
    model["backbone"] = dict(width=64, depth=4, heads=2, patch=8)
    model["early_block"] = 0
    plain, remat = (
        analysis.activation_bytes(systems.build(model | {"remat": flag}), (64, 64))
        for flag in (False, True)
    )
    assert 0 < remat < 0.5 * plain


def test_info_prints_json(capsys):
    path = CONFIGS / "cityscapes_ti16.py"
    assert cli.main(["info", f"--config={path}", "--config.seed=9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 5_999_971
    assert round(report["macs_mmcv_total"] / 1e9, 1) == 69.5
    assert report["macs_total"] == 8 * report["macs"]
    assert report["config"]["seed"] == 9


def test_info_prints_text(capsys):
    assert cli.main(["info", f"--config={CONFIGS / 'shapescapes_tiny.py'}"]) == 0
    text = capsys.readouterr().out
    assert "parameters" in text and "ESTIMATE" in text
    assert "early_block: " in text and "learning_rate: " in text


def test_a_linear_head_is_counted_too():
    """Table 3's baseline: 3.818 G and 5.71 M."""
    settings = config.load(CONFIGS / "ade20k_ti16.py")
    model = settings.model.to_dict()
    for field in ("early_block", "region"):
        model.pop(field, None)
    settings.model = config.ConfigDict(model | {"system": "linear_vit"})
    cost = analysis.of_config(settings)
    assert round(cost.parameters / 1e6, 2) == 5.71
    assert round(cost.macs_mmcv / 1e9, 3) == 3.818


# Of RegProxy's Table 3: parameters with auxiliary heads (10^6), mmcv's count (10^9), its input.
COMPARED = {
    "setr/ade20k_naive": ("305.56", "325.15", 640),
    "setr/ade20k_mla": ("309.57", "333.82", 640),
    "setr/ade20k_pup": ("317.29", "422.69", 640),
    "upernet/ade20k_vit_b16": ("144.18", "395.13", 512),
}


@pytest.mark.parametrize("name", COMPARED)
def test_the_decoders_of_the_comparison_cost_what_is_known(name):
    """Classifiers that we apply before an enlargement count where the official ones stand."""
    parameters, mmcv, side = COMPARED[name]
    settings = config.load(CONFIGS.parent / f"{name}.py")
    cost = analysis.of_system(systems.build(settings.model), (side, side))
    assert f"{cost.parameters / 1e6:.2f}" == parameters
    assert f"{cost.macs_mmcv / 1e9:.2f}" == mmcv


@pytest.mark.parametrize("name, printed", [("ti16", "4.87"), ("s16", "19.14"), ("l16", "369.48")])
def test_segmenters_own_attention_is_seen(name, printed):
    """The encoder counts as mmseg's, whose attention the counter doesn't know; the decoder's is of
    linear layers."""
    settings = config.load(CONFIGS.parent / f"segmenter/ade20k_{name}_mask.py")
    side = settings.eval.crop[0]
    cost = analysis.of_system(systems.build(settings.model), (side, side))
    assert f"{cost.macs_mmcv / 1e9:.2f}" == printed


# Of the official models, by fvcore on a zero image (10^9): the whole model with semantic inference.
BY_FVCORE = {
    "mask2former/ade20k_semantic_r50": ("70.75", 512),
    "mask2former/ade20k_semantic_r101": ("90.20", 512),
    "mask2former/ade20k_semantic_swin_t": ("73.64", 512),
    "mask2former/ade20k_semantic_swin_s": ("97.41", 512),
    "mask2former/ade20k_semantic_swin_b": ("223.39", 640),
    "mask2former/ade20k_semantic_swin_l": ("402.66", 640),
    "maskformer/ade20k_semantic_r50": ("55.13", 512),
    "maskformer/ade20k_semantic_r101": ("74.58", 512),
    "maskformer/ade20k_semantic_r101c": ("81.68", 512),
    "maskformer/ade20k_semantic_swin_t": ("57.26", 512),
    "maskformer/ade20k_semantic_swin_s": ("81.03", 512),
    "maskformer/ade20k_semantic_swin_b": ("198.32", 640),
    "maskformer/ade20k_semantic_swin_l": ("378.07", 640),
}
QUICK = ("r50", "swin_t")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith(QUICK) else pytest.mark.slow)
        for name in BY_FVCORE
    ],
)
def test_fvcores_count_to_the_printed_digit(name):
    printed, side = BY_FVCORE[name]
    settings = config.load(CONFIGS.parent / f"{name}.py")
    flops = analysis.fvcore_flops(systems.build(settings.model), (side, side))
    assert f"{flops.total / 1e9:.2f}" == printed
    # MaskFormer's tables leave out five of the six products of queries and mask features.
    auxiliary = 5 * 100 * 256 * (side // 4) ** 2 if name.startswith("maskformer") else 0
    assert flops.total - flops.published == auxiliary


def test_fvcore_counts_norms_sampling_and_resizes():
    """Mask2Former R50 at 512 by hand: the frozen norms of R50; 3 + 2 group norms and 12 layer norms
    in the pixel decoder, 27 + 10 layer norms in the decoder."""
    settings = config.load(CONFIGS.parent / "mask2former/ade20k_semantic_r50.py")
    flops = analysis.fvcore_flops(systems.build(settings.model), (512, 512))
    tokens, queries, fine = 16**2 + 32**2 + 64**2, 100, 128**2
    # Stem; then of every stage, with its inner width and side: three norms of each block, the
    # shortcut of the first, and the first norm of the first, which comes before the stride.
    numbers = 256**2 * 64
    for blocks, inner, side in ((3, 64, 128), (4, 128, 64), (6, 256, 32), (3, 512, 16)):
        numbers += side**2 * inner * (blocks * (1 + 1 + 4) + 4)
        numbers += inner * ((2 * side) ** 2 - side**2) * (inner != 64)
    groups = tokens * 256 + 2 * fine * 256
    layers = 12 * tokens * 256 + (27 + 10) * queries * 256
    assert flops.norms == 2 * numbers + 5 * (groups + layers)
    assert flops.sampling == 6 * 8 * 3 * 4 * tokens * 32 * 4
    assert flops.resizes == 4 * (100 * 512**2 + 150 * 512**2 + fine * 256 + 3 * queries * tokens)


def test_fvcore_does_not_see_the_logits_of_masked_attention():
    """Nor the sums of its weights, which are a product in our form alone."""
    settings = config.load(CONFIGS.parent / "mask2former/shapescapes_tiny.py")
    system = systems.build(settings.model)
    macs = analysis.of_system(system, (128, 128)).macs
    looks = 30 * (4**2 + 8**2 + 16**2)  # of 30 queries in three layers
    assert macs - analysis.fvcore_flops(system, (128, 128)).products == looks * (64 + 8)
    settings.model.masked = False
    system = systems.build(settings.model)
    macs = analysis.of_system(system, (128, 128)).macs
    # Without it the tracer's rule still holds: what the last answer needs, and nothing else.
    assert macs == analysis.fvcore_flops(system, (128, 128)).products


def test_fvcores_count_of_another_system_is_refused():
    system = systems.build(config.load(CONFIGS / "shapescapes_tiny.py").model)
    with pytest.raises(SegjaxError, match="MaskFormer and Mask2Former only, not of regproxy"):
        analysis.fvcore_flops(system, (128, 128))
