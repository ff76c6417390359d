"""Latents that were made elsewhere: npz and safetensors with a manifest. Importing this is cheap."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.data.latents.manifest import MANIFEST, read_manifest
from selfflow.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["MANIFEST", "LatentFiles", "read_manifest"]


@dataclass(frozen=True)
class LatentFiles:
    """A folder of latents of media that are not there, in npz or safetensors, with a latents.json."""

    kind: Literal["latent_files"] = "latent_files"
    """Which data set this is."""
    source: str = ""
    """The folder that holds latents.json, and latents in it and in all folders below it."""
    name: str = ""
    """What to call the data set. With a name it is found again under that name wherever `source` lay; without
    one it is known by the path of `source`."""
    validation_fraction: float = 0.05
    """Share of the files that goes to the split `validation`, where no folder of that name tells it."""
    test_fraction: float = 0.05
    """Share of the files that goes to the split `test`, where no folder of that name tells it."""
    seed: int = 0
    """Chooses which files go to which split."""
    image: tuple[int, ...] = ()
    """Shape of the images that were encoded, [H, W, 3]; follows from latents.json, as all that stands below."""
    video: tuple[int, ...] = ()
    """Shape of the films, [T, H, W, 3]."""
    audio: tuple[int, ...] = ()
    """Shape of the sounds, [samples]."""
    frames_per_second: float = 0.0
    """Frames per second of the films."""
    sample_rate: int = 0
    """Samples per second of the sounds."""

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "that of what was encoded"

    def resolved(self) -> "LatentFiles":
        """The same with what latents.json tells of the media filled in.

        Raises:
          UserError: it is not there, or does not tell it.
        """
        if self.image or self.video or self.audio:
            return self
        if not self.source:
            raise UserError("latent_files.source is empty; name the folder of your latents, such as --source ~/latents")
        told = read_manifest(Path(self.folder()))
        shapes = {m: stream.media for m, stream in told.streams.items()}
        return replace(self, **shapes, frames_per_second=told.frames_per_second, sample_rate=told.sample_rate)

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media that a record has latents of, by modality, at the nominal length."""
        told = self.resolved()
        return {m: getattr(told, m) for m in ("video", "audio", "image") if getattr(told, m)}

    def check(self) -> None:
        """Raises UserError, which names the field, if a value makes no sense."""
        for field in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"latent_files.{field} is {getattr(self, field)}; it must be at least 0 and below 1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError("latent_files: validation_fraction + test_fraction is 1 or more; leave some for train")
        if not (self.source or self.name):
            raise UserError("latent_files.source is empty; name the folder of your latents, such as --source ~/latents")

    def folder(self) -> str:
        """The absolute path of `source`, or "" where there is none."""
        return os.path.abspath(os.path.expanduser(self.source)) if self.source else ""

    def key(self) -> str:
        """A short hash of all that decides about the records, but for the contents of the folder."""
        settings = {f: v for f, v in asdict(self).items() if f in ("validation_fraction", "test_fraction", "seed")}
        settings["source"] = self.name or self.folder()
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()[:8]

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the builder of the ready data set; builds it below `data_dir` if it is not there.

        A folder whose files changed (paths, sizes, times) is built anew. A folder that is gone is not needed: the
        newest data set that was built from it with these settings is used, which a line on stderr says.

        Raises:
          UserError: a setting makes no sense, the folder is missing, it has no latents.json, or nothing can be used.
        """
        from selfflow.data.latents.builder import prepare

        return prepare(self, Path(data_dir))
