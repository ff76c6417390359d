"""`selfflow data list | build | show | verify | delete`: data sets on disk."""

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from selfflow.cli.folders import refuse_bucket
from selfflow.errors import UserError, check_at_least, did_you_mean
from selfflow.storage.paths import data_folder

if TYPE_CHECKING:
    from selfflow.data.built import BuiltDataset
    from selfflow.data.verify import Problem
    from selfflow.latents.delete.delete import DeletionReport

_LINES_PER_GROUP = 20

_ACTIONS = {
    "list": "the data sets, and what is built of each",
    "build": "make a data set; what is already built is found again",
    "show": "tell of a data set, and write samples to look at and listen to",
    "verify": "read all of a data set and its latents, and say what is wrong",
    "delete": "remove samples for good, from a data set and its latents",
}
_EXAMPLES = {
    "list": "selfflow data list",
    "build": "selfflow data build media --source ~/videos",
    "show": "selfflow data show collisions --count 3",
    "verify": "selfflow data verify collisions",
    "delete": "selfflow data delete media --source ~/videos --ids withdrawn.txt",
}


@dataclass(frozen=True)
class NoOptions:
    """An action without flags of its own."""


@dataclass(frozen=True)
class Build:
    """Flags of `selfflow data build`."""

    autoencoder: dict[str, str] = field(default_factory=lambda: {"image": "", "video": "", "audio": ""})
    """Also encode a modality by an autoencoder, NAME or NAME=PATH, such as sd-vae=sd-vae.safetensors. An experiment
    with the same autoencoders finds the latents, and without further need of an experiment they can be copied."""


@dataclass(frozen=True)
class Show:
    """Flags of `selfflow data show`."""

    out: Path
    """Folder for the samples."""
    count: int = 6
    """Films, sounds and rows of stills to show."""


@dataclass(frozen=True)
class Delete:
    """Flags of `selfflow data delete`."""

    ids: Path
    """File with the ids of the samples to remove, one on each line."""


def main(arguments: list[str]) -> None:
    """Parses `ACTION [NAME] [--data-dir DIR] [--SETTING VALUE ...]` and does it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        actions = "\n".join(f"  {name:<8} {text}" for name, text in _ACTIONS.items())
        print(f"usage: selfflow data ACTION [NAME] [--data-dir DIR] [--SETTING VALUE ...]\n\nactions:\n{actions}")
        print(f"\nexample:\n  {_EXAMPLES['build']}\n\n`selfflow data ACTION --help` tells more.")
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
    if action == "delete":
        refuse_bucket(data_dir, "data delete")
    {"build": _build, "show": _show, "verify": _verify, "delete": _delete}[action](settings, options, data_dir)


def _parse(action: str, arguments: list[str]) -> tuple[Any, Any, Path]:
    """Settings of the data set, options of the action, data folder."""
    from selfflow.data.catalogue import DATASETS

    name, *flags = arguments
    kind, _, within = name.partition(":")
    if kind not in DATASETS or (within and kind != "tfds"):
        raise UserError(f"no data set {name!r}; {did_you_mean(kind, DATASETS)}; example: {_EXAMPLES[action]}")
    default = DATASETS[kind](name=within) if within else DATASETS[kind]()
    options = {
        "show": Show(Path(f"{(within or kind).replace('/', '-').replace(':', '-')}-samples")),
        "delete": Delete(tyro.MISSING),
        "build": Build(),
    }.get(action, NoOptions())

    def parsed(
        settings: Annotated[DATASETS[kind], tyro.conf.arg(name="")] = default,
        options: Annotated[type(options), tyro.conf.arg(name="")] = options,
        data_dir: Path | None = None,
    ) -> tuple[Any, Any, Path | None]:
        """Reads the flags.

        Args:
          settings: its settings.
          options: of the action.
          data_dir: folder for data sets and latents; by default $SELFFLOW_DATA or ~/.cache/selfflow.
        """
        return settings, options, data_dir

    settings, options, data_dir = tyro.cli(
        parsed,
        prog=f"selfflow data {action} {name}",
        description=f"{_ACTIONS[action]}\n\nexample: {_EXAMPLES[action]}",
        args=flags,
    )
    return settings, options, data_folder(data_dir)


def _counted(count: int) -> str:
    return f"{count} record{'s' * (count != 1)}"


def _built(settings: Any, data_dir: Path) -> "BuiltDataset":
    from selfflow.data.built import build

    return build(settings, data_dir)


def _build(settings: Any, options: Build, data_dir: Path) -> None:
    from selfflow.autoencoders.parse import parse_autoencoder

    chosen = {m: parse_autoencoder(text, m) for m, text in options.autoencoder.items() if text}
    settings = settings.resolved()
    built = _built(settings, data_dir)
    for split, count in built.splits.items():
        print(f"{split:<12} {count} records")
    print(f"in {built.folder}")
    if chosen:
        from selfflow.cli.encode import say_latents
        from selfflow.config.shapes import modality_stream
        from selfflow.latents.encode import encode
        from selfflow.latents.fit_autoencoder import fit_autoencoder

        shapes = settings.media_shapes(built.folder)
        for m in chosen:
            if m not in shapes:
                raise UserError(f"--autoencoder.{m}: {settings.kind} has {' and '.join(shapes)}, and not {m}")
        # How latents are cut into tokens is an experiment's matter.
        whole = {"image": (1, 1), "video": (1, 1, 1), "audio": (1,)}
        streams = {m: modality_stream(settings, m, config, whole[m]) for m, config in chosen.items()}
        fitted = {m: fit_autoencoder(m, config, {settings.kind: built}, (), data_dir) for m, config in chosen.items()}
        say_latents("latents", encode(built, fitted, streams, None, data_dir))


def _show(settings: Any, options: Show, data_dir: Path) -> None:
    from selfflow.cli.samples import write_samples
    from selfflow.data.catalogue import card

    check_at_least(options, "--", count=1)
    if settings.holds_latents:
        raise UserError(
            "these are latents, of media that are not there: `selfflow encode EXPERIMENT --inspect` draws them"
        )
    built = _built(settings, data_dir)
    print(card(settings.kind).strip() + "\n")
    print(f"{built.name}: {', '.join(f'{split} {count}' for split, count in built.splits.items())} records")
    print(f"in {built.folder}\n")
    write_samples(built, options.out, options.count)


def _verify(settings: Any, options: NoOptions, data_dir: Path) -> None:
    from selfflow.data.verify import Contents, verify_data
    from selfflow.latents.store import MANIFEST
    from selfflow.latents.verify import latents_folders, records_of, verify_latents
    from selfflow.progress import Progress
    from selfflow.storage.mirror import fetch_folder

    built, contents, wrong = _built(settings, data_dir), Contents(), 0
    fetch_folder(data_dir / "latents", MANIFEST)
    total = sum(built.splits.values())
    with Progress("verify data set", total, unit="records") as shown:
        problems = verify_data(built, contents, shown.advance)
    wrong += _report(f"data set {built.name}", total, problems, built.folder)
    for folder in latents_folders(data_dir, built.name):
        with Progress("verify latents", records_of(folder), unit="records") as shown:
            problems = verify_latents(folder, built, contents, shown.advance)
        wrong += _report(f"latents {folder.name}", records_of(folder), problems, folder)
    if wrong:
        sys.exit(1)


def _report(part: str, records: int, problems: list["Problem"], folder: Path) -> int:
    """Prints what was found in one part and returns the number of problems."""
    count = sum(not problem.kind.note for problem in problems)
    found = f"{count} problem{'s' * (count != 1)}" if count else "no problems"
    print(f"{part}: {_counted(records)}, {found}")
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.kind].append(problem)
    for kind, some in groups.items():
        print(f"  {'note: ' if kind.note else ''}{kind.name} ({len(some)}):")
        for problem in some[:_LINES_PER_GROUP]:
            print(f"    {problem}")
        if len(some) > _LINES_PER_GROUP:
            print(f"    and {len(some) - _LINES_PER_GROUP} more")
        print(f"    remedy: {kind.remedy.format(folder=folder)}")
    return count


def _delete(settings: Any, options: Delete, data_dir: Path) -> None:
    from selfflow.latents.delete.delete import delete_samples
    from selfflow.latents.ids import read_ids
    from selfflow.progress import Progress

    ids = read_ids(options.ids)
    built = _built(settings, data_dir)
    with Progress("delete", 2 * sum(built.splits.values()), unit="records") as shown:
        done = delete_samples(built, ids, data_dir, shown.advance)
    _print_deletion(done, ids, data_dir)
    if done.left:
        sys.exit(1)


def _print_deletion(done: "DeletionReport", ids: set[str], data_dir: Path) -> None:
    if done.before:
        state = "this was begun and interrupted; it is finished now" if done.resumed else "nothing was left to do"
        print(f"deletion of these {len(ids)} ids, {done.before}: {state}")
    count = sum(done.removed.values())
    if count or not done.before:
        parts = ", ".join(f"{split} {number}" for split, number in done.removed.items())
        print(f"{done.built.name}: {_counted(count)} removed{f' ({parts})' if parts else ''}")
    for name, number in done.latents.items():
        print(f"latents {name}: {_counted(number)} removed; their statistics stay as they were")
    for name in done.cleared:
        print(f"latents {name}: unfinished; what was encoded so far is deleted and will be encoded again")
    if done.missing:
        print(f"{len(done.missing)} of {len(ids)} ids are not there:")
        for name in done.missing:
            print(f"  {name}")
    if done.siblings:
        shown = ", ".join(done.siblings[:5]) + (", ..." if len(done.siblings) > 5 else "")
        print(f"other clips of the same files stay, and may show the same moments: {len(done.siblings)} ({shown})")
    if done.left:
        print("NOT absent: the ids still stand in")
        for line in done.left:
            print(f"  {line}")
    else:
        print("verified absent: no record, index or file of the data set and its latents holds any of the ids")
        if short := [name for name in ids if len(name.encode()) < 8]:
            print(
                f"  ({len(short)} ids shorter than 8 bytes were compared with all ids, not searched for in all bytes)"
            )
    print("\nwhat this cannot undo:")
    settings = done.built.settings
    source = settings.source_folder(data_dir)
    if source:
        print(
            f"- the sources in {source}: delete the samples there, too; a data set that is built anew reads them again"
        )
    else:
        print(f"- deleting {done.built.folder} and building again makes these samples again")
    print("- pictures and sounds that `data show` and runs wrote, ids in logs of runs, and the file of ids itself")
    print("- other builds of this data set, latents and features that lie elsewhere, backups, what a disk still holds")
    if done.fitted:
        print("- autoencoders that were fitted on a few hundred records, these samples perhaps among them:")
        for path in done.fitted:
            print(f"    {path}")
        print("  delete them (with their .json) and the latents of this data set, and both are made anew")
    print("- runs that were trained before; those on these latents cannot go on")
