"""What a clip shows and sounds like, in a sentence: written from the truth about it."""

import zlib
from collections import Counter

from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES
from selfflow.data.collisions.scene import Body
from selfflow.data.collisions.simulate import WALL, Motion

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TIMES = ("never", "once", "twice")
_ADJECTIVES = {"wood": "wooden"}


def caption(motion: Motion, name: str) -> str:
    """A sentence with the number, material and shapes of the bodies, their audible contacts and the push.

    Args:
      motion: what happens.
      name: id of the clip; chooses the wording, which says the same in each.
    """
    bodies = motion.scene.bodies
    among = sum(WALL not in contact.bodies for contact in motion.contacts)
    walls = len(motion.contacts) - among
    wording = zlib.crc32(name.encode()) % 3
    who = _bodies(bodies, wording)
    one = len(bodies) == 1
    pushed = motion.scene.push is not None and bodies[motion.scene.push.body].shape
    if wording == 0:
        met = f"collide{'s' if one else ''}" if motion.contacts else f"make{'s' if one else ''} no sound"
        contacts = f"{_number(len(motion.contacts))} contact{'s' if len(motion.contacts) != 1 else ''}"
        return f"{who}, {met}; {contacts}, {'one' if pushed else 'no'} push"
    hits = (
        f"hit{'s' if one else ''} the walls {_often(walls)}"
        if walls
        else f"{'does' if one else 'do'} not hit the walls"
    )
    push = f"a push on the {pushed}" if pushed else "no push"
    if wording == 1:
        meeting = "" if one else f", meeting each other {_often(among)}" if among else ", never meeting each other"
        return f"{who} {hits}{meeting}, with {push}"
    return f"{push}: {who} {hits}" + (
        "" if one else f" and meet each other {_often(among)}" if among else " and never meet"
    )


def _bodies(bodies: tuple[Body, ...], wording: int) -> str:
    materials = {body.material for body in bodies}
    same = _adjective(materials.pop()) if len(materials) == 1 else ""
    if wording == 0:
        noun = "body" if len(bodies) == 1 else "bodies"
        head = f"{_number(len(bodies))} {same} {noun}".replace("  ", " ")
        shapes = {body.shape for body in bodies}
        if same and len(shapes) == 1 and len(bodies) > 1:
            return f"{head}, {'both' if len(bodies) == 2 else 'all'} {shapes.pop()}s"
        return f"{head}, {_listed(bodies, '' if same else 'each')}"
    return _listed(bodies, same or "each")


def _listed(bodies: tuple[Body, ...], material: str) -> str:
    """ "two steel circles and a steel square"; `material` "each" names that of every body, "" none."""

    def kind(body: Body) -> tuple[int, int]:
        return SHAPE_NAMES.index(body.shape), MATERIAL_NAMES.index(body.material) if material == "each" else -1

    parts = []
    for (shape, own), count in sorted(Counter(map(kind, bodies)).items()):
        word = _adjective(MATERIAL_NAMES[own]) if own >= 0 else material
        noun = SHAPE_NAMES[shape] + ("s" if count > 1 else "")
        parts.append(" ".join(filter(None, ("a" if count == 1 else _number(count), word, noun))))
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _adjective(material: str) -> str:
    return _ADJECTIVES.get(material, material)


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _often(count: int) -> str:
    return _TIMES[count] if count < len(_TIMES) else f"{_number(count)} times"
