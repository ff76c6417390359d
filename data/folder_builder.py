"""The TFDS builder of data sets made of a folder of the user's files."""

import datetime
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from selfflow.data.folder import File, FolderSettings, fingerprint, position, split_of
from selfflow.data.report import FILE, Notes, Remark, Report, Unusable, format_report, read_report
from selfflow.data.writing import Config, RecordsBuilder, Shards, prepare, quiet
from selfflow.errors import UserError
from selfflow.progress import Progress

SPLITS = ("train", "validation", "test")


class FileRecord(NamedTuple):
    """A record of a file, and what it contains (see `selfflow.data.report.CONTENTS`)."""

    content: str
    record: dict[str, Any]


class FolderBuilder(RecordsBuilder, skip_registration=True):
    """Builds the records of all files in random order, and reports on every file.

    A data set defines `name`, `_info`, `records_of` and the two phrases.

    Args:
      files: files of the folder; none to open a prepared data set.
      remarks: remarks on files that cannot be opened.
    """

    empty: ClassVar[str] = "it is empty"
    """Reason of the error if the folder has no files."""
    remedy: ClassVar[str] = ""
    """Remedy in that error: the files to add."""

    def __init__(self, *, files: list[File] = (), remarks: list[Remark] = (), **kwargs):
        self.files, self.remarks = files, remarks
        super().__init__(**kwargs)

    def records_of(self, file: File, notes: Notes) -> Iterator[FileRecord]:
        """Yields the records of one file; omissions are added to `notes`.

        Raises:
          Unusable: the file yields no further records. Other exceptions are reported, too.
        """
        raise NotImplementedError

    def split_of(self, file: File) -> str | None:
        """Returns the split of a file, or None to leave the file out, for which a subclass adds a remark."""
        settings = self.builder_config.settings
        return split_of(file.relative, settings.seed, settings.validation_fraction, settings.test_fraction)

    def notes(self, splits: Collection[str]) -> list[str]:
        """Statements about the whole data set with records in these splits."""
        settings, notes = self.builder_config.settings, []
        for split, share in (("validation", settings.validation_fraction), ("test", settings.test_fraction)):
            if share and split not in splits:
                notes.append(f"no split {split}: {self.report.used} files are too few for a fraction of {share:g}")
        return notes

    def records(self) -> Iterator[tuple[str, dict]]:
        settings = self.builder_config.settings
        self._contents: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._ids: set[str] = set()
        self.report = Report(
            source=settings.folder(),
            date=datetime.datetime.now(datetime.UTC).isoformat(),
            settings=asdict(settings),
            files=len(self.files),
            skipped=list(self.remarks),
        )
        # Another seed than that of the splits, so that the order is independent of the split.
        files = sorted(self.files, key=lambda file: position(file.relative, settings.seed + 1))
        with Progress(self.name, total=len(files), unit="files") as progress:
            for file in files:
                split = self.split_of(file)
                if split is not None:
                    for count, record in enumerate(self._records_and_report(file, split), start=1):
                        yield split, record
                        progress.advance(0, note=f"{file.relative[-40:]} {count} records")
                progress.advance()

    def _records_and_report(self, file: File, split: str) -> Iterator[dict[str, Any]]:
        """Yields the records of a file; its problems are added to the report."""
        notes, count, problem = Notes(), 0, None
        try:
            for content, record in self.records_of(file, notes):
                # Such as of the names b"\xff" and r"\xff": excluding or deleting one would affect the other.
                if record["id"] in self._ids:
                    raise Unusable("has the id of another record", f"{record['id']}: rename the file")
                self._ids.add(record["id"])
                self._contents[split][content] += 1
                count += 1
                yield record
        except Unusable as error:
            problem = Remark(file.relative, error.reason, error.detail)
        except Exception as error:  # decoders raise errors of many types, and one file must not end the build
            problem = Remark(file.relative, "unreadable", f"{type(error).__name__}: {error}".splitlines()[0])
        remarks = notes.remarks(file.relative) + ([problem] if problem else [])
        # Remarks on a file without a record are the reasons why it was skipped.
        self.report.used += count > 0
        (self.report.partial if count else self.report.skipped).extend(remarks)

    def split_parts(self, written: dict[str, Shards]) -> dict[str, list[Shards]]:
        """Returns the parts of each split that has records; the split train always has some."""
        report = self.report
        sources = {split: [split] for split in SPLITS if split in written}
        if not sources:
            raise UserError(f"nothing in {report.source} can be used {self._reasons()}{self.remedy}")
        # Training needs the split, and few files may all be drawn for other splits.
        if "train" not in sources:
            sources = {"train": list(sources)}
            report.notes.append("the split train would be empty: all files are in train")
        report.notes += self.notes(sources)
        for split, parts in sources.items():
            report.records[split] = dict(sum((self._contents[part] for part in parts), Counter()))
        return {split: [written[part] for part in parts] for split, parts in sources.items()}

    def _reasons(self) -> str:
        """Returns the reasons why files were skipped, the most frequent first, and the first detail."""
        reasons = Counter(remark.reason for remark in self.report.skipped).most_common()
        text = ", ".join(f"{count} {reason}" for reason, count in reasons) or self.empty
        details = [f"{remark.file}: {remark.detail}" for remark in self.report.skipped if remark.detail]
        return f"({text}); the first: {details[0]}" if details else f"({text})"

    def write_files(self, folder: Path) -> None:
        self.report.write(folder)


Builder = TypeVar("Builder", bound=FolderBuilder)


def open_builder(
    builder: type[Builder], settings: FolderSettings, data_dir: Path, name: str, **arguments: Any
) -> Builder:
    """Returns a builder of the data set whose config has some name; `arguments` are needed to build it."""
    config = Config(name=name, settings=settings)
    return builder(data_dir=str(data_dir), config=config, file_format="array_record", **arguments)


def build_folder(
    builder: type[Builder], settings: FolderSettings, data_dir: Path, identity: list[File], **arguments: Any
) -> Builder:
    """Builds the data set of a folder and prints its report, or opens it if it exists.

    Args:
      builder: class of the builder.
      settings: settings of the data set.
      data_dir: folder of data sets.
      identity: files whose paths, sizes and times identify the contents of the folder.
      **arguments: arguments of the builder.
    """
    title = (settings.name or Path(settings.folder()).name).lower()
    slug = re.sub(r"[^a-z0-9]+", "_", title).strip("_")[:40] or settings.kind
    # The settings and the contents of the folder identify the data set; the title only helps to find it.
    name = f"{slug}-{settings.key()}-{fingerprint(identity)}"
    with quiet():
        existing = open_builder(builder, settings, data_dir, name)
        if existing.is_prepared():
            return existing
    prepared = prepare(lambda: open_builder(builder, settings, data_dir, name, **arguments))
    print(format_report(read_report(prepared)))
    return prepared


def open_newest(builder: type[Builder], settings: FolderSettings, data_dir: Path) -> Builder:
    """Opens the last data set that was built with these settings from a folder that does not exist; prints a line.

    Raises:
      UserError: none was built.
    """
    with quiet():
        return open_builder(builder, settings, data_dir, _newest_config(builder, settings, data_dir))


def _newest_config(builder: type[FolderBuilder], settings: FolderSettings, data_dir: Path) -> str:
    reports = data_dir.glob(f"{builder.name}/*-{settings.key()}-*/{builder.VERSION}/{FILE}")
    configs = [(json.loads(path.read_text(encoding="utf-8"))["date"], path.parent.parent.name) for path in reports]
    source = settings.folder() or settings.name
    if not configs:
        missing = f"the folder {source} does not exist" if settings.source else f"no data set {source!r} was built"
        raise UserError(
            f"{missing}, and {data_dir} holds no data set of it with these settings; check {settings.kind}.source"
        )
    # Dates in ISO 8601 sort as text.
    date, name = max(configs)
    print(
        f"{settings.kind}: {source} does not exist; using the data set built from it at {date[:19]} UTC",
        file=sys.stderr,
    )
    return name
