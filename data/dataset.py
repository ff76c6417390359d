"""The protocol of data sets. Importing this module is cheap."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from selfflow.data.features import read_features

if TYPE_CHECKING:
    import numpy as np

TargetKind = Literal["class", "number", "time_step", "token"]
"""The kind of a probe target: a class or a number of each clip, a number of each time step, or a vector of each
token of some tokens."""


class TokenTargets(NamedTuple):
    """Probe targets of M tokens of one clip.

    Attributes:
      tokens: indices of the tokens in row-major order, int [M].
      values: targets by name, float32 [M, D].
    """

    tokens: "np.ndarray"
    values: "dict[str, np.ndarray]"


class ProbeTargets(Protocol):
    """Probe targets computed from the raw records of a data set, in addition to its labels.

    Attributes:
      kinds: kind of each target, by its name.
      columns: (target, source) of each column of the probe table at the end of training. A target is one of `kinds`
        but of no time step, or a label that `of_clip` returns; a source is "video", "audio" or "both".
      features: features of a record that the methods read.
      seconds: duration of a record. The targets describe whole records, not cropped ones.
      box: side of the square that the video shows, in units of positions.
    """

    kinds: Mapping[str, TargetKind]
    columns: tuple[tuple[str, str], ...]
    features: tuple[str, ...]
    seconds: float
    box: float

    def of_clip(self, record: Mapping[str, Any]) -> dict[str, int | float]:
        """Targets of kind `class` and `number`, and labels. `NAME/PART` is one of several values of the target NAME,
        whose scores are averaged."""
        ...

    def of_time_steps(self, record: Mapping[str, Any], bounds: "np.ndarray") -> "dict[str, np.ndarray]":
        """Targets of kind `time_step` by name, float32 [W], for the W steps between bounds [W + 1] in seconds."""
        ...

    def of_tokens(self, record: Mapping[str, Any], grid: tuple[int, int, int]) -> TokenTargets:
        """Targets of kind `token`, for those video tokens of a grid (frames, height, width) that have one."""
        ...

    def oracle_features(self, record: Mapping[str, Any]) -> "np.ndarray":
        """Features of the true motion, float32 [F]: a classifier of them is an upper bound for probes of video."""
        ...


class Dataset(Protocol):
    """A data set: the settings that define its records, a frozen dataclass that inherits from this class.

    The folder `data/KIND/` has the settings, the card `README.md` and `builder.py`, whose `build(settings, data_dir)`
    returns a prepared TFDS builder (see `selfflow.data.built`). The settings import neither TFDS nor a simulator.

    Attributes:
      kind: name of the data set. A `Literal` field, which identifies the class in `experiment.json`.
      name: name that the user or a catalogue gives to the data; "" where `kind` identifies it.
      licence: licence of the records, written to provenance and model cards.
      frames_per_second: frames per second of the videos; 0 without video.
      sample_rate: samples per second of the audio; 0 without audio.
      holds_latents: whether records hold latents in place of media.
      varying_length: whether video and audio records may differ in length from `media_shapes`.
      ground_truth: probe targets computed from raw records; None if the labels are all there is.
      verifier: name of the checks of generated clips in `selfflow.evaluation` that need no reference; "" for none.
      id_prefix: text that decoding puts before the stored id of a record.
      package: package that the builder needs beyond those of the project; "" for none.
      extra: extra of the project that installs it.
    """

    kind: str
    name: str = ""
    licence: str
    frames_per_second: float = 0.0
    sample_rate: int = 0
    holds_latents: ClassVar[bool] = False
    varying_length: ClassVar[bool] = False
    ground_truth: ProbeTargets | None = None
    verifier: str = ""
    id_prefix: str = ""
    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Nominal shapes of the media of a record: `image` [H, W, 3], `video` [T, H, W, 3], `audio` [samples].

        Args:
          folder: folder of the prepared data set. Data sets whose modalities follow from what is stored read it.

        Raises:
          UserError: the shapes follow from files that do not exist.
        """
        ...

    def resolved(self, previous: "Self | None" = None) -> Self:
        """Returns a copy with fields filled in from the source, so that a run does not need the source.

        Args:
          previous: settings of an interrupted run, whose fields are taken if they are of the same source.

        Raises:
          UserError: the source is missing or damaged.
        """
        del previous
        return self

    def source_folder(self, data_dir: Path) -> str:
        """Returns the folder of the original files, which a new build reads again; "" for generated data."""
        del data_dir
        return ""

    def source_changed(self, folder: Path) -> bool:
        """Returns whether the original files exist and differ from those that the data set in `folder` was built
        from."""
        del folder
        return False

    def decoder(self, folder: Path) -> Callable[[bytes], dict[str, Any]]:
        """Returns a function from the serialized records of the prepared data set in `folder` to records."""
        features = read_features(folder)

        def decode(raw: bytes) -> dict[str, Any]:
            record = features.deserialize_example_np(raw)
            return {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}

        return decode

    def decoding_options(self) -> dict[str, Any] | None:
        """Settings that change how the same stored records are decoded; None if the config name identifies them."""
        return None
