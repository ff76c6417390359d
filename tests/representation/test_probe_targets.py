"""Which features a probe target can be read from."""

import pytest

from selfflow.representation.probes.targets import Target


@pytest.mark.parametrize(
    "kind, source, applies",
    [
        ("time_step", ("action",), True),
        ("time_step", ("audio",), True),
        ("time_step", ("image",), False),
        ("time_step", ("video", "action"), False),
        ("token", ("action",), False),
        ("class", ("action",), True),
    ],
)
def test_sources_of_a_target(kind, source, applies):
    assert Target("contact", kind).applies_to(source) is applies
