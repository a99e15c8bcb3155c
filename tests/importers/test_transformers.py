"""Files of Hugging Face transformers: same numbers as its own PyTorch models on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import importers
from segjax.data.labels import builtin
from segjax.errors import SegjaxError
from segjax.importers import hf_names
from segjax.systems import mask2former, maskformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SWIN = dict(
    embed_dim=16,
    depths=[1, 1, 2, 1],
    num_heads=[1, 2, 2, 4],
    window_size=4,
    out_features=["stage1", "stage2", "stage3", "stage4"],
    drop_path_rate=0.0,
)
OURS = dict(width=16, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=4)


def saved(model, folder):
    """The model with weights that matter, written as the hub has it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise)
    model.eval().save_pretrained(folder)
    return importers.read(folder)


def both(model, system, folder, size=(64, 96)):
    image = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    tensors = saved(model, folder)
    expected = jax.eval_shape(system.init, jax.random.key(0), {"image": jnp.asarray(image)})
    variables = importers.to_variables("transformers", tensors, expected)
    said = jax.jit(system.predict)(variables, {"image": jnp.asarray(image)})
    with torch.no_grad():
        theirs = model(torch.tensor(image).permute(0, 3, 1, 2))
    return said, theirs


def assert_near(ours, theirs, tolerance):
    theirs = theirs.detach().numpy()
    error = np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)
    assert error < tolerance


def test_mask2former_says_what_transformers_says(tmp_path):
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN),
        num_queries=9,
        num_labels=7,
        decoder_layers=4,
        encoder_layers=2,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=32,
        dim_feedforward=48,
        num_attention_heads=8,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    system = mask2former.build(
        classes=7,
        backbone=OURS,
        drop_path=0.0,
        queries=9,
        layers=3,
        encoder_layers=2,
        features=64,
        hidden=48,
        encoder_hidden=32,
    )
    said, theirs = both(model, system, tmp_path)
    assert_near(said.class_logits, theirs.class_queries_logits, 1e-3)
    assert_near(said.mask_logits.transpose(0, 3, 1, 2), theirs.masks_queries_logits, 1e-3)


def test_maskformer_says_what_transformers_says(tmp_path):
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN),
        decoder_config=transformers.DetrConfig(
            num_queries=9,
            d_model=64,
            decoder_layers=2,
            decoder_ffn_dim=48,
            decoder_attention_heads=8,
            encoder_attention_heads=8,
        ),
        num_labels=7,
        fpn_feature_size=64,
        mask_feature_size=64,
    )
    model = transformers.MaskFormerForInstanceSegmentation(config)
    system = maskformer.build(
        classes=7,
        backbone=OURS,
        drop_path=0.0,
        queries=9,
        layers=2,
        features=64,
        hidden=48,
    )
    said, theirs = both(model, system, tmp_path)
    assert_near(said.class_logits, theirs.class_queries_logits, 1e-4)
    assert_near(said.mask_logits.transpose(0, 3, 1, 2), theirs.masks_queries_logits, 1e-4)


def test_class_names_come_from_the_folder(tmp_path):
    like = builtin("shapescapes")
    names = {str(k): f"name {k % 11}" for k in range(like.classes)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    space = hf_names.label_space(tmp_path, like)
    assert space.names[3] == "name 3" and space.names[11] == "name 0 (11)"
    assert space.is_thing == like.is_thing
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "alone"}}))
    with pytest.raises(SegjaxError, match="names 1 classes"):
        hf_names.label_space(tmp_path, like)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sem_seg_head.layer_1.weight", "pixel_decoder/layer_1/conv/kernel"),
        ("sem_seg_head.pixel_decoder.layer_1.weight", "pixel_decoder/layer_1/conv/kernel"),
        (
            "sem_seg_head.pixel_decoder.pixel_decoder.layer_1.weight",
            "pixel_decoder/layer_1/conv/kernel",
        ),
        ("sem_seg_head.predictor.static_query.weight", "predictor/query_feat"),
        ("sem_seg_head.predictor.query_feat.weight", "predictor/query_feat"),
    ],
)
def test_every_spelling_of_the_official_files_is_known(old, new):
    assert importers.our_path("mask2former", old) == new
