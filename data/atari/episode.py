"""Plays an episode and cuts it into clips whose video and audio share the clock of the console.

Frame k of the console is drawn while the audio samples 512 k to 512 k + 511 are played. A clip starts at the beginning
of a console frame. Frame i of the clip is the console frame nearest to the time i / frames_per_second after its start.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
from PIL import Image
from scipy.signal import lfilter

from selfflow.data.atari import CONSOLE_FRAMES_PER_SECOND, Atari
from selfflow.data.atari.console import FIRE, SAMPLES_PER_FRAME, Console

SOURCE_RATE = CONSOLE_FRAMES_PER_SECOND * SAMPLES_PER_FRAME
# Cutoff in Hz of the high-pass filter that removes the DC offset: all samples of the console are at least 128.
_CUTOFF = 20.0
_FIRE_FRAMES = 6


@dataclass
class Episode:
    """Audio, actions, points and lives for each console frame, and the frames that clips contain."""

    audio: list[np.ndarray] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    points: list[float] = field(default_factory=list)
    lives: list[int] = field(default_factory=list)
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    """Images, uint8 [size, size, 3], by console frame."""


def frame_offsets(settings: Atari) -> np.ndarray:
    """Returns the console frames that a clip contains, relative to its first frame, int [frames]."""
    step = CONSOLE_FRAMES_PER_SECOND / settings.frames_per_second
    return np.floor(np.arange(settings.frames) * step + 0.5).astype(int)


def clip_starts(settings: Atari) -> np.ndarray:
    """Returns the console frames at which the clips of an episode start, int [clips_per_episode].

    A sample of the resampled audio starts at the same time as each of these frames.
    """
    # `unit` is the smallest number of console frames that last a whole number of audio samples.
    unit = CONSOLE_FRAMES_PER_SECOND // math.gcd(settings.sample_rate, CONSOLE_FRAMES_PER_SECOND)
    length = math.ceil(settings.seconds * CONSOLE_FRAMES_PER_SECOND / unit - 1e-9) * unit
    first = math.ceil(settings.skip_seconds * CONSOLE_FRAMES_PER_SECOND / unit) * unit
    return first + length * np.arange(settings.clips_per_episode)


def play(settings: Atari, console: Console, split: str, number: int, longest: int) -> Episode:
    """Plays episode `number` of a split under the random policy, for `longest` frames or until the game is over.

    The policy draws an action after each frame that a clip contains, and holds it until the next such frame.
    """
    rng = np.random.default_rng([settings.seed, settings.splits.index(split), number])
    shown = set(np.add.outer(clip_starts(settings), frame_offsets(settings)).ravel().tolist())
    first = min(shown)
    # Before the first clip, the policy draws actions at the same rate as in a clip.
    period = max(1, round(CONSOLE_FRAMES_PER_SECOND / settings.frames_per_second))
    change_probability = min(1.0, 1 / (settings.frames_per_second * settings.action_seconds))
    console.start()
    actions, lives, episode = console.actions, console.lives, Episode()
    action, previous_screen = int(rng.choice(actions)), None
    for k in range(longest):
        if k - 1 in shown or k <= first and k % period == 0:
            # Many games wait for FIRE at the beginning and after the loss of a life.
            if FIRE in actions and (k < _FIRE_FRAMES or console.lives < lives):
                action, lives = FIRE, console.lives
            elif rng.random() < change_probability:
                action = int(rng.choice(actions))
        audio, points = console.act(action)
        episode.audio.append(audio)
        episode.actions.append(action)
        episode.points.append(points)
        episode.lives.append(console.lives)
        if k in shown:
            # Games draw some objects only in every second frame, so that a single frame may lack them.
            screen = console.screen()
            screen = screen if previous_screen is None else np.maximum(previous_screen, screen)
            episode.frames[k] = _resize(screen, settings.size)
        previous_screen = console.screen() if k + 1 in shown else None
        if console.over:
            break
    return episode


def clips(settings: Atari, console: Console, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Yields the records, without ids, of the clips of an episode that end before the game is over."""
    starts, offsets = clip_starts(settings), frame_offsets(settings)
    length = math.ceil(settings.seconds * CONSOLE_FRAMES_PER_SECOND - 1e-9)
    longest = int(starts[-1]) + length + CONSOLE_FRAMES_PER_SECOND // 10
    episode = play(settings, console, split, number, longest)
    resampled = resample(np.concatenate(episode.audio), settings.sample_rate)
    total_points = np.concatenate([[0.0], np.cumsum(episode.points), [sum(episode.points)]])
    last = len(episode.actions) - 1
    for start in starts[starts + length < len(episode.audio)]:
        start = int(start)
        source = np.concatenate(episode.audio[start : start + length])
        first = start * settings.sample_rate // CONSOLE_FRAMES_PER_SECOND
        audio = np.zeros(settings.samples, np.int16)
        # A constant signal is silent, but the filter would turn it into rounding noise.
        if source.min() != source.max():
            audio = np.rint(np.clip(resampled[first : first + settings.samples], -1, 1) * 32767).astype(np.int16)
        # The action and the score of a frame refer to the transition to the next frame.
        boundaries = start + np.append(offsets, length) + 1
        points = total_points[np.minimum(boundaries[1:], last + 2)] - total_points[boundaries[:-1]]
        video = np.stack([episode.frames[start + k] for k in offsets])
        yield {
            "video": video,
            "audio": audio,
            "image": video[settings.frames // 2],
            "present": {"video": True, "audio": bool(audio.any()), "image": True},
            "quality": 1.0,
            "action": np.array(episode.actions, np.int32)[np.minimum(boundaries[:-1], last)],
            "score": points.astype(np.float32),
            "lives": episode.lives[start],
        }


def resample(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Filters audio of the console, uint8 [n] at 30 720 Hz, and resamples it to float32 at `sample_rate`, without
    delay."""
    pole = math.exp(-2 * math.pi * _CUTOFF / SOURCE_RATE)
    filtered = lfilter([1.0, -1.0], [1.0, -pole], (audio.astype(np.float64) - 128) / 128)
    return soxr.resample(filtered.astype(np.float32), SOURCE_RATE, sample_rate)


def _resize(screen: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(screen).resize((size, size), Image.Resampling.BICUBIC))
