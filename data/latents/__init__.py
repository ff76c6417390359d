"""Latents that were made elsewhere: npz and safetensors with a manifest. Importing this is cheap."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from selfflow.data.folder import FolderSettings
from selfflow.data.latents.manifest import MANIFEST, read_manifest
from selfflow.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["MANIFEST", "LatentFiles", "read_manifest"]


@dataclass(frozen=True)
class LatentFiles(FolderSettings):
    """A folder of latents of media that are not there, in npz or safetensors, with a latents.json."""

    kind: Literal["latent_files"] = "latent_files"
    """Which data set this is."""
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
    follows: ClassVar[tuple[str, ...]] = ("image", "video", "audio", "frames_per_second", "sample_rate")

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "that of what was encoded"

    def resolved(self, like: "LatentFiles | None" = None) -> "LatentFiles":
        """The same with what latents.json tells of the media filled in; taken from one that has it, if it is the same.

        Raises:
          UserError: it is not there, or does not tell it.
        """
        if self.image or self.video or self.audio:
            return self
        if like and replace(self, **{name: getattr(like, name) for name in self.follows}) == like:
            return like
        if not self.source:
            raise UserError("latent_files.source is empty; name the folder of your latents, such as --source ~/latents")
        told = read_manifest(Path(self.folder()))
        shapes = {m: stream.media for m, stream in told.streams.items()}
        return replace(self, **shapes, frames_per_second=told.frames_per_second, sample_rate=told.sample_rate)

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media that a record has latents of, by modality, at the nominal length."""
        told = self.resolved()
        return {m: getattr(told, m) for m in ("video", "audio", "image") if getattr(told, m)}

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the builder of the ready data set; builds it below `data_dir` if it is not there.

        A folder whose files changed (paths, sizes, times) is built anew. A folder that is gone is not needed: the
        newest data set that was built from it with these settings is used, which a line on stderr says.

        Raises:
          UserError: a setting makes no sense, the folder is missing, it has no latents.json, or nothing can be used.
        """
        from selfflow.data.latents.builder import prepare

        return prepare(self, Path(data_dir))
