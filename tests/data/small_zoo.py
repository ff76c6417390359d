"""A small data set of TFDS, with fields of every sort."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

F = tfds.features
COUNTS = {"train": 9, "validation": 3, "test": 2}


def photo(number: int, mode: str = "RGB") -> Image.Image:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 5:15] = (14 * number, 100, 0)
    pixels[:, 15:25] = (0, 100, 14 * number)
    return Image.fromarray(pixels).convert(mode)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tone(seconds: float, rate: int = 8000) -> np.ndarray:
    return (12000 * np.sin(2 * np.pi * 500 * np.arange(round(seconds * rate)) / rate)).astype(np.int64)


class SmallZoo(tfds.core.GeneratorBasedBuilder):
    """Images in every mode, video and audio of several lengths."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {"1.2.0": "."}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=F.FeaturesDict(
                {
                    "photo": F.Image(shape=(None, None, None)),
                    "label": F.ClassLabel(names=["grey_cat", "dog", "owl"]),
                    "movie": F.Sequence(F.Image(shape=(20, 30, 3))),
                    "pixels": F.Tensor(shape=(None, 8, 8, 3), dtype=np.uint8),
                    "waveform": F.Tensor(shape=(None,), dtype=np.int64),
                    "stereo": F.Tensor(shape=(None, 2), dtype=np.float32),
                    "about": {"text": F.Text(), "texts": F.Sequence(F.Text()), "year": np.int64, "file": F.Text()},
                    "weight": np.float32,
                    "boxes": F.Sequence({"left": np.float32}),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in COUNTS.items()}

    def _generate_examples(self, count):
        modes = ("RGB", "L", "RGBA", "P", "I;16", "1")
        for i in range(count):
            yield (
                i,
                {
                    "photo": png(photo(i, modes[i % 6])),
                    "label": i % 3,
                    "movie": [png(photo(k)) for k in range(10 + i)],
                    "pixels": np.full((4 + i, 8, 8, 3), 10 * i, np.uint8),
                    "waveform": tone(1.0 + i / 10),
                    "stereo": np.stack([tone(0.5) / 32768, np.zeros(4000)], 1).astype(np.float32),
                    "about": {
                        "text": f"number {i}",
                        "texts": ["first", "second"],
                        "year": 1990 + i,
                        "file": f"f{i}.png",
                    },
                    "weight": 1.5,
                    "boxes": [{"left": 0.1}] * i,
                },
            )


def video_and_audio(folder: Path, to: Path) -> Path:
    """The same records as though their fields were declared as Video and Audio, which TFDS reads with TensorFlow."""
    copy = Path(shutil.copytree(folder, to, dirs_exist_ok=True)) / "small_zoo" / "1.2.0"
    specs = json.loads((copy / "features.json").read_text())
    fields, module = specs["featuresDict"]["features"], "tensorflow_datasets.core.features"
    fields["movie"] = {
        "pythonClassName": f"{module}.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "20", "30", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    fields["waveform"] = {
        "pythonClassName": f"{module}.audio_feature.Audio",
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": "8000", "encoding": "none"},
    }
    (copy / "features.json").write_text(json.dumps(specs))
    return to
