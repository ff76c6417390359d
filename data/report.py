"""What became of every file: collected while building, kept with the data set, printed at the end."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "report.json"
RECORDS = ("video with sound", "video", "sound", "image")
_LINES_PER_GROUP = 20


@dataclass(frozen=True)
class Remark:
    """Why a file was skipped or used in part; `detail` is what differs between files of one reason."""

    file: str
    reason: str
    detail: str = ""


class Notes:
    """Remarks that one file's decoder makes on its way: facts, and things counted."""

    def __init__(self):
        self._details: dict[str, str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, reason: str, detail: str = "") -> None:
        self._details[reason] = detail

    def count(self, reason: str, unit: str) -> None:
        self._counts[reason, unit] += 1

    def remarks(self, file: str) -> list[Remark]:
        counted = [Remark(file, reason, f"{n} {unit}") for (reason, unit), n in self._counts.items()]
        return [Remark(file, reason, detail) for reason, detail in self._details.items()] + counted


@dataclass
class Report:
    """The account of one build. `clips[split][what]` counts records by what is in them (see RECORDS)."""

    source: str
    built: str
    settings: dict[str, Any]
    found: int = 0
    used: int = 0
    clips: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[Remark] = field(default_factory=list)
    partial: list[Remark] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_report(builder) -> dict[str, Any]:
    """The report of a built data set, as a dict with the fields of `Report`; `builder` is what `build` returned."""
    return json.loads((Path(builder.data_path) / FILE).read_text())


def format_report(report: dict[str, Any]) -> str:
    """The report as text: files, clips by split, then skipped and partly used files grouped by reason."""
    skipped = len({remark["file"] for remark in report["skipped"]})
    partial = len({remark["file"] for remark in report["partial"]})
    lines = [f"{report['source']}: {report['used']} of {report['found']} files used, {partial} of them in part, "
             f"{skipped} skipped"]  # fmt: skip
    kinds = dict.fromkeys([*RECORDS, *(what for counts in report["clips"].values() for what in counts)])
    lines += ["", f"{'clips':<12}" + "".join(f"{what:>18}" for what in kinds)]
    for split, counts in report["clips"].items():
        lines.append(f"{split:<12}" + "".join(f"{counts.get(what, 0):>18}" for what in kinds))
    if report["notes"]:
        lines += ["", *report["notes"]]
    for title in ("skipped", "partial"):
        groups: dict[str, list[dict[str, str]]] = {}
        for remark in report[title]:
            groups.setdefault(remark["reason"], []).append(remark)
        for reason, remarks in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines += ["", f"{title}, {reason}: {len(remarks)} {'file' if len(remarks) == 1 else 'files'}"]
            for remark in remarks[:_LINES_PER_GROUP]:
                lines.append(f"  {remark['file']}" + (f": {remark['detail']}" if remark["detail"] else ""))
            if len(remarks) > _LINES_PER_GROUP:
                lines.append(f"  and {len(remarks) - _LINES_PER_GROUP} more, all in {FILE}")
    return "\n".join(lines)
