"""Captions of clips: one sentence, composed from the ground truth."""

import zlib
from collections import Counter

from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES
from selfflow.data.collisions.scene import Body
from selfflow.data.collisions.simulate import WALL, Motion

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TIMES = ("never", "once", "twice")
_ADJECTIVES = {"wood": "wooden"}


def caption(motion: Motion, name: str) -> str:
    """Returns a sentence with the number, material and shapes of the bodies, their audible contacts and the push.

    Args:
      motion: the motion of the clip.
      name: id of the clip; selects one of three wordings of the same content.
    """
    bodies, push = motion.scene.bodies, motion.scene.push
    # The wording depends on a checksum of the id and not on random draws.
    wording = zlib.crc32(name.encode()) % 3
    subject = _subject(bodies, wording)
    single = len(bodies) == 1
    verb_s = "s" if single else ""
    if wording == 0:
        verb = f"collide{verb_s}" if motion.contacts else f"make{verb_s} no sound"
        contacts = f"{_number(len(motion.contacts))} contact{'s' if len(motion.contacts) != 1 else ''}"
        return f"{subject}, {verb}; {contacts}, {'no' if push is None else 'one'} push"

    between_bodies = sum(WALL not in contact.bodies for contact in motion.contacts)
    with_walls = len(motion.contacts) - between_bodies
    if with_walls:
        hits = f"hit{verb_s} the walls {_times(with_walls)}"
    else:
        hits = f"{'does' if single else 'do'} not hit the walls"
    push_phrase = "no push" if push is None else f"a push on the {bodies[push.body].shape}"
    if wording == 1:
        meetings = f", meeting each other {_times(between_bodies)}" if between_bodies else ", never meeting each other"
        return f"{subject} {hits}{'' if single else meetings}, with {push_phrase}"
    meetings = f" and meet each other {_times(between_bodies)}" if between_bodies else " and never meet"
    return f"{push_phrase}: {subject} {hits}{'' if single else meetings}"


def _subject(bodies: tuple[Body, ...], wording: int) -> str:
    """Returns the bodies, such as "two steel bodies, a circle and a square" or "a steel circle and a steel square"."""
    materials = {body.material for body in bodies}
    common_material = _adjective(materials.pop()) if len(materials) == 1 else ""
    if wording != 0:
        return _enumerate(bodies, common_material or "each")
    words = [_number(len(bodies)), common_material, "body" if len(bodies) == 1 else "bodies"]
    head = " ".join(filter(None, words))
    shapes = {body.shape for body in bodies}
    if common_material and len(shapes) == 1 and len(bodies) > 1:
        return f"{head}, {'both' if len(bodies) == 2 else 'all'} {shapes.pop()}s"
    return f"{head}, {_enumerate(bodies, '' if common_material else 'each')}"


def _enumerate(bodies: tuple[Body, ...], material: str) -> str:
    """Returns an enumeration such as "two steel circles and a steel square".

    Args:
      bodies: the bodies.
      material: adjective of all bodies; "each" names the material of every body, "" names none.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for body in bodies:
        label = MATERIAL_NAMES.index(body.material) if material == "each" else -1
        counts[SHAPE_NAMES.index(body.shape), label] += 1
    parts = []
    for (shape, label), count in sorted(counts.items()):
        article = "a" if count == 1 else _number(count)
        adjective = _adjective(MATERIAL_NAMES[label]) if label >= 0 else material
        noun = SHAPE_NAMES[shape] + ("s" if count > 1 else "")
        parts.append(" ".join(filter(None, (article, adjective, noun))))
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _adjective(material: str) -> str:
    return _ADJECTIVES.get(material, material)


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _times(count: int) -> str:
    return _TIMES[count] if count < len(_TIMES) else f"{_number(count)} times"
