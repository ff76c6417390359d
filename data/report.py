"""A report of the records and omissions of every file: collected during the build, stored with the data set."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "report.json"
CONTENTS = ("video with audio", "video", "audio", "image")
"""Possible contents of a record, in the order of the report's columns."""
_LINES_PER_GROUP = 20


@dataclass(frozen=True)
class Remark:
    """The reason why a file was skipped or used in part; `detail` differs between files of the same reason."""

    file: str
    reason: str
    detail: str = ""


class Unusable(Exception):
    """A file, or a part of it, that yields no record.

    Attributes:
      reason: reason, equal for all files with the same problem.
      detail: details of this file; may be "".
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Notes:
    """Remarks on one file, collected by its decoder: statements, and things that are counted."""

    def __init__(self):
        self._remarks: list[tuple[str, str]] = []
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, reason: str, detail: str = "") -> None:
        """Adds a remark."""
        self._remarks.append((reason, detail))

    def count(self, reason: str, unit: str) -> None:
        """Adds 1 to the number of a reason, whose detail is "NUMBER UNIT"."""
        self._counts[reason, unit] += 1

    def remarks(self, file: str) -> list[Remark]:
        """Returns all remarks, as remarks on `file`."""
        remarks = [Remark(file, reason, detail) for reason, detail in self._remarks]
        for (reason, unit), number in self._counts.items():
            remarks.append(Remark(file, reason, f"{number} {unit}"))
        return remarks


@dataclass
class Report:
    """The report of one build.

    Attributes:
      source: folder of the files.
      date: date of the build, ISO 8601.
      settings: settings of the data set.
      files: number of files in the folder.
      used: number of files that yielded a record.
      records: records[split][content] is the number of records with this content (see CONTENTS).
      notes: statements about the whole data set.
      skipped: remarks on files that yielded no record.
      partial: remarks on files that were used in part.
    """

    source: str
    date: str
    settings: dict[str, Any]
    files: int = 0
    used: int = 0
    records: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[Remark] = field(default_factory=list)
    partial: list[Remark] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes `report.json` into the folder of the data set."""
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_report(builder) -> dict[str, Any]:
    """Returns the report of a built data set, as a dict with the fields of `Report`.

    Args:
      builder: TFDS builder of the data set, from `selfflow.data.built.load_builder`.
    """
    return json.loads((Path(builder.data_path) / FILE).read_text(encoding="utf-8"))


def format_report(report: dict[str, Any]) -> str:
    """Returns the report as text: files, records by split, then skipped and partly used files grouped by reason."""
    skipped = len({remark["file"] for remark in report["skipped"]})
    partial = len({remark["file"] for remark in report["partial"]})
    lines = [
        f"{report['source']}: {report['used']} of {report['files']} files used, {partial} of them in part, "
        f"{skipped} skipped",
        "",
        *_table(report["records"]),
    ]
    if report["notes"]:
        lines += ["", *report["notes"]]
    for title in ("skipped", "partial"):
        lines += _groups(title, report[title])
    return "\n".join(lines)


def _table(records: dict[str, dict[str, int]]) -> list[str]:
    """Formats the number of records as a table with a row for each split and a column for each content."""
    contents = list(CONTENTS)
    for counts in records.values():
        contents += [content for content in counts if content not in contents]
    rows = [f"{'records':<12}" + "".join(f"{content:>18}" for content in contents)]
    for split, counts in records.items():
        rows.append(f"{split:<12}" + "".join(f"{counts.get(content, 0):>18}" for content in contents))
    return rows


def _groups(title: str, remarks: list[dict[str, str]]) -> list[str]:
    """Remarks grouped by their reason, the most frequent first."""
    groups: dict[str, list[dict[str, str]]] = {}
    for remark in remarks:
        groups.setdefault(remark["reason"], []).append(remark)
    lines = []
    # The most frequent reason is the one that a user should see first.
    for reason, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines += ["", f"{title}, {reason}: {len(group)} {'file' if len(group) == 1 else 'files'}"]
        for remark in group[:_LINES_PER_GROUP]:
            lines.append(f"  {remark['file']}" + (f": {remark['detail']}" if remark["detail"] else ""))
        if len(group) > _LINES_PER_GROUP:
            lines.append(f"  and {len(group) - _LINES_PER_GROUP} more, all in {FILE}")
    return lines
