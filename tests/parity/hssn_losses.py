"""The row of HSSN's tree-triplet loss; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

import jax

from segjax.losses.tree_triplet import tree_triplet
from segjax.ops import resize
from tests.parity.hssn import labels_of, published, tree_of
from tests.parity.regproxy import Args, Arrays, Outputs, nchw, nhwc


def triplet(args: Args, _tensors: Arrays, inputs: Arrays) -> Outputs:
    tree, labels = tree_of(args, inputs), labels_of(args, inputs["labels"])

    def loss(embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = tree_triplet(
            embedding,
            labels,
            tree,
            margin=args.get("margin", 0.6),
            cap=args.get("max_triplets", 200),
            skip_background=args.get("skip_background", args["tree"] != "cityscapes"),
        )
        return found.value, found.classes

    call = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, classes), gradient = call(nhwc(inputs["embedding"]))
    small = resize.nearest(labels[..., None], gradient.shape[1:3])[..., 0]
    return {
        "triplet": value,
        "classes": classes,
        "grad_embedding": nchw(gradient),
        "labels_small": published(small, args),
    }


RUNNERS = {"hssn.tree_triplet": triplet}
