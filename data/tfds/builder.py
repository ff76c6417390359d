"""Opens a prepared TFDS data set without TensorFlow, and prepares it where that is possible."""

import contextlib
import importlib
import sys
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import ReadOnlyBuilder

from selfflow.data.features import read_features
from selfflow.data.tfds import Tfds
from selfflow.data.tfds.locate import FORMAT, format_of, parse_name
from selfflow.data.writing import prepare, quiet
from selfflow.errors import UserError, did_you_mean


class PreparedBuilder(ReadOnlyBuilder, skip_registration=True):
    """A prepared data set, whose Video and Audio features are read as they are stored."""

    def _info(self) -> tfds.core.DatasetInfo:
        info = self._info_proto
        return tfds.core.DatasetInfo(
            builder=self,
            description=info.description,
            features=read_features(Path(self.data_dir)),
            license=info.redistribution_info.license,
            citation=info.citation,
            disable_shuffling=info.disable_shuffling,
        )


def build(settings: Tfds, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of the prepared data set; prepares it below `data_dir` if it is not prepared anywhere.

    Raises:
      UserError: there is no such data set, it is prepared in another format, or it cannot be prepared here; the
        message gives the command that prepares it.
    """
    with quiet():
        folder = settings.find(data_dir)
        if folder is None:
            folder = _prepare(settings, data_dir)
        file_format = format_of(folder)
        if file_format != FORMAT:
            raise UserError(
                f"tfds.name = {settings.name!r}: {folder} is prepared as {file_format}, which only TensorFlow reads; "
                f"prepare it in another folder on a machine with TensorFlow: {_command(settings, 'DIR')}, and set "
                "tfds.folder = DIR"
            )
        # Raises for fields that do not exist, before any record is read.
        fields = settings.fields(folder)
        if not settings.names_media:
            choice = ", ".join(f"{modality} = {path}" for modality, path in fields.media.items())
            print(f"tfds: {settings.name}: {choice}", file=sys.stderr)
        return PreparedBuilder(builder_dir=str(folder))


def _prepare(settings: Tfds, data_dir: Path) -> Path:
    """Prepares the data set below `data_dir`, if its builder runs without TensorFlow, and returns its folder."""

    def refusal(error: Exception) -> UserError:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        reason = reason.rsplit('}": ', 1)[-1]  # TFDS puts the arguments of the builder before what is wrong
        return UserError(
            f"tfds.name = {settings.name!r}: it is not prepared in {settings.folder or data_dir} and cannot be "
            f"prepared here ({reason[:160]}); on a machine with TensorFlow and a network, run: "
            f"{_command(settings, str(data_dir))}"
        )

    def make() -> tfds.core.DatasetBuilder:
        try:
            try:
                return tfds.builder(settings.name, data_dir=str(data_dir))
            except tfds.core.DatasetNotFoundError:
                _import(parse_name(settings.name).name)
                return tfds.builder(settings.name, data_dir=str(data_dir))
        except tfds.core.DatasetNotFoundError as error:
            names = {path.stem for path in Path(tfds.__file__).parent.glob("url_checksums/*.txt")}
            names |= set(tfds.list_builders(with_community_datasets=False))
            remedy = did_you_mean(parse_name(settings.name).name, sorted(names))
            raise UserError(
                f"tfds.name = {settings.name!r}: TFDS has no such data set; {remedy} "
                f"Or set tfds.folder to where it is prepared (it is not in {settings.folder or data_dir})"
            ) from error
        except Exception as error:  # an unknown config or version, a builder that needs TensorFlow
            raise refusal(error) from error

    def fill(builder: tfds.core.DatasetBuilder) -> None:
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            # TFDS prints its progress to stdout, which has the output of the command.
            with contextlib.redirect_stdout(sys.stderr):
                builder.download_and_prepare(file_format=FORMAT, download_config=config)
        except Exception as error:  # builders of TFDS raise errors of many types: no network, no TensorFlow, no files
            raise refusal(error) from error

    return Path(prepare(make, fill).data_dir)


def _import(name: str) -> None:
    """Imports the module of an older builder of TFDS, which registers it."""
    for path in sorted(Path(tfds.__file__).parent.glob(f"*/{name}*")):
        if path.stem == name and (path.suffix == ".py" or path.is_dir()):
            importlib.import_module(f"tensorflow_datasets.{path.parent.name}.{name}")


def _command(settings: Tfds, data_dir: str) -> str:
    return f"tfds build {settings.name} --file_format={FORMAT} --data_dir={data_dir}"
