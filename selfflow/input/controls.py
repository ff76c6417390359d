"""Controls: batches in which one modality tells less of another than it could, and nothing else is changed."""

import math
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError
from selfflow.input.mixture import Component
from selfflow.modality import Modality

if TYPE_CHECKING:
    from selfflow.input.reader import Reader


def shuffled(samples: Any, records: Any, others: Any, reader: "Reader", modalities: tuple[str, ...]) -> Any:
    """The grain.MapDataset of samples some modalities of which come from other records.

    Args:
      samples, records: what is drawn, and the records that it was read from, of which there are two or more.
      others: the same records in another order; one that would meet itself takes its successor there.
      reader: reads a record as a sample.
      modalities: those that come from the other record.
    """
    import grain

    # Samples that come first in a chain keep the random numbers that they have without the control.
    others = grain.MapDataset.source(_Others(records, others)).seed(0).random_map(reader)
    return grain.MapDataset.source(_Shuffled(samples, others, modalities))


def delays(component: Component, modalities: dict[str, Modality], where: str) -> dict[str, int]:
    """Latent frames by which the modalities of a component are late in training.

    Raises:
      UserError: naming the field, if a delay is below 0, not finite, or not a whole number of frames.
    """
    found = {}
    for m, seconds in component.delayed.items():
        if not 0 <= seconds < math.inf:
            raise UserError(f"{where}.delayed.{m} is {seconds:g} s: give a finite number, at least 0")
        frames = 100 * seconds / modalities[m].period
        if abs(frames - round(frames)) > 1e-6:
            period = modalities[m].period / 100
            raise UserError(
                f"{where}.delayed.{m} is {seconds:g} s, {frames:g} latent frames: give a multiple of {period:g} s"
            )
        found[m] = round(frames)
    return found


class _Others:
    def __init__(self, records: Any, others: Any):
        self._records, self._others = records, others

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Any:
        own = self._records[int(i)]
        return next(other for n in range(len(self)) if (other := self._others[(int(i) + n) % len(self)]) != own)


class _Shuffled:
    def __init__(self, samples: Any, others: Any, modalities: tuple[str, ...]):
        self._samples, self._others, self._modalities = samples, others, modalities

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> Any:
        sample, other = self._samples[int(i)], self._others[int(i)]
        for part in ("latents", "frames", "features"):
            if part in sample:
                sample[part] = sample[part] | {m: other[part][m] for m in self._modalities if m in other[part]}
        if not other["weight"]:  # what could not be read is what has to be named
            sample |= {"weight": other["weight"], "record": other["record"]}
        return sample
