"""The TFDS builders behind prepared datasets (ArrayRecord, no TensorFlow)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from segjax.data import prepared
from segjax.data.prepared import Source


def write(source: Source, names: Sequence[str], path: Path) -> None:
    """Writes a prepared copy to `path`; nothing is there until all of it is."""
    tfds.display_progress_bar(False)  # `prepared.examples` shows progress itself
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that it has no list of
    try:
        SegmentationBuilder(source, names, path).download_and_prepare()
    finally:
        logging.set_verbosity(verbosity)
        tfds.display_progress_bar(True)


def open_source(path: Path) -> tuple[Sequence[dict[str, Any]], dict[str, Any]]:
    """The examples at `path` with their images still encoded, and the metadata beside them."""
    reader = tfds.builder_from_directory(path)
    (split,) = reader.info.splits
    skip = {
        name: tfds.decode.SkipDecoding()
        for name, feature in reader.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return reader.as_data_source(split, decoders=skip), dict(reader.info.metadata)


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes one split of a `Source`, in its order."""

    VERSION = tfds.core.Version(prepared.VERSION)

    def __init__(self, source: Source, names: Sequence[str], path: Path) -> None:
        """`path` is <data_dir>/<dataset>/<config>/<version>."""
        self._source, self._names = source, names
        self._sizes: list[tuple[int, int]] = []
        self.name = path.parts[-3]
        super().__init__(
            data_dir=path.parents[2],
            config=tfds.core.BuilderConfig(name=path.parts[-2]),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        depth = prepared.label_depth(self._source.label_space)
        features = {
            "name": tfds.features.Text(),
            "height": tfds.features.Scalar(np.int32),
            "width": tfds.features.Scalar(np.int32),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "semantic": tfds.features.Image(
                shape=(None, None, 1), dtype=depth, encoding_format="png"
            ),
        }
        if self._source.segments:
            features["segments"] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            )
            features["segment_class"] = tfds.features.Sequence(np.int32)
            features["segment_is_crowd"] = tfds.features.Sequence(np.bool_)
            features["segment_area"] = tfds.features.Sequence(np.float64)
        metadata = dict(segments=self._source.segments, sizes=self._sizes)
        if self._source.masks:
            metadata["masks"] = list(self._source.masks)
        for mask in self._source.masks:
            features[mask] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._source.dataset}, as segjax reads it: label_space.json lies beside"
            " the records; the greatest value of `semantic` and of `segments` is unlabelled; layers"
            " of `segments` lie below one another.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._source.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, example in enumerate(prepared.examples(self._source, self._names)):
            self._sizes.append((example["height"], example["width"]))
            yield index, example
        self._source.label_space.save(Path(self.data_dir) / "label_space.json")

    # What TFDS prints here is about downloads; there are none.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass
