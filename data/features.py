"""The features of a data set on disk, read from its features.json without TensorFlow.

TFDS needs TensorFlow for the types of its Video and Audio features, although only numbers are stored. Here they are
read in their stored form: a sequence of images, and a tensor.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_MODULE = "tensorflow_datasets.core.features"
_IMAGE = f"{_MODULE}.image_feature.Image"
_SEQUENCE = f"{_MODULE}.sequence_feature.Sequence"
_TENSOR = f"{_MODULE}.tensor_feature.Tensor"
_BYTES = {"pythonClassName": _TENSOR, "tensor": {"shape": {}, "dtype": "string", "encoding": "none"}}

Spec = dict[str, Any]
"""One feature, as features.json describes it."""


def read_specs(folder: Path) -> dict[str, Spec]:
    """Returns the features of the records in `folder`, by dotted path; those inside sequences of several are left out.

    Raises:
      UserError: there is no features.json of TFDS 4.9 or newer.
    """
    return dict(_leaves(_read(folder)))


def type_of(spec: Spec) -> str:
    """Returns the class of a feature, such as "Image" or "ClassLabel"."""
    return spec["pythonClassName"].rsplit(".", 1)[-1]


def content_of(spec: Spec) -> dict[str, Any]:
    """Returns the fields of a feature, such as its shape and dtype."""
    for key, value in spec.items():
        if key not in ("pythonClassName", "description"):
            return value
    return {}


def read_features(
    folder: Path, only: Collection[str] | None = None, encoded: bool = False
) -> "tfds.features.FeaturesDict":
    """Returns the features of the records in `folder`, ready to deserialize them.

    Args:
      folder: folder of a prepared data set.
      only: dotted paths of the features to read; all of them by default.
      encoded: whether images stay as the bytes that are stored.

    Raises:
      UserError: there is no features.json of TFDS 4.9 or newer.
    """
    from tensorflow_datasets.core.features import feature

    features = feature.FeatureConnector.from_json(_without_tensorflow(_read(folder), "", only, encoded))
    features.load_metadata(folder, feature_name=None)
    return features


def _read(folder: Path) -> Spec:
    path = Path(folder) / "features.json"
    try:
        root = json.loads(path.read_text(encoding="utf-8"))
        if "featuresDict" not in root:
            root = {"pythonClassName": root["type"], "featuresDict": root["content"]}
        root["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not describe the features of a data set: prepare it again with TFDS 4.9"
        ) from error
    return root


def _leaves(spec: Spec, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    for name, inner in spec["featuresDict"]["features"].items():
        if "featuresDict" in inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        # A sequence of several features has no path of its own.
        elif "featuresDict" not in content_of(inner).get("feature", {}):
            yield prefix + name, inner


def _without_tensorflow(spec: Spec, path: str, only: Collection[str] | None, encoded: bool) -> Spec:
    """Returns a feature that TFDS deserializes without TensorFlow, of a feature at a dotted path."""
    kind, content = type_of(spec), content_of(spec)
    if kind == "FeaturesDict":
        return spec | {"featuresDict": {"features": _selected(content["features"], path, only, encoded)}}
    if kind == "Video":
        spec = _image_sequence(content)
        kind, content = "Sequence", spec["sequence"]
    if kind == "Sequence":
        # A sequence is read as a whole.
        element = _without_tensorflow(content["feature"], path, None, encoded)
        return spec | {"sequence": content | {"feature": element}}
    # Decoding is left to the caller, who resizes while decoding.
    if kind == "Image" and encoded or kind == "Audio" and content.get("lazyDecode"):
        return _BYTES
    if kind == "Audio":
        return {"pythonClassName": _TENSOR, "tensor": _subset(content, "shape", "dtype", "encoding")}
    return spec


def _selected(features: dict[str, Spec], path: str, only: Collection[str] | None, encoded: bool) -> dict[str, Spec]:
    """Returns those features of a FeaturesDict that are in `only`, or contain one that is."""
    selected = {}
    for name, feature in features.items():
        feature_path = f"{path}.{name}" if path else name
        if only is None or feature_path in only:
            selected[name] = _without_tensorflow(feature, feature_path, None, encoded)
        elif any(entry.startswith(f"{feature_path}.") for entry in only):
            selected[name] = _without_tensorflow(feature, feature_path, only, encoded)
    return selected


def _image_sequence(video: dict[str, Any]) -> Spec:
    """Returns a Video feature as a sequence of images."""
    image = _subset(video, "dtype", "encodingFormat", "useColormap")
    dimensions = video.get("shape", {}).get("dimensions", [])
    if dimensions:
        image["shape"] = {"dimensions": dimensions[1:]}
    length = dimensions[0] if dimensions else "-1"
    element = {"pythonClassName": _IMAGE, "image": image}
    return {"pythonClassName": _SEQUENCE, "sequence": {"feature": element, "length": length}}


def _subset(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}
