"""Maps fields of a TFDS data set to image, video, audio, labels, caption and id."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from selfflow.data.features import Spec, content_of, read_specs, type_of
from selfflow.errors import UserError, did_you_mean

MEDIA_TYPES = {"video": "Video", "audio": "Audio", "image": "Image"}
"""Class of the TFDS feature that holds each modality."""
_RESERVED = (*MEDIA_TYPES, "id", "present", "quality", "caption")


@dataclass(frozen=True)
class Fields:
    """Dotted paths of the fields that records are decoded from.

    Attributes:
      media: path of each modality.
      labels: path of each label, by its name in a record.
      caption: path of the caption; "" for none.
      id: path of the id; "" for none.
      specs: all fields of the data set, as features.json describes them.
    """

    media: dict[str, str]
    labels: dict[str, str]
    caption: str
    id: str
    specs: dict[str, Spec]

    @property
    def used(self) -> set[str]:
        """All paths that are read."""
        return {*self.media.values(), *self.labels.values(), self.caption, self.id} - {""}


def select_fields(folder: Path, named: Mapping[str, str], labels: tuple[str, ...]) -> Fields:
    """Returns the named fields; without named media the first field of each media type.

    Args:
      folder: folder of the prepared data set.
      named: paths of the fields `image`, `video`, `audio`, `caption` and `id`; "" for none.
      labels: paths of the labels; () for all integer fields without another use.

    Raises:
      UserError: a field does not exist or has another type, or there are no media.
    """
    specs = read_specs(folder)
    for option, path in named.items():
        _check_exists(option, path, specs)
    media = {modality: named[modality] for modality in MEDIA_TYPES if named[modality]} or _media_by_type(specs)
    for label in labels:
        _check_exists("label", label, specs)
        if not is_integer(specs[label]):
            raise UserError(f"tfds.label = {label!r}: has type {type_of(specs[label])}; choose an integer field")
    # A field used as caption or id is not a label.
    other = {*media.values(), named["caption"], named["id"]}
    paths = labels or [path for path, spec in specs.items() if is_integer(spec) and path not in other]
    by_name = {path.replace(".", "_"): path for path in paths}
    for name in _RESERVED:
        # By default such fields are left out; a label that the user names is an error.
        if name in by_name and by_name.pop(name) in labels:
            raise UserError(f"tfds.label = {name!r}: every record has a field of this name; choose another label")
    return Fields(media, by_name, named["caption"], named["id"], specs)


def _media_by_type(specs: dict[str, Spec]) -> dict[str, str]:
    media = {}
    for modality, feature in MEDIA_TYPES.items():
        paths = [path for path, spec in specs.items() if type_of(spec) == feature]
        if paths:
            media[modality] = paths[0]
    if not media:
        types = ", ".join(f"{path} ({type_of(spec)})" for path, spec in specs.items())
        raise UserError(f"tfds.image, video and audio are empty and no field has such a type: name one of {types}")
    return media


def is_integer(spec: Spec) -> bool:
    """Returns whether a field is a scalar integer."""
    if type_of(spec) == "ClassLabel":
        return True
    tensor = spec.get("tensor", {})
    scalar = type_of(spec) in ("Scalar", "Tensor") and not tensor.get("shape", {}).get("dimensions")
    return scalar and str(tensor.get("dtype", "")).startswith(("int", "uint"))


def dtype_of(spec: Spec) -> str:
    """Numeric type of a field, or of the images in a sequence; "" for other fields."""
    content = content_of(spec)
    return dtype_of(content["feature"]) if "feature" in content else str(content.get("dtype", ""))


def _check_exists(option: str, path: str, specs: dict[str, Spec]) -> None:
    if path and path not in specs:
        raise UserError(f"tfds.{option} = {path!r}: the data set has no such field; {did_you_mean(path, specs)}")
