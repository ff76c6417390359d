"""What arms differ in, and how each member is made again."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from selfflow.config.files import diff
from selfflow.report.study import Member, Study, sessions
from selfflow.run.arms import differing_fields

# Where these differ, held-out flow losses are of other clips, of other latents, or at other noise levels.
_TASK = ("data.", "autoencoders.", "patch.", "schedule.tau.", "exclude")
_SHARES = ("weight", "batch_size")  # fields of a component that say how much of it is seen


class Origin(NamedTuple):
    """What a member was made with, for those who make it again.

    Attributes:
      member: which.
      commits: of the code, one for each time that it was trained; "with changes" where the clone had some.
      versions: of selfflow, Python and the packages, as the last time.
      devices: as the last time.
      data: records and latents that it was trained on.
      started_from: the run whose weights it began with; empty for none.
    """

    member: Member
    commits: tuple[str, ...]
    versions: str
    devices: str
    data: str
    started_from: str


def differences(study: Study) -> dict[str, dict[str, Any]]:
    """{field: {arm: value}} of the fields that arms differ in, seeds apart; None where an arm has no such field."""
    first = {m.arm: m.run.experiment for m in reversed(study.members) if m.run is not None}
    if len(first) < 2:
        return {}
    arms = [arm for arm in study.arms if arm in first]
    base = first[study.baseline if study.baseline in first else arms[0]]
    found = {arm: diff(base, first[arm]) for arm in arms}
    names = sorted({name for arm in arms for name in differing_fields(base, first[arm])})
    values = {name: next(one[name][0] for one in found.values() if name in one) for name in names}
    return {name: {arm: found[arm].get(name, (None, values[name]))[1] for arm in arms} for name in names}


def other_tasks(differing: Iterable[str], name: str) -> list[str]:
    """The fields among those that differ for which losses of arms on a component are losses of other tasks.

    Args:
      differing: fields, as `differences` names them.
      name: the component of the mixture.
    """
    own = f"mixture.{name}."
    return [
        field
        for field in differing
        if field.startswith(_TASK) or (field.startswith(own) and field.removeprefix(own) not in _SHARES)
    ]


def origins(study: Study) -> list[Origin]:
    """What each member that was begun was made with.

    Raises:
      UserError: if a `provenance.json` is missing or damaged.
    """
    found = []
    for member in study.members:
        if member.run is None:
            continue
        provenance, all_sessions = member.run.provenance(), sessions(member.run)
        last = all_sessions[-1] if all_sessions else {}
        packages = last.get("packages") or {}
        known = {"selfflow": last.get("selfflow"), "Python": last.get("python"), **packages}
        datasets = provenance.get("datasets") or {}
        data = [f"{s.get('dataset')} ({s.get('fingerprint')}), latents {s.get('latents')}" for s in datasets.values()]
        devices = [str(device) for device in last.get("devices") or []]
        found.append(
            Origin(
                member,
                tuple(dict.fromkeys(_commit(session) for session in all_sessions)),
                ", ".join(f"{name} {version}" for name, version in known.items() if version),
                ", ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)),
                "; ".join(data),
                str(provenance.get("started_from") or ""),
            )
        )
    return found


def _commit(session: dict[str, Any]) -> str:
    commit = session.get("commit")
    return f"{commit or 'no commit'}{' with changes' if session.get('dirty') else ''}"
