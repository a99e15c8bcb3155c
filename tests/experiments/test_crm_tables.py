"""CRM's tables: costs to the last digit, and what is read from workdirs."""

import functools
import json
import math
import re

import numpy as np
import pytest

from experiments.crm import costs, figure7, scenes, table1, table5, table6
from segjax.data import images
from segjax.errors import SegjaxError
from segjax.inference import draw

FOUR = (0.125, 0.25, 0.5, 1.0)


@functools.cache
def shapes(system):
    return costs.shapes_of(f"{system}/big_r50")


def test_parameters_are_those_of_the_files():
    """Without the stage of CRM's that is never used."""
    assert costs.parameters(shapes("crm")) == 9_300_961
    assert costs.parameters(shapes("cascade_psp")) == 67_683_433


def test_parameters_of_the_table_leave_norms_out():
    assert costs.counted_parameters(shapes("crm")) == 9_268_833
    assert costs.counted_parameters(shapes("cascade_psp")) == 67_621_283


def test_an_encoded_pixel_and_a_query_of_crm_cost_what_they_do():
    size = (224, 224)
    pixels = math.prod(size)
    encoded = costs.crm_macs(shapes("crm"), size, (1.0,), 0)
    assert encoded == 299_072 * pixels
    assert costs.crm_macs(shapes("crm"), size, (1.0,), pixels) - encoded == 45_952 * pixels


@pytest.mark.parametrize(
    ("size", "giga"),
    [((1600, 2048), 2042), ((2160, 3840), 5045), ((3600, 5000), 10_780), ((1704, 2560), 2536)],
)
def test_four_turns_of_crm_cost_581_thousand_a_pixel(size, giga):
    """Of images with the padding of 32 on all sides, but for the last, the paper's, without."""
    pad = 0 if size == costs.IMAGE else 64
    padded = tuple(side + pad for side in size)
    macs = costs.crm_macs(shapes("crm"), padded, FOUR, math.prod(padded))
    assert macs / math.prod(padded) == pytest.approx(581_000, rel=2e-3)
    if not pad:
        assert macs / 1e9 == pytest.approx(giga, abs=0.5)


@pytest.mark.parametrize(
    ("side", "giga"), [(224, (213.82, 186.17, 116.13)), (904, (3472.9, 3025.7, 1888.2))]
)
def test_passes_of_cascade_psp_cost_what_they_do(side, giga):
    for passes, expected in zip(((1, 2, 3), (2, 3), (3,)), giga):
        macs = costs.cascade_macs(shapes("cascade_psp"), (side, side), passes)
        assert macs / 1e9 == pytest.approx(expected, abs=0.06 if side > 500 else 0.006)


def test_the_cost_table_has_the_papers_numbers():
    found = costs.figures()
    assert found["CRM"]["macs"] / 1e9 == pytest.approx(2536, abs=0.5)
    # Products alone; with biases and pooling it is the paper's 26518.
    assert found["CascadePSP"]["macs"] / 1e9 == pytest.approx(26510.7, abs=0.1)


def test_the_mean_gains_follow_from_the_rows():
    for method, numbers in table1.PAPER.items():
        gain = table1.gain(numbers)
        assert gain == pytest.approx(table1.PAPERS_GAIN[method], abs=0.0051), method


def test_table_1_shows_what_workdirs_hold(tmp_path, capsys):
    workdir = tmp_path / "crm/big_r50"
    workdir.mkdir(parents=True)
    (workdir / "big_PSPNet.json").write_text(json.dumps({"IoU": 12.345, "mBA": 67.891}))
    assert table1.main([f"--runs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "94.18 / 76.09" in printed
    assert re.search(r"12\.3[45] / 67\.89", printed)


def test_table_1_names_an_unknown_network():
    with pytest.raises(SegjaxError, match=r"--coarse=FCN=.*FCN-8s, DeepLabV3\+"):
        table1.main(["--coarse=FCN=x"])


def test_table_5_shows_the_mean_of_the_twins_turns(tmp_path, capsys):
    row = next(row for row in table6.TWINS if row.name == "both")
    for seed, shift in enumerate((0.0, 1.0)):
        folder = tmp_path / "tiny" / row.workdir.replace("/", "_") / f"seed_{seed}"
        folder.mkdir(parents=True)
        turns = [{"IoU": 90 + turn + shift, "mBA": 60 + turn + shift} for turn in range(4)]
        (folder / "metrics.json").write_text(json.dumps({"turns": turns}))
    assert table5.main(["--tiny", f"--runs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "93.50/63.50" in printed and "94.18/76.09" in printed


def test_uniform_scales_end_at_the_full_size():
    assert figure7.uniform(4) == (0.25, 0.5, 0.75, 1.0)
    assert figure7.uniform(1) == (1.0,)


def test_claims_carry_the_papers_gaps():
    assert [claim.paper for claim in table6.CLAIMS][-1] == "IoU +0.22, mBA +0.54 on BIG"


def test_table_6_counts_every_ablation(tmp_path, capsys):
    """Without the implicit function its first layer lacks 6 x 32 weights; the ensemble has none."""
    assert table6.main([f"--runs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    for name in ("implicit function", "both"):
        assert re.search(rf"{name} .* 9,300,961 .* - ", printed)
    for name in ("neither", "CAM"):
        assert re.search(rf"{name} .* 9,300,769 .* - ", printed)


@pytest.fixture
def scene_folders(tmp_path):
    """Photographs, true and coarse label maps of two scenes, and a folder for refined ones."""
    folders = [tmp_path / name for name in ("images", "truth", "coarse", "refined")]
    for shift, name in enumerate(("a", "b")):
        truth = np.repeat(np.arange(1, 5, dtype=np.uint8), 12)[None].repeat(40, axis=0)
        pixels = np.zeros((*truth.shape, 3), np.uint8)
        maps = truth, np.roll(truth, 3 + shift, axis=1)
        draw.write(images.encode_png(pixels), folders[0] / f"{name}.png")
        for folder, labels in zip(folders[1:], maps):
            draw.write(images.encode_png(labels), folder / f"{name}.png")
    return folders


def test_scenes_are_refined_once_and_scored(scene_folders):
    calls = []

    def refine(image, labels):
        calls.append(image.shape)
        return np.roll(labels, -3, axis=1)  # right for the first scene

    found = scenes.score(*scene_folders, refine)
    assert calls == [(40, 48, 3)] * 2
    assert found["images"] == 2 and found["coarse_miou"] < found["miou"] <= 100 * 4 / 150
    assert found["mba"] < 100
    assert scenes.score(*scene_folders, None) == found
    assert scenes.line(found).startswith(f"mIoU {found['coarse_miou']:.2f} -> {found['miou']:.2f}")


def test_scenes_that_nothing_can_refine_are_named(scene_folders):
    with pytest.raises(SegjaxError, match=r"refined.a\.png is missing; name a --workdir"):
        scenes.score(*scene_folders, None)
    draw.write(images.encode_png(np.full((40, 48), 151, np.uint8)), scene_folders[2] / "a.png")
    with pytest.raises(SegjaxError, match=r"coarse.a\.png: it holds 151"):
        scenes.score(*scene_folders, None)
