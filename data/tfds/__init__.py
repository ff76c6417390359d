"""Tfds: any data set of TensorFlow Datasets, prepared as ArrayRecord, by its name. Importing this is cheap."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfflow.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclass(frozen=True)
class Tfds:
    """Which data set of TFDS, and how its fields become media. Fields are named by their dotted path."""

    kind: Literal["tfds"] = "tfds"
    """Tells this data set from the others in an experiment file."""
    name: str = ""
    """The data set as TFDS writes it: NAME, NAME/CONFIG or NAME/CONFIG:VERSION; imagenet2012, ucf101/ucf101_1."""
    folder: str = ""
    """Where it was prepared, such as ~/tensorflow_datasets; by default the folder of all data sets."""
    image: str = ""
    """Field of the image. If image, video and audio are all empty, the types of the fields choose."""
    video: str = ""
    """Field of the video, a sequence of images or a tensor [T, H, W, C]."""
    audio: str = ""
    """Field of the sound, a tensor [n] or [n, channels]."""
    label: tuple[str, ...] = ()
    """Fields to keep as labels, whole numbers; by default all that are one."""
    caption: str = ""
    """Field of the text that describes a record; of several texts the first; of a class label its name."""
    id: str = ""
    """Field that names a record; by default a hash of its contents does."""
    size: int = 32
    """Height and width of images and frames, pixels: the largest centred square, resized."""
    frames: int = 25
    """Nominal frames of a clip; records keep their own length."""
    frames_per_second: float = 12.5
    """Frames per second of the video."""
    source_frames_per_second: float = 0.0
    """Frames per second at which the video was recorded; needed where there is video."""
    sample_rate: int = 8000
    """Samples per second of the sound, which is mixed down to one channel."""
    source_sample_rate: int = 0
    """Samples per second at which the sound was recorded; by default what the field tells."""

    def __post_init__(self):
        for field in ("size", "frames", "frames_per_second", "sample_rate"):
            value = getattr(self, field)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise UserError(f"tfds.{field} = {value!r}: must be above 0")
            if field != "frames_per_second" and not isinstance(value, int):
                raise UserError(f"tfds.{field} = {value!r}: must be a whole number")
        for field in ("source_frames_per_second", "source_sample_rate"):
            value = getattr(self, field)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise UserError(f"tfds.{field} = {value!r}: must not be negative")

    @property
    def samples_per_frame(self) -> float:
        """Samples of sound that belong to a frame; a whole number where there is video and sound."""
        return self.sample_rate / self.frames_per_second

    @property
    def parts(self) -> tuple[str, str, str]:
        """Name, config and version as `name` gives them; "" where it does not.

        Raises:
          UserError: `name` is empty, or not of that form.
        """
        match = re.fullmatch(r"([A-Za-z]\w*)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", self.name)
        if match is None:
            raise UserError(f"tfds.name = {self.name!r}: must be NAME, NAME/CONFIG or NAME/CONFIG:1.0.0")
        return match[1], match[2] or "", match[3] or ""

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return f"that of {self.name} in the catalogue of TFDS"

    def media_shapes(self, data_dir: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality, at the nominal length.

        Where no field is named, the prepared data set is looked into: in `folder`, in `data_dir` if it is given, and
        where TFDS prepares by default.

        Raises:
          UserError: no field is named and the data set is not found.
        """
        named = {what for what in ("image", "video", "audio") if getattr(self, what)}
        if not named:
            from selfflow.data.tfds.fields import choose
            from selfflow.data.tfds.locate import find

            found = find(self, Path("~/tensorflow_datasets") if data_dir is None else data_dir)
            if found is None:
                raise UserError(
                    f"tfds.image, video and audio are all empty and {self.name} is not prepared in "
                    f"{self.folder or data_dir or '~/tensorflow_datasets'}: name the fields, or set tfds.folder"
                )
            named = set(choose(self, found).media)
        return self.shapes(named)

    def shapes(self, modalities: set[str]) -> dict[str, tuple[int, ...]]:
        """Nominal shapes of `modalities`."""
        still = (self.size, self.size, 3)
        samples = round(self.frames * self.samples_per_frame)
        shapes = {"video": (self.frames, *still), "audio": (samples,), "image": still}
        return {what: shape for what, shape in shapes.items() if what in modalities}

    def decoder(self, folder: Path) -> Callable[[bytes], dict[str, Any]]:
        """What turns the serialized records of the data set in `folder` into those of the common form."""
        from selfflow.data.tfds.decode import Decoder

        return Decoder(self, folder)

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the TFDS builder of the prepared data set; prepares it under `data_dir` if it is nowhere.

        Raises:
          UserError: there is no such data set, it is prepared in another form, or it cannot be prepared here; the
            message gives the command that prepares it.
        """
        from selfflow.data.tfds.builder import build

        return build(self, Path(data_dir))
