"""The TFDS builder of Collisions: writes clips from worker processes to ArrayRecord files, without TensorFlow."""

import importlib.metadata
import json
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.generate import records
from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES, SPLITS
from selfflow.data.workers import cores, start_worker
from selfflow.data.writing import Config, RecordsBuilder, prepare
from selfflow.errors import UserError
from selfflow.progress import Progress

_CHUNK_CLIPS = 32
_MOST_WORKERS = 32


class _Chunk(NamedTuple):
    """The clips `start` to `stop - 1` of a split."""

    split: str
    start: int
    stop: int


class CollisionsBuilder(RecordsBuilder, skip_registration=True):
    """Writes the clips of `builder_config.settings`."""

    name = "collisions"
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "A caption."}

    def _info(self) -> tfds.core.DatasetInfo:
        settings = self.builder_config.settings
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rigid bodies seen from above that sound when they touch; video and audio share causes.",
            features=record_features(settings),
            license=settings.licence,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                settings=json.loads(json.dumps(asdict(settings))),
                materials=list(MATERIAL_NAMES),
                shapes=list(SHAPE_NAMES),
                pymunk=importlib.metadata.version("pymunk"),
                numpy=importlib.metadata.version("numpy"),
            ),
        )

    def records(self) -> Iterator[tuple[str, dict]]:
        return generate(self.builder_config.settings)


def record_features(settings: Collisions) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of a record, which the card of the data set describes."""
    frames, size, slots = settings.frames, settings.size, settings.slots

    def tensor(dtype: type, *shape: int | None) -> tfds.features.Tensor:
        # Raw bytes decode faster than lists of numbers, and ArrayRecord compresses each record.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    scalar = tfds.features.Scalar
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "video": tensor(np.uint8, frames, size, size, 3),
            "audio": tensor(np.int16, settings.samples),
            "image": tensor(np.uint8, size, size, 3),
            "present": {"video": scalar(np.bool_), "audio": scalar(np.bool_), "image": scalar(np.bool_)},
            "quality": scalar(np.float32),
            "material": scalar(np.int32),
            "materials": tensor(np.int32, slots),
            "shapes": tensor(np.int32, slots),
            "radii": tensor(np.float32, slots),
            "count": scalar(np.int32),
            "caption": tfds.features.Text(),
            "positions": tensor(np.float32, frames, slots, 2),
            "velocities": tensor(np.float32, frames, slots, 2),
            "contacts": {
                "time": tensor(np.float32, None),
                "bodies": tensor(np.int32, None, 2),
                "impulse": tensor(np.float32, None),
            },
            "action": tensor(np.float32, frames, 4),
        }
    )


def generate(settings: Collisions) -> Iterator[tuple[str, dict]]:
    """Yields (split, record) of every clip in order, from worker processes, and shows the progress.

    Raises:
      UserError: a worker process died, or no scene can be drawn from these settings.
    """
    chunks = _chunks(settings)
    # Small data sets, as in tests, have fewer chunks than cores.
    workers = min(settings.workers or cores(), len(chunks), _MOST_WORKERS)
    batches = _serial(settings, chunks) if workers == 1 else _parallel(settings, chunks, workers)
    total = sum(settings.clips(split) for split in SPLITS)
    with Progress("building collisions", total, unit="clips") as progress:
        for split, batch in batches:
            for record in batch:
                progress.advance()
                yield split, record


def _chunks(settings: Collisions) -> list[_Chunk]:
    chunks = []
    # Chunks amortise the transfer between processes.
    for split in SPLITS:
        clips = settings.clips(split)
        for start in range(0, clips, _CHUNK_CLIPS):
            chunks.append(_Chunk(split, start, min(start + _CHUNK_CLIPS, clips)))
    return chunks


def _serial(settings: Collisions, chunks: list[_Chunk]) -> Iterator[tuple[str, list[dict]]]:
    for chunk in chunks:
        yield chunk.split, records(settings, *chunk)


def _parallel(settings: Collisions, chunks: list[_Chunk], workers: int) -> Iterator[tuple[str, list[dict]]]:
    # With "spawn", because JAX may run threads in this process, and a forked process lacks them.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        pending: deque[tuple[str, Future]] = deque()
        for chunk in chunks:
            pending.append((chunk.split, pool.submit(records, settings, *chunk)))
            # The limit keeps every worker busy while a chunk is written, and bounds memory.
            if len(pending) > 2 * workers + 2:
                split, future = pending.popleft()
                yield split, future.result()
        while pending:
            split, future = pending.popleft()
            yield split, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "collisions: a worker process died while the data set was built (out of memory, or a script that builds "
            "outside `if __name__ == '__main__':`); nothing was kept, build again with workers=1 or more memory"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def build(settings: Collisions, data_dir: Path) -> CollisionsBuilder:
    """Returns the TFDS builder below `data_dir`; generates the data set first if it does not exist.

    Raises:
      UserError: no scene can be drawn from the settings, `data_dir` cannot be written, or a worker process died.
    """
    return prepare(lambda: _open(settings, data_dir))


def _open(settings: Collisions, data_dir: Path) -> CollisionsBuilder:
    config = Config(name=settings.config_name, settings=settings)
    return CollisionsBuilder(data_dir=data_dir, config=config, file_format="array_record")
