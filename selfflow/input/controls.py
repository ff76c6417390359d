"""Controls: batches whose modalities depend less on each other but keep their distributions."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError
from selfflow.input.mixture import Component
from selfflow.modality import Modality

if TYPE_CHECKING:
    import grain

    from selfflow.input.reader import SampleReader


def shuffled(
    samples: "grain.MapDataset",
    records: "grain.MapDataset",
    others: "grain.MapDataset",
    reader: "SampleReader",
    modalities: tuple[str, ...],
) -> "grain.MapDataset":
    """Returns samples in which some modalities come from other records.

    Args:
      samples, records: the samples and the records they are read from, at least two.
      others: the same records in another order; a record that meets itself is paired with the next different record.
      reader: reads a record as a sample.
      modalities: modalities that come from the other record.
    """
    import grain

    # The control has its own random numbers, so that the samples do not depend on it.
    others = grain.MapDataset.source(_Others(records, others)).seed(0).random_map(reader)
    return grain.MapDataset.source(_Shuffled(samples, others, modalities))


def delays(component: Component, modalities: Mapping[str, Modality], where: str) -> dict[str, int]:
    """Returns the delays of a component's modalities in training, in latent frames.

    Raises:
      UserError: naming the field, if a delay is negative, not finite, or not a whole number of frames.
    """
    delayed = {}
    for m, seconds in component.delayed.items():
        if not 0 <= seconds < math.inf:
            raise UserError(f"{where}.delayed.{m} is {seconds:g} s: give a finite number, at least 0")
        frames = 100 * seconds / modalities[m].period  # periods are in units of 10 ms
        if abs(frames - round(frames)) > 1e-6:
            period = modalities[m].period / 100
            raise UserError(
                f"{where}.delayed.{m} is {seconds:g} s, {frames:g} latent frames: give a multiple of {period:g} s"
            )
        delayed[m] = round(frames)
    return delayed


class _Others:
    """Pairs each record with another one: the record at the same position of `others`, or the next that differs."""

    def __init__(self, records: Sequence[int], others: Sequence[int]):
        self._records, self._others = records, others

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Any:
        # A record occurs in `others` once an epoch, so a few steps suffice.
        own = self._records[int(i)]
        for n in range(len(self)):
            other = self._others[(int(i) + n) % len(self)]
            if other != own:
                return other
        raise AssertionError("there are at least two records")


class _Shuffled:
    """Samples that take some modalities from other samples."""

    def __init__(self, samples: Sequence, others: Sequence, modalities: tuple[str, ...]):
        self._samples, self._others, self._modalities = samples, others, modalities

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample, other = self._samples[int(i)], self._others[int(i)]
        for part in ("latents", "frames", "features"):
            if part in sample:
                sample[part] = sample[part] | {m: other[part][m] for m in self._modalities if m in other[part]}
        if not other["weight"]:  # an unreadable record must be counted under its own number
            sample |= {"weight": other["weight"], "record": other["record"]}
        return sample
