"""DeepLabV3+ on a ResNet in files of mmsegmentation (github.com/open-mmlab/mmsegmentation)."""

from __future__ import annotations

from segjax.importers import resnet
from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv
from segjax.importers.resnet import Rows, Shortcut

HEAD, AUX = "decode_head.", "auxiliary_head."


def separable(name: str, path: str) -> Rows:
    """mmcv's depthwise separable convolution."""
    return (
        # published name                       our path                       how
        (name + ".depthwise_conv.conv.{w}",    path + "/depthwise/{w}",       conv),
        (name + ".depthwise_conv.bn.{w}",      path + "/depthwise_norm/{w}",  bn),
        (name + ".pointwise_conv.conv.{w}",    path + "/pointwise/{w}",       conv),
        (name + ".pointwise_conv.bn.{w}",      path + "/pointwise_norm/{w}",  bn),
    )  # fmt: skip


def conv_module(name: str, path: str) -> Rows:
    """mmcv's convolution with norm."""
    return (
        (name + ".conv.{w}", path + "/conv/{w}", conv),
        (name + ".bn.{w}", path + "/norm/{w}", bn),
    )


def rules(shortcuts: tuple[Shortcut, ...] = (resnet.PLAIN, resnet.POOLED)) -> Rows:
    """The rows of the network on a ResNet with these shortcuts."""
    return (
        *resnet.rules("backbone.", "backbone/", shortcuts),
        *conv_module(HEAD + "image_pool.1", "head/aspp/image_pool"),
        *conv_module(HEAD + "aspp_modules.0", "head/aspp/view_0"),
        *separable(HEAD + "aspp_modules.{i}", "head/aspp/view_{i}"),
        *conv_module(HEAD + "bottleneck", "head/bottleneck"),
        *conv_module(HEAD + "c1_bottleneck", "head/early_bottleneck"),
        *separable(HEAD + "sep_bottleneck.{i}", "head/fusion_{i}"),
        (HEAD + "conv_seg.{w}", "head/classifier/conv/{w}", conv),
        *conv_module(AUX + "convs.{i}", "auxiliary/conv_{i}"),
        (AUX + "conv_seg.{w}", "auxiliary/classifier/conv/{w}", conv),
    )


RULES = rules()

DROPPED = ("*.num_batches_tracked",)
