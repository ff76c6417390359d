"""LatentFiles: a folder of precomputed latents, npz and safetensors with a manifest. Importing this is cheap."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from selfflow.data.folder import File, FolderSettings, scan
from selfflow.data.report import Remark
from selfflow.errors import UserError


@dataclass(frozen=True)
class LatentFiles(FolderSettings):
    """A folder of latents in npz or safetensors, with a latents.json; their media are not needed."""

    kind: Literal["latent_files"] = "latent_files"
    """Name of the data set."""
    image: tuple[int, ...] = ()
    """Shape of the images that were encoded, [H, W, 3]. This and all fields below follow from latents.json."""
    video: tuple[int, ...] = ()
    """Shape of the videos, [T, H, W, 3]."""
    audio: tuple[int, ...] = ()
    """Shape of the audio, [samples]."""
    frames_per_second: float = 0.0
    """Frames per second of the videos."""
    sample_rate: int = 0
    """Samples per second of the audio."""
    derived: ClassVar[tuple[str, ...]] = ("image", "video", "audio", "frames_per_second", "sample_rate")
    licence: ClassVar[str] = "that of what was encoded"
    holds_latents: ClassVar[bool] = True
    varying_length: ClassVar[bool] = True

    def resolved(self, previous: Self | None = None) -> Self:
        """Returns a copy with shapes and rates of the media filled in from latents.json.

        Args:
          previous: settings of an interrupted run, whose shapes and rates are taken if all else is equal.

        Raises:
          UserError: latents.json does not exist or is incomplete.
        """
        self = super().resolved()
        if self.image or self.video or self.audio:
            return self
        if isinstance(previous, LatentFiles):
            if replace(self, **{name: getattr(previous, name) for name in self.derived}) == previous:
                return previous
        if not self.source:
            raise UserError("latent_files.source is empty; name the folder of your latents, such as --source ~/latents")
        from selfflow.data.latent_files.manifest import read_manifest

        manifest = read_manifest(Path(self.folder()))
        shapes = {modality: stream.media for modality, stream in manifest.streams.items()}
        rates = {"frames_per_second": manifest.frames_per_second, "sample_rate": manifest.sample_rate}
        return replace(self, **shapes, **rates)

    def contents(self, data_dir: Path) -> tuple[list[File], list[Remark]]:
        """latents.json, since other scales give other records, and the files of latents."""
        from selfflow.data.latent_files.manifest import MANIFEST
        from selfflow.data.latent_files.read import SUFFIXES

        scanned, remarks = scan(self, (data_dir, data_dir / self.kind))
        manifest = [file for file in scanned if file.relative == MANIFEST]
        return manifest + [file for file in scanned if Path(file.relative).suffix.lower() in SUFFIXES], remarks

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media that were encoded, by modality, at the nominal length."""
        resolved = self.resolved()
        shapes = {modality: getattr(resolved, modality) for modality in ("video", "audio", "image")}
        return {modality: shape for modality, shape in shapes.items() if shape}
