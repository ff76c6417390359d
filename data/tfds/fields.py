"""Which fields of a TFDS data set are the image, the video, the sound, the labels, the caption and the id."""

import sys
from dataclasses import dataclass
from pathlib import Path

from selfflow.data.features import Spec, content_of, read_specs, type_of
from selfflow.data.tfds import Tfds
from selfflow.errors import UserError, did_you_mean

MEDIA = ("video", "audio", "image")
_RESERVED = (*MEDIA, "id", "present", "quality", "caption")


@dataclass(frozen=True)
class Fields:
    """Dotted paths of the fields that are used.

    Attributes:
      media: by modality.
      labels: by their name in a record.
      caption: "" if none.
      id: "" if none.
      specs: every field of the data set, as features.json has it.
    """

    media: dict[str, str]
    labels: dict[str, str]
    caption: str
    id: str
    specs: dict[str, Spec]

    @property
    def used(self) -> set[str]:
        return {*self.media.values(), *self.labels.values(), self.caption, self.id} - {""}


def choose(settings: Tfds, folder: Path, say: bool = False) -> Fields:
    """The fields that `settings` names, or that their types tell.

    Args:
      settings: of the data set.
      folder: where it is prepared.
      say: whether to tell on stderr what the types told.

    Raises:
      UserError: a field is missing or of a type that cannot serve, or there are no media.
    """
    specs = read_specs(folder)
    media = {what: getattr(settings, what) for what in MEDIA if getattr(settings, what)}
    for what in ("image", "video", "audio", "caption", "id"):
        _require(settings, what, getattr(settings, what), specs)
    if not media:
        types = {"video": "Video", "audio": "Audio", "image": "Image"}
        for what, wanted in types.items():
            path = next((path for path, spec in specs.items() if type_of(spec) == wanted), "")
            if path:
                media[what] = path
        if not media:
            listed = ", ".join(f"{path} ({type_of(spec)})" for path, spec in specs.items())
            raise UserError(
                f"tfds.image, video and audio are empty and no field of {settings.name} has such a type: {listed}"
            )
        if say:
            print(f"tfds: {settings.name}: " + ", ".join(f"{w} = {p}" for w, p in media.items()), file=sys.stderr)
    for label in settings.label:
        _require(settings, "label", label, specs)
        if not is_whole(specs[label]):
            raise UserError(f"tfds.label = {label!r}: is {type_of(specs[label])}, not a whole number")
    if "video" in media and not settings.source_frames_per_second:
        raise UserError(
            f"tfds.source_frames_per_second = 0: say how many frames a second {media['video']} was recorded at"
        )
    used = {*media.values(), settings.caption, settings.id}
    paths = settings.label or [path for path, spec in specs.items() if is_whole(spec) and path not in used]
    labels = {path.replace(".", "_"): path for path in paths}
    for name in _RESERVED:
        if name in labels and labels.pop(name) in settings.label:
            raise UserError(f"tfds.label = {name!r}: this name is taken by a field of every record")
    return Fields(media, labels, settings.caption, settings.id, specs)


def is_whole(spec: Spec) -> bool:
    """Whether a field is one whole number."""
    if type_of(spec) == "ClassLabel":
        return True
    tensor = spec.get("tensor", {})
    one = type_of(spec) in ("Scalar", "Tensor") and not tensor.get("shape", {}).get("dimensions")
    return one and str(tensor.get("dtype", "")).startswith(("int", "uint"))


def dtype_of(spec: Spec) -> str:
    """Type of the numbers of a field, or of the pictures in a sequence; "" if it has none."""
    content = content_of(spec)
    return dtype_of(content["feature"]) if "feature" in content else str(content.get("dtype", ""))


def _require(settings: Tfds, field: str, path: str, specs: dict[str, Spec]) -> None:
    if path and path not in specs:
        raise UserError(f"tfds.{field} = {path!r}: {settings.name} has no such field; {did_you_mean(path, specs)}")
