"""Real photographs all the way: builder, loader, training, evaluation, drawing. They are not ours
to publish."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import segjax
from segjax import config as configs
from segjax.training import loop

REAL = pathlib.Path(__file__).parents[2] / "shared" / "realdata"
pytestmark = [
    pytest.mark.skipif(
        not REAL.is_dir(), reason="the real photographs lie outside of this repository"
    ),
    pytest.mark.slow,
]


def tiny_regproxy(classes, dataset):
    config = configs.ConfigDict()
    config.model = dict(
        system="regproxy",
        backbone=dict(width=32, depth=2, heads=2, patch=16),
        classes=classes,
        image_size=(128, 128),
        early_block=0,
    )
    config.data = dict(dataset=dataset, batch=8, workers=0)
    config.augment = dict(scale=(512, 192), crop=(128, 128))
    config.optimizer = dict(learning_rate=1e-3)
    config.schedule = dict(warmup_steps=0)
    config.eval = dict(mode="slide", scale=(512, 128), crop=(128, 128), stride=(96, 96), every=4)
    config.checkpoint = dict(every=4)
    config.steps = 4
    config.log = dict(every=1, tensorboard=False)
    return configs.load(config)


def check_run(workdir, photo, classes):
    result = segjax.load(str(workdir))(str(photo))
    with Image.open(photo) as image:
        assert result.labels.shape == image.size[::-1]
    assert result.labels.min() >= 0 and result.labels.max() < classes
    drawn = result.draw()
    assert min(drawn.size) > 0 and np.asarray(drawn).std() > 10


def test_the_annotated_coco_photographs_train_evaluate_and_draw(tmp_path):
    sample = REAL / "coco_panoptic_sample"
    dataset = dict(
        name="coco_panoptic",
        manual_dir=str(sample),
        images="input_images",
        masks="panoptic_examples",
        annotations="panoptic_examples.json",
    )
    metrics = loop.train(tiny_regproxy(133, dataset), tmp_path / "run")
    assert metrics["images"] == 2
    assert 0 <= metrics["mIoU"] <= 100
    check_run(tmp_path / "run", sample / "input_images" / "000000142238.jpg", 133)


def test_a_folder_of_photographs_and_masks_trains_evaluates_and_draws(tmp_path):
    root = tmp_path / "photos"
    for split in ("train", "validation"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for name in ("aeroplane", "motorbike"):
            photo = REAL / "refinement" / f"{name}.jpg"
            (root / "images" / split / photo.name).write_bytes(photo.read_bytes())
            mask = np.asarray(Image.open(photo.with_suffix(".png")).convert("L")) > 127
            Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / split / f"{name}.png")
    (root / "names.txt").write_text("background\nvehicle\n")
    metrics = loop.train(tiny_regproxy(2, dict(name="folder", root=str(root))), tmp_path / "run")
    assert metrics["images"] == 2
    check_run(tmp_path / "run", REAL / "refinement" / "aeroplane.jpg", 2)
