"""The files of DeiT's authors (github.com/facebookresearch/deit): timm's names, nested under
"model"; the distilled ones have a second extra token."""

from __future__ import annotations

from segjax.importers.timm import DROPPED, RULES

__all__ = ["DROPPED", "RULES"]
