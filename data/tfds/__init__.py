"""Tfds: any data set of TensorFlow Datasets, prepared as ArrayRecord, by its name. Importing this is cheap."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from selfflow.data.checks import check_numbers
from selfflow.data.dataset import Dataset
from selfflow.data.tfds.fields import MEDIA_TYPES, Fields, select_fields
from selfflow.data.tfds.locate import find_prepared, parse_name
from selfflow.errors import UserError, check_above_zero, check_at_least
from selfflow.serialization import to_json

DEFAULT_ROOT = Path("~/tensorflow_datasets")
"""Default folder of prepared data sets of TFDS."""


@dataclass(frozen=True)
class Tfds(Dataset):
    """The name of a data set of TFDS, and the mapping of its fields to media. Fields are named by their dotted path."""

    kind: Literal["tfds"] = "tfds"
    """Name of the data set."""
    name: str = ""
    """Name in the form of TFDS: NAME, NAME/CONFIG or NAME/CONFIG:VERSION; imagenet2012, ucf101/ucf101_1."""
    folder: str = ""
    """Folder of the prepared data set, such as ~/tensorflow_datasets; by default the folder of all data sets."""
    image: str = ""
    """Field of the image. If image, video and audio are all empty, fields are chosen by type."""
    video: str = ""
    """Field of the video, a sequence of images or a tensor [T, H, W, C]."""
    audio: str = ""
    """Field of the audio, a tensor [n] or [n, channels]."""
    label: tuple[str, ...] = ()
    """Integer fields to keep as labels; by default all integer fields."""
    caption: str = ""
    """Field of the caption: a text, the first of several texts, or the name of a class label."""
    id: str = ""
    """Field of the id of a record; by default the id is a hash of the contents."""
    size: int = 32
    """Height and width of images and frames, pixels: the largest centred square, resized."""
    frames: int = 25
    """Nominal frames of a clip; records keep their own length."""
    frames_per_second: float = 12.5
    """Frames per second of the video."""
    source_frames_per_second: float = 0.0
    """Frames per second at which the video was recorded; required for video."""
    sample_rate: int = 8000
    """Samples per second of the audio, which is mixed down to one channel."""
    source_sample_rate: int = 0
    """Samples per second at which the audio was recorded; by default that of the field."""
    varying_length: ClassVar[bool] = True

    def __post_init__(self):
        check_numbers(self, "frames_per_second", "source_frames_per_second", "source_sample_rate")
        check_numbers(self, "size", "frames", "sample_rate", whole=True)
        check_above_zero(self, "tfds.", "size", "frames", "frames_per_second", "sample_rate")
        check_at_least(self, "tfds.", source_frames_per_second=0, source_sample_rate=0)

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return f"that of {self.name} in the catalogue of TFDS"

    @property
    def id_prefix(self) -> str:
        """The name of the data set, which decoding puts before the ids of its records."""
        return f"{parse_name(self.name).name}-"

    @property
    def names_media(self) -> bool:
        """Whether the settings name the fields of the media; otherwise they are chosen by type."""
        return bool(self.image or self.video or self.audio)

    def fields(self, folder: Path) -> Fields:
        """Returns the fields of the data set prepared in `folder` that records are decoded from.

        Raises:
          UserError: a field does not exist or has another type, or `source_frames_per_second` is not set.
        """
        named = {option: getattr(self, option) for option in ("image", "video", "audio", "caption", "id")}
        fields = select_fields(folder, named, self.label)
        if "video" in fields.media and not self.source_frames_per_second:
            raise UserError(
                f"tfds.source_frames_per_second = 0: set the frames per second at which {fields.media['video']} was "
                "recorded"
            )
        return fields

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality, at the nominal length.

        Where no field is named, fields are chosen by type, from the data set prepared in `self.folder`, in `folder`, or
        in the default folder of TFDS.

        Raises:
          UserError: no field is named and the data set is not prepared.
        """
        if self.names_media:
            return self._shapes({modality for modality in MEDIA_TYPES if getattr(self, modality)})
        # This does not import TFDS.
        prepared = self.find(DEFAULT_ROOT if folder is None else folder)
        if prepared is None:
            raise UserError(
                f"tfds.image, video and audio are all empty and {self.name} is not prepared in "
                f"{self.folder or folder or DEFAULT_ROOT}: name the fields, or set tfds.folder"
            )
        return self._shapes(set(self.fields(prepared).media))

    def find(self, data_dir: Path) -> Path | None:
        """Returns the folder of the prepared data set, in `self.folder` or `data_dir`; None if it is not prepared."""
        roots = [self.folder, str(data_dir)] if self.folder else [str(data_dir)]
        return find_prepared(parse_name(self.name), [Path(root).expanduser() for root in roots])

    def _shapes(self, modalities: set[str]) -> dict[str, tuple[int, ...]]:
        image = (self.size, self.size, 3)
        samples = round(self.frames * (self.sample_rate / self.frames_per_second))
        shapes = {"video": (self.frames, *image), "audio": (samples,), "image": image}
        return {modality: shape for modality, shape in shapes.items() if modality in modalities}

    def source_folder(self, data_dir: Path) -> str:
        """Returns the folder of what TFDS downloaded."""
        return str(data_dir / "downloads")

    def decoder(self, folder: Path) -> Callable[[bytes], dict[str, Any]]:
        """Returns a function from the serialized records of the prepared data set in `folder` to records."""
        from selfflow.data.tfds.decode import Decoder, MediaFormat

        # The features of TFDS would decode images at full size and keep audio at its own rate.
        fields = self.fields(folder)
        media = MediaFormat(
            self._shapes(set(fields.media)),
            self.size,
            self.frames_per_second,
            self.source_frames_per_second,
            self.sample_rate,
            self.source_sample_rate,
        )
        return Decoder(folder, fields, media, self.id_prefix)

    def decoding_options(self) -> dict[str, Any]:
        """Returns all settings, because the config of TFDS does not depend on them."""
        return to_json(self)
