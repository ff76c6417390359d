"""An episode of play -> clips whose picture and sound are on one clock, that of the console.

Frame k of the console is drawn while the samples 512 k to 512 k + 511 of its sound are made. A clip starts at the
beginning of such a frame: its frame i is the console's frame that is nearest to i / frames_per_second after it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import soxr
from PIL import Image
from scipy.signal import lfilter

from selfflow.data.atari import SOURCE_FRAMES_PER_SECOND, SPLITS, Atari
from selfflow.data.atari.console import FIRE, SAMPLES_PER_FRAME, Console

SOURCE_RATE = SOURCE_FRAMES_PER_SECOND * SAMPLES_PER_FRAME
# A television's sound has no direct current; the console's goes one way only, from 128 up.
_CUTOFF = 20.0
_FIRE_FRAMES = 6


@dataclass
class Played:
    """What an episode gave, by frame of the console."""

    sound: list[np.ndarray] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    points: list[float] = field(default_factory=list)
    lives: list[int] = field(default_factory=list)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    """uint8 [size, size, 3] of those frames that a clip shows."""


def offsets(settings: Atari) -> np.ndarray:
    """The console's frames that a clip shows, counted from its start, int [frames]."""
    step = SOURCE_FRAMES_PER_SECOND / settings.frames_per_second
    return np.floor(np.arange(settings.frames) * step + 0.5).astype(int)


def starts(settings: Atari) -> np.ndarray:
    """The console's frames at which the clips of an episode start, int [clips_per_episode].

    They are those at which a sample of the resampled sound starts as well.
    """
    unit = SOURCE_FRAMES_PER_SECOND // math.gcd(settings.sample_rate, SOURCE_FRAMES_PER_SECOND)
    length = math.ceil(settings.seconds * SOURCE_FRAMES_PER_SECOND / unit - 1e-9) * unit
    first = math.ceil(settings.skip_seconds * SOURCE_FRAMES_PER_SECOND / unit) * unit
    return first + length * np.arange(settings.clips_per_episode)


def play(settings: Atari, console: Console, split: str, number: int, longest: int) -> Played:
    """Plays episode `number` of a split under the random policy, for `longest` frames or until the game is over.

    The policy decides right after a frame that a clip shows, so that one action holds from frame to frame of a clip.
    """
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), number])
    shown = {int(k) for start in starts(settings) for k in start + offsets(settings)}
    every = max(1, round(SOURCE_FRAMES_PER_SECOND / settings.frames_per_second))
    first = min(shown)
    change = min(1.0, 1 / (settings.frames_per_second * settings.action_seconds))
    console.start()
    actions, lives, played = console.actions, console.lives, Played()
    fire = FIRE in actions
    action, before = int(rng.choice(actions)), None
    for k in range(longest):
        if k - 1 in shown or k <= first and k % every == 0:
            if fire and (k < _FIRE_FRAMES or console.lives < lives):  # many games wait for it to begin, or to go on
                action, lives = FIRE, console.lives
            elif rng.random() < change:
                action = int(rng.choice(actions))
        sound, points = console.act(action)
        played.sound.append(sound)
        played.actions.append(action)
        played.points.append(points)
        played.lives.append(console.lives)
        if k in shown:
            screen = console.screen()
            played.pictures[k] = _picture(screen if before is None else np.maximum(before, screen), settings.size)
        before = console.screen() if k + 1 in shown else None
        if console.over:
            break
    return played


def clips(settings: Atari, console: Console, split: str, number: int) -> Iterator[dict]:
    """The records of an episode's clips, without their ids; only clips that the game lasts for."""
    begun, frames = starts(settings), offsets(settings)
    length = math.ceil(settings.seconds * SOURCE_FRAMES_PER_SECOND - 1e-9)
    played = play(settings, console, split, number, int(begun[-1]) + length + SOURCE_FRAMES_PER_SECOND // 10)
    heard = resampled(np.concatenate(played.sound), settings.sample_rate)
    for start in begun[begun + length < len(played.sound)]:
        start = int(start)
        raw = np.concatenate(played.sound[start : start + length])
        first = start * settings.sample_rate // SOURCE_FRAMES_PER_SECOND
        audio = np.zeros(settings.samples, np.int16)
        if raw.min() != raw.max():
            audio = np.rint(np.clip(heard[first : first + settings.samples], -1, 1) * 32767).astype(np.int16)
        edges = start + np.append(frames, length)
        after = edges[:-1] + 1  # what follows a frame: a record's action and score lead to its next frame
        points = np.concatenate([[0.0], np.cumsum(played.points), [sum(played.points)]])
        video = np.stack([played.pictures[start + k] for k in frames])
        yield {
            "video": video,
            "audio": audio,
            "image": video[settings.frames // 2],
            "present": {"video": True, "audio": bool(audio.any()), "image": True},
            "quality": 1.0,
            "action": np.array([played.actions[min(k, len(played.actions) - 1)] for k in after], np.int32),
            "score": (points[np.minimum(edges[1:] + 1, len(points) - 1)] - points[after]).astype(np.float32),
            "lives": played.lives[start],
        }


def resampled(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """The console's sound, uint8 [n] at 30 720 Hz, without direct current as float32 at `sample_rate`, on time."""
    pole = math.exp(-2 * math.pi * _CUTOFF / SOURCE_RATE)
    moving = lfilter([1.0, -1.0], [1.0, -pole], (sound.astype(np.float64) - 128) / 128)
    return soxr.resample(moving.astype(np.float32), SOURCE_RATE, sample_rate)


def _picture(screen: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(screen).resize((size, size), Image.Resampling.BICUBIC))
