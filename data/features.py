"""The features of a data set on disk, read from its features.json without TensorFlow.

TFDS asks TensorFlow for the types of its Video and Audio features, though numbers are all that they store. Here
they are read as what lies in the records: a sequence of pictures, and a tensor.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_MODULE = "tensorflow_datasets.core.features"
_BYTES = {
    "pythonClassName": f"{_MODULE}.tensor_feature.Tensor",
    "tensor": {"shape": {}, "dtype": "string", "encoding": "none"},
}

Spec = dict[str, Any]  # one feature, as features.json has it


def read_specs(folder: Path) -> dict[str, Spec]:
    """The features of the records in `folder`, by dotted path; those inside sequences of several are left out.

    Raises:
      UserError: there is no features.json of a present TFDS.
    """
    return dict(_leaves(_read(folder)))


def type_of(spec: Spec) -> str:
    """The class of a feature, such as "Image" or "ClassLabel"."""
    return spec["pythonClassName"].rsplit(".", 1)[-1]


def content_of(spec: Spec) -> dict[str, Any]:
    """What a feature tells of itself besides its class."""
    return next((value for key, value in spec.items() if key not in ("pythonClassName", "description")), {})


def read_features(
    folder: Path, only: Collection[str] | None = None, encoded: bool = False
) -> "tfds.features.FeaturesDict":
    """The features of the records in `folder`, ready to deserialize them.

    Args:
      folder: of a prepared data set.
      only: dotted paths of the features to read; all of them by default.
      encoded: whether images stay as the bytes that are stored.

    Raises:
      UserError: there is no features.json of a present TFDS.
    """
    from tensorflow_datasets.core.features import feature

    features = feature.FeatureConnector.from_json(_plain(_read(folder), "", only, encoded))
    features.load_metadata(folder, feature_name=None)
    return features


def _read(folder: Path) -> Spec:
    path = Path(folder) / "features.json"
    try:
        root = json.loads(path.read_text())
        if "featuresDict" not in root:
            root = {"pythonClassName": root["type"], "featuresDict": root["content"]}
        root["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not tell the features of a data set: prepare it again with TFDS 4.9") from error
    return root


def _leaves(spec: Spec, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    for name, inner in spec["featuresDict"]["features"].items():
        if "featuresDict" in inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        elif "featuresDict" not in content_of(inner).get("feature", {}):
            yield prefix + name, inner


def _plain(spec: Spec, path: str, only: Collection[str] | None, encoded: bool) -> Spec:
    kind, content = type_of(spec), content_of(spec)
    if kind == "FeaturesDict":
        inner = {}
        for name, feature in content["features"].items():
            below = f"{path}.{name}" if path else name
            if only is None or any(wanted == below or wanted.startswith(f"{below}.") for wanted in only):
                whole = only is None or below in only
                inner[name] = _plain(feature, below, None if whole else only, encoded)
        return spec | {"featuresDict": {"features": inner}}
    if kind == "Video":
        picture = {k: content[k] for k in ("dtype", "encodingFormat", "useColormap") if k in content}
        sides = content.get("shape", {}).get("dimensions", [])
        if sides:
            picture["shape"] = {"dimensions": sides[1:]}
        image = {"pythonClassName": f"{_MODULE}.image_feature.Image", "image": picture}
        length = sides[0] if sides else "-1"
        spec = {
            "pythonClassName": f"{_MODULE}.sequence_feature.Sequence",
            "sequence": {"feature": image, "length": length},
        }
        kind, content = "Sequence", spec["sequence"]
    if kind == "Sequence":
        return spec | {"sequence": content | {"feature": _plain(content["feature"], path, None, encoded)}}
    if kind == "Image" and encoded or kind == "Audio" and content.get("lazyDecode"):
        return _BYTES
    if kind == "Audio":
        tensor = {k: content[k] for k in ("shape", "dtype", "encoding") if k in content}
        return {"pythonClassName": f"{_MODULE}.tensor_feature.Tensor", "tensor": tensor}
    return spec
