"""Settings in which arms differ, and code, packages, devices and data of each run."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff
from selfflow.report.sessions import sessions
from selfflow.report.study import Member, Study
from selfflow.run.arms import differing_fields

# Fields that affect the clips, latents or noise levels of held-out flow losses. If arms differ in one of these fields,
# their losses are not comparable.
TASK_FIELDS = ("data.", "autoencoders.", "patch.", "schedule.tau.", "exclude")
# Fields of a mixture component that affect its share of the samples, but not its task.
_SHARES = ("weight", "batch_size")


class Origin(NamedTuple):
    """Code, packages, devices and data of a run.

    Attributes:
      member: the run.
      commits: commits of the code in the order of sessions, with a note on uncommitted changes.
      versions: versions of selfflow, Python and packages in the last session.
      devices: devices of the last session.
      data: hashes of the records and latents of the training data.
      started_from: run that provided the initial weights; empty for none.
    """

    member: Member
    commits: tuple[str, ...]
    versions: str
    devices: str
    data: str
    started_from: str


def differences(study: Study) -> dict[str, dict[str, Any]]:
    """Returns the fields in which arms differ, except seeds, {field: {arm: value}}; a missing field has value None."""
    experiments: dict[str, Experiment] = {}
    for member in study.members:
        if member.run is not None:
            # Runs of an arm differ only in their seeds, so the first represents all of them.
            experiments.setdefault(member.arm, member.run.experiment)
    if len(experiments) < 2:
        return {}
    arms = [arm for arm in study.arms if arm in experiments]
    base = experiments[study.baseline if study.baseline in experiments else arms[0]]
    base_values: dict[str, Any] = {}
    arm_values: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for arm in arms:
        # `diff` returns the values of all differing fields; `differing_fields` the names without seeds.
        names.update(differing_fields(base, experiments[arm]))
        arm_values[arm] = {}
        for name, (old, new) in diff(base, experiments[arm]).items():
            base_values[name] = old
            arm_values[arm][name] = new
    values_by_name = {}
    for name in sorted(names):
        # An arm that is missing in `arm_values` has the value of the base.
        values_by_name[name] = {arm: arm_values[arm].get(name, base_values[name]) for arm in arms}
    return values_by_name


def other_tasks(differing: Iterable[str], name: str) -> list[str]:
    """Returns the differing fields that affect the task of a component, so that losses of arms are not comparable.

    Args:
      differing: names of differing fields, as in `differences`.
      name: name of the component.
    """
    component = f"mixture.{name}."
    fields = []
    for field in differing:
        if field.startswith(component):
            if field.removeprefix(component) not in _SHARES:
                fields.append(field)
        elif field.startswith(TASK_FIELDS):
            fields.append(field)
    return fields


def origins(study: Study) -> list[Origin]:
    """Returns the origin of each run that was started.

    Raises:
      UserError: if a `provenance.json` is missing or damaged.
    """
    return [_origin(member) for member in study.members if member.run is not None]


def _origin(member: Member) -> Origin:
    provenance, all_sessions = member.run.provenance(), sessions(member.run)
    commits: dict[str, None] = {}  # an ordered set
    for session in all_sessions:
        commits[_commit(session)] = None
    # A resumed run may have moved to another machine: packages and devices are those of its last session.
    last = all_sessions[-1] if all_sessions else {}
    packages = last.get("packages") or {}
    versions = {"selfflow": last.get("selfflow"), "Python": last.get("python"), **packages}
    devices = Counter(map(str, last.get("devices") or []))
    data = []
    for entry in (provenance.get("datasets") or {}).values():
        data.append(f"{entry.get('dataset')} ({entry.get('fingerprint')}), latents {entry.get('latents')}")
    return Origin(
        member,
        commits=tuple(commits),
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if version),
        devices=", ".join(f"{count} x {device}" for device, count in devices.items()),
        data="; ".join(data),
        started_from=str(provenance.get("started_from") or ""),
    )


def _commit(session: dict[str, Any]) -> str:
    commit = session.get("commit") or "no commit"
    return f"{commit} with uncommitted changes" if session.get("dirty") else commit
