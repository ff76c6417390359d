"""`selfflow data list | build | show | ids | verify | delete`: manages data sets on disk."""

import contextlib
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from selfflow.cli.folders import refuse_bucket
from selfflow.errors import UserError, check_at_least, did_you_mean
from selfflow.media import MEDIA
from selfflow.storage.paths import data_folder

if TYPE_CHECKING:
    from selfflow.data.built import BuiltDataset
    from selfflow.data.dataset import Dataset
    from selfflow.data.verify import Problem
    from selfflow.latents.delete.delete import DeletionReport

_LINES_PER_GROUP = 20

_ACTIONS = {
    "list": "print the data sets, and which configurations of each are built",
    "build": "build a data set; one that is built is not built again",
    "show": "print the card of a data set and write samples",
    "ids": "print the ids of all records, one on each line, as files of ids have them",
    "verify": "read a data set and its latents completely, and print the problems",
    "delete": "delete samples permanently from a data set and its latents",
}
_EXAMPLES = {
    "list": "selfflow data list",
    "build": "selfflow data build media --source ~/videos",
    "show": "selfflow data show collisions --count 3",
    "ids": "selfflow data ids media --source ~/videos > ids.txt",
    "verify": "selfflow data verify collisions",
    "delete": "selfflow data delete media --source ~/videos --ids withdrawn.txt",
}


@dataclass(frozen=True)
class NoOptions:
    """No flags."""


@dataclass(frozen=True)
class Build:
    """Flags of `selfflow data build`."""

    autoencoder: dict[str, str] = field(default_factory=lambda: dict.fromkeys(MEDIA, ""))
    """Autoencoder that encodes a modality after the build, NAME or NAME=PATH, such as sd-vae=sd-vae.safetensors.
    Experiments with the same autoencoders use these latents."""


@dataclass(frozen=True)
class Show:
    """Flags of `selfflow data show`."""

    out: Path
    """Output folder."""
    count: int = 6
    """Number of videos, audio clips and rows of images to write."""


@dataclass(frozen=True)
class Delete:
    """Flags of `selfflow data delete`."""

    ids: Path
    """File with the ids of the samples to delete, one per line, as `selfflow data ids` prints them."""


def main(arguments: list[str]) -> None:
    """Parses `ACTION [NAME] [--data-dir DIR] [--SETTING VALUE ...]` and runs the action."""
    if not arguments or arguments[0] in ("-h", "--help"):
        actions = "\n".join(f"  {name:<8} {text}" for name, text in _ACTIONS.items())
        print(f"usage: selfflow data ACTION [NAME] [--data-dir DIR] [--SETTING VALUE ...]\n\nactions:\n{actions}")
        print(f"\nexample:\n  {_EXAMPLES['build']}\n\n`selfflow data ACTION --help` prints more.")
        return
    action, *rest = arguments
    if action not in _ACTIONS:
        raise UserError(f"no action {action!r}; {did_you_mean(action, _ACTIONS)}; example: {_EXAMPLES['build']}")
    if action == "list":
        from selfflow.cli.listing import list_data

        list_data(rest, _EXAMPLES["list"])
        return
    from selfflow.data.catalogue import DATASETS

    if not rest or rest[0] in ("-h", "--help"):
        print(f"usage: selfflow data {action} NAME [--data-dir DIR] [--SETTING VALUE ...]\n\n{_ACTIONS[action]}")
        print(f"\nNAME: {', '.join(DATASETS)}, or tfds:IMAGENET2012 for a data set of TFDS")
        print(f"\nexample:\n  {_EXAMPLES[action]}\n\n`selfflow data {action} NAME --help` lists the flags.")
        if not rest:
            sys.exit(2)
        return
    settings, options, data_dir = _parse(action, rest)
    match action:
        case "build":
            _build(settings, options, data_dir)
        case "show":
            _show(settings, options, data_dir)
        case "ids":
            _ids(settings, data_dir)
        case "verify":
            _verify(settings, data_dir)
        case "delete":
            refuse_bucket(data_dir, "data delete")
            _delete(settings, options, data_dir)


def _parse(action: str, arguments: list[str]) -> tuple["Dataset", Any, Path]:
    """Parses the flags of an action; returns the settings of the data set, the options and the data folder."""
    from selfflow.data.catalogue import DATASETS

    name, *flags = arguments
    kind, _, tfds_name = name.partition(":")
    if kind not in DATASETS or (tfds_name and kind != "tfds"):
        raise UserError(f"no data set {name!r}; {did_you_mean(kind, DATASETS)}; example: {_EXAMPLES[action]}")
    default = DATASETS[kind](name=tfds_name) if tfds_name else DATASETS[kind]()
    options = {
        "show": Show(Path(f"{(tfds_name or kind).replace('/', '-').replace(':', '-')}-samples")),
        "delete": Delete(tyro.MISSING),
        "build": Build(),
    }.get(action, NoOptions())

    def read_flags(
        settings: Annotated[DATASETS[kind], tyro.conf.arg(name="")] = default,
        options: Annotated[type(options), tyro.conf.arg(name="")] = options,
        data_dir: Path | None = None,
    ) -> tuple[Any, Any, Path | None]:
        """Reads the flags.

        Args:
          settings: settings of the data set.
          options: options of the action.
          data_dir: folder for data sets and latents; by default $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return settings, options, data_dir

    settings, options, data_dir = tyro.cli(
        read_flags,
        prog=f"selfflow data {action} {name}",
        description=f"{_ACTIONS[action]}\n\nexample: {_EXAMPLES[action]}",
        args=flags,
    )
    return settings, options, data_folder(data_dir)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _build(settings: "Dataset", options: Build, data_dir: Path) -> None:
    from selfflow.autoencoders.parse import parse_autoencoder
    from selfflow.data.built import build

    autoencoders = {m: parse_autoencoder(text, m) for m, text in options.autoencoder.items() if text}
    settings = settings.resolved()
    built = build(settings, data_dir)
    for split, count in built.splits.items():
        print(f"{split:<12} {count} records")
    print(f"in {built.folder}")
    if not autoencoders:
        return

    from selfflow.cli.encode import print_latents
    from selfflow.config.shapes import modality_stream
    from selfflow.latents.encode import encode
    from selfflow.latents.fit_autoencoder import fit_autoencoder
    from selfflow.media import medium_of

    shapes = settings.media_shapes(built.folder)
    streams, fitted = {}, {}
    for m, config in autoencoders.items():
        if m not in shapes:
            raise UserError(f"--autoencoder.{m}: {settings.kind} has {' and '.join(shapes)}, and no {m}")
        # Latents do not depend on the patch size, which is a field of experiments; any value would do.
        patch = (1,) * (len(medium_of(m).latent_axes) - 1)
        streams[m] = modality_stream(settings, m, config, patch)
    for m, config in autoencoders.items():
        fitted[m] = fit_autoencoder(m, config, {settings.kind: built}, (), data_dir)
    print_latents("latents", encode(built, fitted, streams, None, data_dir))


def _show(settings: "Dataset", options: Show, data_dir: Path) -> None:
    from selfflow.data.built import build
    from selfflow.data.catalogue import card
    from selfflow.sampling.dataset_samples import write_dataset_samples

    check_at_least(options, "--", count=1)
    if settings.holds_latents:
        raise UserError(
            f"{settings.kind} has latents without media: `selfflow encode EXPERIMENT --inspect` decodes them"
        )
    built = build(settings, data_dir)
    print(card(settings.kind).strip() + "\n")
    print(f"{built.name}: {', '.join(f'{split} {count}' for split, count in built.splits.items())} records")
    print(f"in {built.folder}\n")
    samples = write_dataset_samples(built, options.out, options.count)
    for kind, records in samples.records.items():
        for i, record in enumerate(records):
            print(f"{kind} {i}: {_describe(record, built)}")
    names = ", ".join(path.name for path in samples.files)
    print(f"\n{_plural(len(samples.files), 'file')} in {options.out}: {names}")


def _describe(record: dict[str, Any], built: "BuiltDataset") -> str:
    """Formats id, labels and caption of a record, with class names if the data set has them."""
    from selfflow.data.verify import numbers_of
    from selfflow.latents.ids import format_id

    parts, labels = [format_id(record["id"])], numbers_of(record)
    del labels["quality"]
    for name, value in labels.items():
        # The metadata has the class names of a label `material` under the key `materials`.
        class_names = built.metadata.get(f"{name}s") or []
        is_named = isinstance(class_names, list) and 0 <= value < len(class_names)
        parts.append(f"{name} {value} ({class_names[value]})" if is_named else f"{name} {value}")
    caption = f': "{record["caption"]}"' if record.get("caption") else ""
    return ", ".join(parts) + caption


def _ids(settings: "Dataset", data_dir: Path) -> None:
    from selfflow.data.built import build
    from selfflow.latents.ids import format_id

    # Only ids are printed to standard output, in UTF-8, the encoding of files of ids in every locale.
    with contextlib.redirect_stdout(sys.stderr):
        built = build(settings, data_dir)
    sys.stdout.reconfigure(encoding="utf-8")
    for split in built.splits:
        records = built.records(split)
        for i in range(len(records)):
            print(format_id(records[i]["id"]))


def _verify(settings: "Dataset", data_dir: Path) -> None:
    from selfflow.data.built import build
    from selfflow.data.verify import Contents, verify_data
    from selfflow.latents.store import MANIFEST
    from selfflow.latents.verify import latents_folders, records_of, verify_latents
    from selfflow.progress import Progress
    from selfflow.storage.mirror import fetch_folder

    built, contents = build(settings, data_dir), Contents()
    # For a data folder in a bucket, the latents are first copied to this disk, so that `latents_folders` finds them.
    fetch_folder(data_dir / "latents", MANIFEST)
    total = sum(built.splits.values())
    with Progress("verify data set", total, unit="records") as progress:
        problems = verify_data(built, contents, progress.advance)
    count = _print_problems(f"data set {built.name}", total, problems, built.folder)
    for folder in latents_folders(data_dir, built.name):
        with Progress("verify latents", records_of(folder), unit="records") as progress:
            problems = verify_latents(folder, built, contents, progress.advance)
        count += _print_problems(f"latents {folder.name}", records_of(folder), problems, folder)
    if count:
        sys.exit(1)


def _print_problems(part: str, records: int, problems: list["Problem"], folder: Path) -> int:
    """Prints the problems of a data set or of a folder of latents; returns their number, without notes."""
    count = sum(not problem.kind.note for problem in problems)
    print(f"{part}: {_plural(records, 'record')}, {_plural(count, 'problem') if count else 'no problems'}")
    by_kind = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    for kind, group in by_kind.items():
        print(f"  {'note: ' if kind.note else ''}{kind.name} ({len(group)}):")
        for problem in group[:_LINES_PER_GROUP]:
            print(f"    {problem}")
        if len(group) > _LINES_PER_GROUP:
            print(f"    and {len(group) - _LINES_PER_GROUP} more")
        print(f"    remedy: {kind.remedy.format(folder=folder)}")
    return count


def _delete(settings: "Dataset", options: Delete, data_dir: Path) -> None:
    from selfflow.data.built import build
    from selfflow.latents.delete.delete import delete_samples
    from selfflow.latents.ids import read_ids
    from selfflow.progress import Progress

    ids = read_ids(options.ids)
    built = build(settings, data_dir)
    # Each record is read twice: to delete samples, and to verify that they are absent.
    with Progress("delete", 2 * sum(built.splits.values()), unit="records") as progress:
        report = delete_samples(built, ids, data_dir, progress.advance)
    _print_deleted(report, ids)
    _print_remaining(report, data_dir)
    if report.left:
        sys.exit(1)


def _print_deleted(report: "DeletionReport", ids: set[str]) -> None:
    from selfflow.latents.ids import format_ids

    if report.before:
        state = "it was interrupted and is finished now" if report.resumed else "already complete"
        print(f"deletion of these {len(ids)} ids, {report.before}: {state}")
    count = sum(report.removed.values())
    if count or not report.before:
        splits = ", ".join(f"{split} {number}" for split, number in report.removed.items())
        print(f"{report.built.name}: {_plural(count, 'record')} deleted{f' ({splits})' if splits else ''}")
    for name, number in report.latents.items():
        print(f"latents {name}: {_plural(number, 'record')} deleted; their statistics are unchanged")
    for name in report.cleared:
        print(f"latents {name}: incomplete; the shards so far are deleted and will be encoded again")
    if report.earlier and not report.before:
        print(f"{report.earlier} of {len(ids)} ids were deleted earlier")
    if report.siblings:
        shown = format_ids(report.siblings)
        print(f"other clips of the same files remain, and may overlap: {len(report.siblings)} ({shown})")
    if report.left:
        print("NOT absent: the ids remain in")
        for line in report.left:
            print(f"  {line}")
        return
    print("verified absent: no record, index or file of the data set and its latents contains any of the ids")
    # Short ids can occur in unrelated bytes by chance.
    short = [name for name in ids if len(name.encode()) < 8]
    if short:
        print(f"  ({len(short)} ids shorter than 8 bytes were compared with all ids, not searched for in all bytes)")


def _print_remaining(report: "DeletionReport", data_dir: Path) -> None:
    """Prints where copies of the samples may remain outside of the data set and its latents."""
    print("\nnot deleted:")
    source = report.built.settings.source_folder(data_dir)
    if source:
        print(f"- the sources in {source}: delete the samples there, too; building the data set again reads them")
    else:
        print(f"- deleting {report.built.folder} and building again generates these samples again")
    print("- images, video and audio that `data show` and runs wrote, ids in logs of runs, and the file of ids itself")
    print("- other builds of this data set, latents and features elsewhere, backups, deleted blocks of the disk")
    if report.fitted:
        print("- autoencoders fitted to a few hundred records, which may include these samples:")
        for path in report.fitted:
            print(f"    {path}")
        print("  delete them (with their .json) and the latents of this data set: both are computed again")
    print("- runs that were trained before; those on these latents cannot resume")
