"""Scenes, physics, frames and audio of Collisions."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from selfflow.data.collisions import Collisions, Material
from selfflow.data.collisions.generate import as_record, draw_motion, record
from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES, SPLITS
from selfflow.data.collisions.render import render, render_audio, render_video
from selfflow.data.collisions.scene import Body, Push, Scene, clip_seed, draw_scene
from selfflow.data.collisions.simulate import WALL, simulate
from selfflow.errors import UserError
from tests.conftest import mentions

SETTINGS = Collisions()


def body(material="steel", position=(32.0, 32.0), velocity=(0.0, 0.0), shape="circle", radius=7.5, **fields) -> Body:
    return Body(shape=shape, material=material, radius=radius, position=position, velocity=velocity, **fields)


def scene(*bodies: Body, push: Push | None = None, **settings) -> Scene:
    return Scene(bodies, push, settings=Collisions(**settings))


def test_speed_is_constant_between_contacts():
    for index in range(20):
        motion = simulate(dataclasses.replace(draw_scene(SETTINGS, "train", index), push=None))
        until = min(motion.first_time, SETTINGS.seconds)
        free = int(np.ceil(until * SETTINGS.frames_per_second - 1e-9))
        assert (motion.velocities[:free] == motion.velocities[0]).all()
        times = np.arange(free) / SETTINGS.frames_per_second
        expected = motion.positions[0] + motion.velocities[0] * times[:, None, None]
        np.testing.assert_allclose(motion.positions[:free], expected, atol=1e-9)
        assert (motion.angles == motion.angles[0]).all()


@pytest.mark.parametrize("material", MATERIAL_NAMES)
@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_head_on_wall_hit_shows_the_restitution(material, shape):
    motion = simulate(scene(body(material, velocity=(100.0, 0.0), shape=shape, angle=0.3)))
    after = motion.velocities[5, 0]
    assert motion.contacts[0].bodies == (0, WALL)
    assert -after[0] / 100.0 == pytest.approx(getattr(SETTINGS, material).restitution, abs=1e-9)
    assert after[1] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("material", MATERIAL_NAMES)
def test_friction_slows_a_glancing_hit(material):
    table = getattr(SETTINGS, material)
    motion = simulate(scene(body(material, velocity=(60.0, 130.0), position=(52.0, 10.0))))
    change = motion.velocities[2, 0] - (60.0, 130.0)
    assert -change[1] / -change[0] == pytest.approx(table.friction, rel=1e-6)
    # Steep enough for the friction to stop the slide altogether.
    if table.friction >= 0.3:
        steep = simulate(scene(body(material, velocity=(100.0, 10.0), position=(52.0, 32.0))))
        assert abs(steep.velocities[2, 0, 1]) < 1e-6


def test_two_bodies_multiply_their_restitutions_and_keep_their_momentum():
    one, two = body("stone", (20.0, 32.0), (80.0, 0.0)), body("wood", (44.0, 32.0), (-20.0, 0.0), radius=6.0)
    motion = simulate(scene(one, two, materials="body"))
    velocity = motion.velocities[2, :, 0]
    assert motion.contacts[0].bodies == (0, 1)
    assert (velocity[1] - velocity[0]) / 100.0 == pytest.approx(0.76 * 0.60, abs=1e-9)
    assert one.mass * velocity[0] + two.mass * velocity[1] == pytest.approx(one.mass * 80 - two.mass * 20, rel=1e-9)
    assert motion.contacts[0].impulse == pytest.approx(one.mass * (80 - velocity[0]), rel=1e-9)


def test_a_push_changes_momentum_by_force_times_time():
    force = (60_000.0, -25_000.0)
    pushed = body(velocity=(5.0, 3.0))
    motion = simulate(scene(pushed, push=Push(0, start=0.2, force=force)))
    change = (motion.velocities[5, 0] - motion.velocities[0, 0]) * pushed.mass
    np.testing.assert_allclose(change, np.array(force) * 0.08, rtol=1e-9)
    # 0.2 s is in the middle of frame 2: each of the windows 2 and 3 holds half of the push.
    np.testing.assert_allclose(motion.action[[2, 3], :2], np.array([force, force]) / 2, rtol=1e-9)
    np.testing.assert_allclose(motion.action[[2, 3], 2:], [[33.0, 32.6]] * 2, rtol=1e-9)
    assert not motion.action[[0, 1, *range(4, 25)]].any()
    assert not simulate(scene(pushed)).action.any()


def test_a_contact_sounds_at_its_very_sample():
    for rate in (8000, 16000):
        for material in MATERIAL_NAMES:
            motion = simulate(scene(body(material, (32.3, 30.0), (91.7, 0.0)), sample_rate=rate))
            audio = render_audio(motion)
            (contact,) = [c for c in motion.contacts if c.time < 0.6]
            # The body's edge reaches the wall within the step that ends at the contact's time.
            assert 0 <= contact.time - (64 - 7.5 - 32.3) / 91.7 <= 1 / SETTINGS.physics_rate
            onset = int(np.flatnonzero(audio)[0])
            assert contact.time * rate <= onset <= contact.time * rate + 2
            speeds = motion.velocities[:, 0, 0]
            window = int(np.flatnonzero(speeds < 0)[0]) - 1
            assert window * rate * 0.08 <= onset <= (window + 1) * rate * 0.08 + 2


def test_one_contact_is_one_onset_with_the_modes_of_its_material():
    for material in MATERIAL_NAMES:
        table = getattr(SETTINGS, material)
        for radius in (6.0, 9.0):
            motion = simulate(scene(body(material, (20.0, 32.0), (30.0, 0.0), radius=radius)))
            assert len(motion.contacts) == 1
            audio = render_audio(motion).astype(float)
            start = int(np.flatnonzero(audio)[0])
            assert (np.flatnonzero(audio)[-1] - start) / 8000 < 12 * table.decay
            envelope = np.array([np.abs(audio[start + i : start + i + 80]).max() for i in range(0, 1600, 80)])
            audible = envelope[envelope > 10]
            assert (audible[2:] < audible[:-2]).all(), "the sound must only fall after its onset"
            spectrum = np.abs(np.fft.rfft(audio[start:], 1 << 16))
            pitch = np.argmax(spectrum) * 8000 / (1 << 16)
            assert pitch == pytest.approx(table.frequency * math.sqrt(7.5 / radius), rel=0.03)


def test_loudness_grows_in_proportion_to_impulse():
    peaks, impulses = [], []
    for speed in (40.0, 80.0, 160.0):
        motion = simulate(scene(body("stone", (20.0, 32.0), (speed, 0.0))))
        start = int(motion.contacts[0].time * 8000)
        peaks.append(np.abs(render_audio(motion)[start : start + 400].astype(int)).max())
        impulses.append(motion.contacts[0].impulse)
    np.testing.assert_allclose(np.array(peaks) / peaks[0], np.array(impulses) / impulses[0], rtol=0.01)
    np.testing.assert_allclose(np.array(impulses) / impulses[0], [1, 2, 4], rtol=1e-9)


def test_the_wall_adds_no_sound_of_its_own_and_two_bodies_both_ring():
    felt, steel = body("felt", (20.0, 32.0), (60.0, 0.0)), body("steel", (44.0, 32.0), (-60.0, 0.0))
    motion = simulate(scene(felt, steel, materials="body"))
    start = int(motion.contacts[0].time * 8000)
    audio = render_audio(motion)[start : start + 1600].astype(float)
    power = np.abs(np.fft.rfft(audio)) ** 2
    hertz = np.fft.rfftfreq(1600, 1 / 8000)
    share = [power[(hertz > f * 0.9) & (hertz < f * 1.1)].max() / power.max() for f in (220, 400, 730, 1330)]
    assert min(share[0], share[3]) > 0.02 and share[2] < 0.01


def test_resting_and_sliding_contacts_do_not_buzz():
    resting = simulate(scene(body("stone", (32.0, 50.0), (30.0, 0.0)), gravity=500.0))
    assert 1 <= sum(contact.bodies == (0, WALL) for contact in resting.contacts) < 20
    assert not [contact for contact in resting.contacts if 1.5 < contact.time]
    assert abs(resting.positions[-1, 0, 1] - 56.5) < 0.2
    against_the_wall = scene(body("felt", (56.0, 32.0), (40.0, 20.0)), push=Push(0, start=0.1, force=(200_000.0, 0.0)))
    assert len(simulate(against_the_wall).contacts) <= 4


def test_one_changed_field_gives_a_counterfactual_pair():
    differing = 0
    for index in range(6):
        motion = draw_motion(SETTINGS, "test", index)
        first = motion.scene.bodies[0].material
        other = next(name for name in MATERIAL_NAMES if name != first)
        twin = simulate(motion.scene.with_material(other))
        clip, changed = render(motion), render(twin)
        until = int(np.ceil(motion.first_time * SETTINGS.frames_per_second - 1e-6))
        sample = int(motion.first_time * SETTINGS.sample_rate)
        assert twin.first_time == motion.first_time
        np.testing.assert_array_equal(clip.video[:until], changed.video[:until])
        np.testing.assert_array_equal(clip.audio[: sample + 1], changed.audio[: sample + 1])
        assert (clip.audio != changed.audio).any() and (clip.video != changed.video).any()
        differing += (clip.video[-1] != changed.video[-1]).any()
        pushed = dataclasses.replace(motion.scene, push=Push(0, start=0.0, force=(50_000.0, 0.0)))
        np.testing.assert_array_equal(simulate(pushed).positions[0], motion.positions[0])
        assert (simulate(pushed).positions[2] != motion.positions[2]).any()
    assert differing >= 5


@pytest.mark.parametrize("shape", SHAPE_NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_a_frame_shows_shape_place_and_area(shape, angle):
    shown = body(shape=shape, position=(24.6, 41.2), velocity=(50.0, -30.0), radius=9.0, angle=angle)
    motion = simulate(scene(shown))
    video = render_video(motion).astype(float) / 255
    background = video[0, 0, 0]
    cover = ((video - background) / (1 - background)).mean(-1)
    centres = (np.arange(32) + 0.5) * 2
    for i in range(3):
        weight = cover[i].sum()
        assert weight * 4 == pytest.approx(shown.mass, rel=0.03)
        place = (cover[i] * centres).sum() / weight, (cover[i] * centres[:, None]).sum() / weight
        np.testing.assert_allclose(place, motion.positions[i, 0], atol=0.15)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for corner in shown.corners() @ turn.T:
        # Just inside of the corner the body is visible, well outside of it it is not.
        inside, outside = (np.array(shown.position) + k * corner for k in (0.7, 1.35))
        assert cover[0][int(inside[1] // 2), int(inside[0] // 2)] > 0.4
        assert cover[0][int(outside[1] // 2), int(outside[0] // 2)] == 0


def test_rotation_and_gravity_are_settings():
    glancing = scene(body("felt", (52.0, 10.0), (60.0, 100.0)), rotation=True)
    turning = simulate(glancing)
    assert turning.angles[0, 0] == 0 and abs(turning.angles[-1, 0]) > 0.1
    assert (render_video(simulate(scene(body(shape="square", velocity=(60.0, 100.0)), rotation=True)))).any()
    falling = simulate(scene(body(position=(32.0, 20.0)), gravity=100.0))
    assert falling.velocities[2, 0, 1] == pytest.approx(16.0, rel=1e-6)


def test_drawn_scenes_keep_to_the_settings():
    counts, shapes, materials, colours, pushes = [], [], [], [], 0
    for index in range(300):
        drawn = draw_scene(SETTINGS, "train", index)
        counts.append(len(drawn.bodies))
        pushes += drawn.push is not None
        assert len({b.material for b in drawn.bodies}) == 1
        for i, b in enumerate(drawn.bodies):
            assert 6 <= b.radius <= 9 and 40 - 1e-9 <= np.hypot(*b.velocity) <= 160 + 1e-9
            assert all(b.radius <= x <= 64 - b.radius for x in b.position)
            for other in drawn.bodies[:i]:
                assert math.dist(b.position, other.position) >= b.radius + other.radius
            shapes.append(b.shape)
            colours.append(b.colour)
        materials.append(drawn.bodies[0].material)
    assert set(counts) == {1, 2, 3} and set(shapes) == set(SHAPE_NAMES)
    assert min(materials.count(name) for name in MATERIAL_NAMES) > 45
    assert 115 < pushes < 185
    assert (np.array(colours).max(1) - np.array(colours).min(1)).min() > 0.4
    shifted = [draw_scene(SETTINGS, "shifted", index) for index in range(20)]
    assert all(len(s.bodies) == 4 and 10 <= b.radius <= 12 for s in shifted for b in s.bodies)
    mixed = [draw_scene(Collisions(materials="body"), "train", index) for index in range(30)]
    assert any(len({b.material for b in s.bodies}) > 1 for s in mixed)


def test_no_two_splits_share_a_seed_and_every_seed_draws_its_own_scene():
    seeds = [clip_seed(SETTINGS, split, i) for split in SPLITS for i in range(SETTINGS.clips(split))]
    assert len(set(seeds)) == len(seeds) == 6144
    assert not set(seeds) & {clip_seed(Collisions(seed=1), split, 0) for split in SPLITS}
    starts = {draw_scene(SETTINGS, split, i).bodies[0].position for split in SPLITS for i in range(50)}
    assert len(starts) == 200
    assert draw_scene(SETTINGS, "train", 3) == draw_scene(SETTINGS, "train", 3) != draw_scene(SETTINGS, "test", 3)


def test_drawing_again_does_not_touch_the_material():
    for index in range(40):
        drawn = [draw_scene(SETTINGS, "train", index, attempt) for attempt in range(3)]
        assert len({s.bodies[0].material for s in drawn}) == 1 and len({s.bodies[0].position for s in drawn}) == 3
        # The rule looks at nothing that a material changes: it chooses alike for all four.
        motion = draw_motion(SETTINGS, "train", index)
        for name in MATERIAL_NAMES:
            twin = simulate(motion.scene.with_material(name))
            assert twin.first_momentum == motion.first_momentum and twin.first_time == motion.first_time


def test_a_record_agrees_with_itself():
    for index in range(8):
        clip = record(SETTINGS, "shifted", index)
        motion = draw_motion(SETTINGS, "shifted", index)
        assert clip["count"] == 4 and clip["positions"].shape == (25, 4, 2) and clip["audio"].shape == (25 * 640,)
        np.testing.assert_allclose(clip["positions"], motion.positions, atol=1e-5)
        assert clip["material"] == clip["materials"][0] == MATERIAL_NAMES.index(motion.scene.bodies[0].material)
        assert any((clip["image"] == frame).all() for frame in clip["video"])
        times, impulses = clip["contacts"]["time"], clip["contacts"]["impulse"]
        assert (np.diff(times) >= 0).all() and (impulses >= SETTINGS.audible_impulse).all()
        assert clip["contacts"]["bodies"].shape == (len(times), 2) and clip["contacts"]["bodies"][:, 0].min() >= 0
    clip = record(Collisions(materials="body"), "train", 0)
    assert clip["material"] == -1 and clip["materials"][0] >= 0 and clip["materials"][3] == clip["shapes"][3] == -1
    silent = as_record(simulate(scene(body())), "silent")
    assert silent["contacts"]["bodies"].shape == (0, 2) and not silent["audio"].any()


@pytest.mark.parametrize(
    "field, value",
    [
        ("size", -32),
        ("frames", 2.5),
        ("frames_per_second", float("nan")),
        ("sample_rate", 8001),
        ("physics_rate", 30),
        ("train_clips", 0),
        ("shifted_clips", -1),
        ("drawn", ("felt", "rubber")),
        ("drawn", ()),
        ("shapes", ("hexagon",)),
        ("materials", "none"),
        ("bodies", (3, 1)),
        ("bodies", (0, 1)),
        ("radius", (6.0, 40.0)),
        ("speed", (0.0, 10.0)),
        ("speed", (1.0,)),
        ("felt", Material(restitution=1.5)),
        ("steel", Material(decay=0.0)),
        ("partial_gains", (1.0,)),
        ("push_probability", 1.5),
        ("push_seconds", 3.0),
        ("push_seconds", 0.0805),
        ("quiet_end", 2.0),
        ("workers", -1),
        ("seed", -1),
        ("seed", 0.0),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(field, value):
    with pytest.raises(UserError, match=mentions(f"collisions.{field}", repr(value))) as error:
        Collisions(**{field: value})
    assert "\n" not in str(error.value)


def test_scenes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=mentions("body.material rubber felt")):
        simulate(scene(body("rubber")))
    with pytest.raises(UserError, match=mentions("body.shape hexagon circle")):
        simulate(scene(body(shape="hexagon")))
    with pytest.raises(UserError, match=mentions("30 bodies shifted_bodies shifted_radius")):
        draw_scene(Collisions(shifted_bodies=(30, 30)), "shifted", 0)
    with pytest.raises(UserError, match=mentions("informative_impulse 1e+09 0.07 s")):
        draw_motion(Collisions(informative_impulse=1e9, frames=1, push_seconds=0.04, quiet_end=0.01), "train", 0)


def test_the_settings_module_is_light():
    code = (
        "import sys, selfflow.data.collisions as c; c.Collisions().config_name; "
        "print([m for m in ('pymunk', 'tensorflow_datasets', 'jax', 'tensorflow', 'scipy') if m in sys.modules])"
    )
    worker = code.replace("import sys, ", "import sys, selfflow.data.collisions.generate, ").replace("'pymunk', ", "")
    for program in (code, worker):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
