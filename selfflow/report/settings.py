"""The settings in which arms differ, and the code, packages, devices and data of each run."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff
from selfflow.report.sessions import sessions
from selfflow.report.study import Member, Study
from selfflow.run.arms import differing_fields

# Arms that differ in one of these have held-out flow losses of different clips, latents or noise levels.
TASK_FIELDS = ("data.", "autoencoders.", "patch.", "schedule.tau.", "exclude")
# Fields of a mixture component that change how often it is drawn, and not its task.
_SHARES = ("weight", "batch_size")


class Origin(NamedTuple):
    """Code, packages, devices and data of a run.

    Attributes:
      member: the run.
      commits: commits of the code, in the order of its sessions, with a note on uncommitted changes.
      versions: versions of selfflow, Python and packages, in its last session.
      devices: devices in its last session.
      data: hashes of the records and latents that it was trained on.
      started_from: the run whose weights it started from; empty for none.
    """

    member: Member
    commits: tuple[str, ...]
    versions: str
    devices: str
    data: str
    started_from: str


def differences(study: Study) -> dict[str, dict[str, Any]]:
    """{field: {arm: value}} of the fields in which arms differ, except seeds; None if an arm has no such field."""
    experiments: dict[str, Experiment] = {}
    for member in study.members:
        if member.run is not None:
            # Runs of an arm differ in their seeds alone: the first stands for all.
            experiments.setdefault(member.arm, member.run.experiment)
    if len(experiments) < 2:
        return {}
    arms = [arm for arm in study.arms if arm in experiments]
    base = experiments[study.baseline if study.baseline in experiments else arms[0]]
    base_values: dict[str, Any] = {}
    arm_values: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for arm in arms:
        # `diff` has the values of all fields, also of seeds; `differing_fields` has the names without seeds.
        names.update(differing_fields(base, experiments[arm]))
        arm_values[arm] = {}
        for name, (old, new) in diff(base, experiments[arm]).items():
            base_values[name] = old
            arm_values[arm][name] = new
    values_by_name = {}
    for name in sorted(names):
        # An arm that does not differ from the base in a field has the value of the base.
        values_by_name[name] = {arm: arm_values[arm].get(name, base_values[name]) for arm in arms}
    return values_by_name


def other_tasks(differing: Iterable[str], name: str) -> list[str]:
    """The differing fields that change the task of a mixture component, so that losses of arms are not comparable.

    Args:
      differing: names of fields, as in `differences`.
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
    # A resumed run may have changed machines: packages and devices are those that its last step ran on.
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
