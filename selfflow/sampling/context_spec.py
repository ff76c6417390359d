"""Context of samples as `--context CASE[:NUMBERS][@TAU][=FILE]`: parsed, checked, and turned into masks of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from selfflow import context
from selfflow.errors import UserError, did_you_mean
from selfflow.media import medium_of
from selfflow.modality import Modality, modality_of

_SYNTAX = {
    "first_frame": "first_frame",
    "prefix": "prefix:SECONDS",
    "inpaint_time": "inpaint_time:FROM,TO (seconds, to be generated)",
    "inpaint_region": "inpaint_region:LEFT,TOP,RIGHT,BOTTOM (0 to 1, to be generated)",
}
_NUMBERS = {"first_frame": 0, "prefix": 1, "inpaint_time": 2, "inpaint_region": 4}


@dataclass(frozen=True)
class ContextRequest:
    """One `--context` flag.

    Attributes:
      text: text of the flag.
      name: a modality, or a case of `context.CASES` other than "modality".
      numbers: arguments of the case: seconds, or sides of a rectangle.
      level: tau of a whole modality: at 0 it is context, above 0 samples start from it.
      file: file that the context comes from; None for the run's data.
    """

    text: str
    name: str
    numbers: tuple[float, ...] = ()
    level: float = 0.0
    file: Path | None = None

    @property
    def case(self) -> str:
        """The case of `context.CASES` that a run must be trained for."""
        return self.name if self.name in _SYNTAX else "modality"

    def masks(self, modalities: Mapping[str, Modality]) -> dict[str, Bool[np.ndarray, "N"]]:
        """Returns the mask of context tokens of each modality."""
        streams = dict(modalities)
        match self.case:
            case "modality":
                masks = context.modality_context(streams, (self.name,))
            case "first_frame":
                masks = context.first_frame_context(streams)
            case "inpaint_region":
                masks = context.inpaint_region_context(streams, *self.numbers)
            # Times of tokens are in units of 10 ms.
            case "prefix":
                masks = context.prefix_context(streams, 100 * self.numbers[0])
            case _:
                start, end = self.numbers
                masks = context.inpaint_time_context(streams, 100 * start, 100 * end)
        return {m: np.asarray(mask) for m, mask in masks.items()}


def parse_context(text: str, known: tuple[str, ...]) -> ContextRequest:
    """Parses CASE[:NUMBERS][@TAU][=FILE].

    Args:
      text: text of the flag.
      known: modalities that CASE may name, besides first_frame, prefix, inpaint_time and inpaint_region.

    Raises:
      UserError: if CASE is unknown, or has the wrong numbers.
    """
    # Split off the file first, since its name may contain the other separators.
    spec, equals, file = text.partition("=")
    if equals and not file:
        raise UserError(f"--context {text}: no file is named after the =")
    spec, at, level = spec.partition("@")
    name, _, arguments = spec.partition(":")
    if name not in (*known, *_SYNTAX):
        remedy = did_you_mean(name, (*known, *_SYNTAX))
        raise UserError(f"--context {text}: {name!r} is neither a modality of this run nor a case; {remedy}")
    try:
        numbers = tuple(float(number) for number in arguments.split(",")) if arguments else ()
        tau = float(level) if at else 0.0
    except ValueError:
        raise UserError(f"--context {text}: {arguments or level!r} is not a number") from None
    request = ContextRequest(text, name, numbers, tau, Path(file).expanduser() if file else None)
    _check(request)
    return request


def _check(request: ContextRequest) -> None:
    flag, numbers = f"--context {request.text}", request.numbers
    if len(numbers) != _NUMBERS.get(request.name, 0):
        raise UserError(f"{flag}: write {_SYNTAX.get(request.name, request.name)}")
    match request.name, numbers:
        case "prefix", (seconds,) if not seconds > 0:
            raise UserError(f"{flag}: the seconds must be above 0")
        case "inpaint_time", (start, end) if not 0 <= start < end:
            raise UserError(f"{flag}: FROM must be below TO, both in seconds from the start")
        case "inpaint_region", (left, top, right, bottom) if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise UserError(
                f"{flag}: the sides are fractions of width and height, 0 to 1, with LEFT < RIGHT and TOP < BOTTOM"
            )
    if request.level and request.case != "modality":
        raise UserError(f"{flag}: only a whole modality can have a noise level")
    if not 0 <= request.level < 1:
        raise UserError(f"{flag}: the noise level must be at least 0 and below 1; at 1 it is noise alone")


def check_trained(
    requests: tuple[ContextRequest, ...], modalities: Mapping[str, Modality], probabilities: Mapping[str, float]
) -> None:
    """Checks that a run was trained for the context of samples, and that tokens remain to be generated.

    Args:
      requests: all `--context` flags.
      modalities: modalities of the component.
      probabilities: probabilities of each case, `schedule.context` of the run.

    Raises:
      UserError: naming the case that `schedule.context` lacks; or if all tokens are context, or none.
    """
    # Requests with a noise level start samples from noisy media: they are not context, and need no training.
    clean = tuple(request for request in requests if not request.level)
    texts = " ".join(request.text for request in clean)
    for request in clean:
        if not probabilities.get(request.case):
            raise UserError(
                f"--context {request.text}: this run was not trained for it: its schedule.context lacks {request.case} "
                f"({context.CASES[request.case]}); train with it, as experiments/any_to_any.py does"
            )
    if len(clean) > 1 and any(request.case != "modality" for request in clean):
        raise UserError(
            f"--context {texts}: a run is trained for one case in a sample, or for some whole modalities, and not for "
            "both at once; give one of them"
        )
    _check_levels(requests, modalities)
    if not clean:
        return
    masks = merge_requests(clean, modalities)
    if not masks:
        raise UserError(
            f"--context {clean[0].text}: no token of {', '.join(modalities)} is part of it: give a larger part"
        )
    if all(m in masks and masks[m].all() for m in modalities):
        raise UserError(f"--context {texts}: nothing is left to generate: give less context")


def _check_levels(requests: tuple[ContextRequest, ...], modalities: Mapping[str, Modality]) -> None:
    """Checks that all generated modalities start at one noise level, the first tau of the solver."""
    levels: dict[str, float] = {}
    context_modalities: set[str] = set()
    for request in requests:
        if request.level:
            levels[request.name] = request.level
        else:
            context_modalities.add(request.name)
    generated = [m for m in modalities if m not in context_modalities]
    if levels and (len(set(levels.values())) > 1 or set(levels) != set(generated)):
        raise UserError(
            f"--context {' '.join(request.text for request in requests)}: samples start at one noise level: give all "
            f"of {', '.join(generated)} at the same, or none"
        )


def merge_requests(
    requests: tuple[ContextRequest, ...], modalities: Mapping[str, Modality]
) -> dict[str, Bool[np.ndarray, "N"]]:
    """Merges the context masks of all requests, for the modalities with context tokens."""
    merged = {m: np.zeros(modality.tokens, bool) for m, modality in modalities.items()}
    for request in requests:
        if not request.level:
            for m, mask_N in request.masks(modalities).items():
                merged[m] |= mask_N
    return {m: mask_N for m, mask_N in merged.items() if mask_N.any()}


def choose_component(
    names: tuple[str, ...], requests: tuple[ContextRequest, ...], mixture: Mapping[str, tuple[str, ...]]
) -> tuple[str, tuple[ContextRequest, ...]]:
    """Returns the component of the mixture to sample, and the requests in its modalities.

    An image as context of a component that has video and no images is the first frame of the video.

    Args:
      names: modalities to generate; by default all of the first component that has the context.
      requests: requests of the context.
      mixture: modalities of each component.

    Raises:
      UserError: if there is no such component.
    """
    if names:
        requests = tuple(_as_first_frame(request, names) for request in requests)
        others = _whole_modalities(requests) - set(names)
        return component_of((*names, *sorted(others)), mixture), requests
    for name, modalities in mixture.items():
        if _whole_modalities(requests) <= set(modalities):
            return name, requests
    # No component has the modalities of the context: perhaps one has with an image as the first frame of its video.
    for name, modalities in mixture.items():
        translated = tuple(_as_first_frame(request, modalities) for request in requests)
        if _whole_modalities(translated) <= set(modalities):
            return name, translated
    return component_of(tuple(sorted(_whole_modalities(requests))), mixture), requests


def component_of(names: tuple[str, ...], mixture: Mapping[str, tuple[str, ...]]) -> str:
    """Returns the component of the mixture that has exactly these modalities.

    Raises:
      UserError: if there is none.
    """
    for name, modalities in mixture.items():
        if set(modalities) == set(names):
            return name
    components = "; ".join(f"{name}: {', '.join(modalities)}" for name, modalities in mixture.items())
    raise UserError(
        f"--modality {','.join(names)}: this run was trained on other components ({components}); generate one of them, "
        "or give a part of it with --context"
    )


def _whole_modalities(requests: tuple[ContextRequest, ...]) -> set[str]:
    return {request.name for request in requests if request.case == "modality"}


def _as_first_frame(request: ContextRequest, modalities: tuple[str, ...]) -> ContextRequest:
    """Converts an image to the first frame of a video if there is video and no image."""
    is_image = request.case == "modality" and not medium_of(request.name).has_time
    has_video = any(modality_of(m) == "video" for m in modalities)
    if not is_image or request.name in modalities or not has_video:
        return request
    if request.level:
        raise UserError(f"--context {request.text}: the first frame of a video is clean: leave out the noise level")
    return ContextRequest(request.text, "first_frame", file=request.file)
