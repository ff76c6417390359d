"""What the user gives a sample: `--context CASE[:NUMBERS][=FILE]`, read, checked, and made into a mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from selfflow import context
from selfflow.errors import UserError, did_you_mean
from selfflow.modality import Modality, modality_of

_SYNTAX = {
    "first_frame": "first_frame",
    "prefix": "prefix:SECONDS",
    "inpaint_time": "inpaint_time:FROM,TO (seconds, of what is missing)",
    "inpaint_region": "inpaint_region:LEFT,TOP,RIGHT,BOTTOM (0 to 1, of what is missing)",
}
_NUMBERS = {"first_frame": 0, "prefix": 1, "inpaint_time": 2, "inpaint_region": 4}


@dataclass(frozen=True)
class ContextRequest:
    """One `--context`.

    Attributes:
      text: as it was written.
      what: a modality, or another case of `context.CASES`.
      numbers: where the case has any: seconds, or sides of a rectangle.
      level: the tau that a modality is given at: at 0 it is held; above, samples start from it.
      file: where it comes from; None for the run's data.
    """

    text: str
    what: str
    numbers: tuple[float, ...] = ()
    level: float = 0.0
    file: Path | None = None

    @property
    def case(self) -> str:
        """The case of `context.CASES` that a run must have been trained for."""
        return self.what if self.what in _SYNTAX else "modality"

    def masks(self, modalities: Mapping[str, Modality]) -> dict[str, Bool[np.ndarray, "N"]]:
        """Which tokens of each modality are given."""
        streams = dict(modalities)
        if self.case == "modality":
            found = context.modality_context(streams, (self.what,))
        elif self.case == "first_frame":
            found = context.first_frame_context(streams)
        elif self.case == "inpaint_region":
            found = context.inpaint_region_context(streams, *self.numbers)
        elif self.case == "prefix":
            found = context.prefix_context(streams, 100 * self.numbers[0])
        else:
            found = context.inpaint_time_context(streams, *(100 * number for number in self.numbers))
        return {m: np.asarray(mask) for m, mask in found.items()}


def parse_context(text: str, known: tuple[str, ...]) -> ContextRequest:
    """Reads CASE[:NUMBERS][@TAU][=FILE], where CASE is a modality of `known`, first_frame, prefix, stretch or region.

    Raises:
      UserError: if it is none of these, or the numbers are not those of the case.
    """
    spec, equals, file = text.partition("=")
    if equals and not file:
        raise UserError(f"--context {text}: no file is named after the =")
    spec, at, level = spec.partition("@")
    what, _, arguments = spec.partition(":")
    if what not in (*known, *_SYNTAX):
        remedy = did_you_mean(what, (*known, *_SYNTAX))
        raise UserError(f"--context {text}: {what!r} is no modality of this run and no case; {remedy}")
    try:
        numbers = tuple(float(number) for number in arguments.split(",")) if arguments else ()
        tau = float(level) if at else 0.0
    except ValueError:
        raise UserError(f"--context {text}: {arguments or level!r} is no number") from None
    request = ContextRequest(text, what, numbers, tau, Path(file).expanduser() if file else None)
    _check(request)
    return request


def _check(request: ContextRequest) -> None:
    text, numbers = request.text, request.numbers
    if len(numbers) != _NUMBERS.get(request.what, 0):
        raise UserError(f"--context {text}: write {_SYNTAX.get(request.what, request.what)}")
    if request.what == "prefix" and not numbers[0] > 0:
        raise UserError(f"--context {text}: the seconds must be above 0")
    if request.what == "inpaint_time" and not 0 <= numbers[0] < numbers[1]:
        raise UserError(f"--context {text}: FROM must lie below TO, both in seconds from the start")
    if request.what == "inpaint_region" and not (
        0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1
    ):
        raise UserError(
            f"--context {text}: the sides are parts of width and height, 0 to 1, LEFT < RIGHT, TOP < BOTTOM"
        )
    if request.level and request.case != "modality":
        raise UserError(f"--context {text}: only a whole modality can be given at a noise level")
    if not 0 <= request.level < 1:
        raise UserError(f"--context {text}: the noise level must be at least 0 and below 1; at 1 nothing is given")


def check_trained(
    requests: tuple[ContextRequest, ...], modalities: Mapping[str, Modality], table: dict[str, float]
) -> None:
    """Refuses what a run was not trained to be given.

    Args:
      requests: all that is given to a sample.
      modalities: those of the component.
      table: `schedule.context` of the run.

    Raises:
      UserError: naming the field that would have trained it; or if nothing is left to generate, or given by nothing.
    """
    held = [request for request in requests if not request.level]
    cases = {request.case for request in held}
    for request in held:
        if not table.get(request.case):
            raise UserError(
                f"--context {request.text}: this run was not trained for it: its schedule.context lacks {request.case} "
                f"({context.CASES[request.case]}); train with it, as experiments/any_to_any.py does"
            )
    if len(held) > 1 and cases != {"modality"}:
        raise UserError(
            f"--context {' '.join(r.text for r in held)}: a run is trained for one case in a sample, or for some "
            "modalities whole, and not for both together; give one of them"
        )
    levels = {r.what: r.level for r in requests if r.level}
    started = [m for m in modalities if m not in {r.what for r in held}]
    if levels and (len(set(levels.values())) > 1 or set(levels) != set(started)):
        raise UserError(
            f"--context {' '.join(r.text for r in requests)}: samples start at one noise level: give all of "
            f"{', '.join(started)} at the same, or none"
        )
    if held:
        masks = merge_requests(tuple(held), modalities)
        if not masks:
            raise UserError(f"--context {held[0].text}: no token of {', '.join(modalities)} lies in it")
        if all(m in masks and masks[m].all() for m in modalities):
            raise UserError(f"--context {' '.join(r.text for r in held)}: nothing is left to generate")


def merge_requests(
    requests: tuple[ContextRequest, ...], modalities: Mapping[str, Modality]
) -> dict[str, Bool[np.ndarray, "N"]]:
    """The tokens that any of the requests holds, by modality; modalities without are left out."""
    masks = [request.masks(modalities) for request in requests if not request.level]
    together = {m: np.any([mask[m] for mask in masks], axis=0) for m in modalities} if masks else {}
    return {m: mask for m, mask in together.items() if mask.any()}


def choose_component(
    names: tuple[str, ...], requests: tuple[ContextRequest, ...], mixture: Mapping[str, tuple[str, ...]]
) -> tuple[str, tuple[ContextRequest, ...]]:
    """The set of the mixture that is to be sampled, and the requests as they are meant in it.

    Args:
      names: what is to be generated; by default what stands with what is given.
      requests: what is given; a picture that is given to a film is its first frame.
      mixture: modalities of each component.

    Raises:
      UserError: if there is no such set.
    """
    held = lambda meant: {request.what for request in meant if request.case == "modality"}
    if names:
        meant = tuple(_picture_of_film(request, names) for request in requests)
        return component_of((*names, *sorted(held(meant) - {*names})), mixture), meant
    for translate in (lambda request, modalities: request, _picture_of_film):
        for name, modalities in mixture.items():
            meant = tuple(translate(request, modalities) for request in requests)
            if held(meant) <= {*modalities}:
                return name, meant
    return component_of(tuple(sorted(held(requests))), mixture), requests


def component_of(names: tuple[str, ...], mixture: Mapping[str, tuple[str, ...]]) -> str:
    """The set of the mixture that has these modalities and no others.

    Raises:
      UserError: if there is none.
    """
    for name, modalities in mixture.items():
        if set(modalities) == {*names}:
            return name
    components = "; ".join(f"{name}: {', '.join(modalities)}" for name, modalities in mixture.items())
    raise UserError(
        f"--modality {','.join(names)}: this run was trained on other components ({components}); generate one of "
        "them, or give a part of it with --context"
    )


def _picture_of_film(request: ContextRequest, modalities: tuple[str, ...]) -> ContextRequest:
    if request.what == "image" and "image" not in modalities and any(modality_of(m) == "video" for m in modalities):
        if request.level:
            raise UserError(f"--context {request.text}: a film is given its first frame as it is, and not with noise")
        return ContextRequest(request.text, "first_frame", (), 0.0, request.file)
    return request
