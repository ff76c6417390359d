"""Checks of fields, suggestions of names, and hashes of JSON data."""

import hashlib
import math
from types import SimpleNamespace

import pytest

from selfflow.errors import UserError, check_above_zero, check_at_least, check_fraction, did_you_mean
from selfflow.serialization import digest
from tests.conftest import mentions


@pytest.mark.parametrize("value", [0, math.nan])
def test_bounds_name_field_and_value(value):
    with pytest.raises(UserError, match=mentions("x.rows_read", value, 1)):
        check_at_least(SimpleNamespace(rows_read=value), "x.", rows_read=1)
    with pytest.raises(UserError, match=mentions("--rows-read", value, 0)):
        check_above_zero(SimpleNamespace(rows_read=value), "--", "rows_read")


def test_bounds_are_inclusive_and_none_passes():
    check_at_least(SimpleNamespace(a=1, b=None), "", a=1, b=1)
    check_fraction(SimpleNamespace(a=0.0, b=1.0, c=None), "", "a", "b", "c")
    with pytest.raises(UserError, match=mentions("x.a 1.0 0 1")):
        check_fraction(SimpleNamespace(a=1.0), "x.", "a", below_one=True)


def test_the_closest_name_is_suggested_or_all_are_listed():
    assert did_you_mean("Vidoe", ["image", "video"]) == "did you mean video?"
    assert did_you_mean("zzz", ["image", "video"]) == "there are image, video"
    assert did_you_mean("zzz", map(str, range(20))).endswith("10, 11 and 8 more")


def test_digests_do_not_depend_on_the_order_of_keys_and_hash_text_as_it_is():
    assert digest({"b": [1, None], "a": "x"}) == digest({"a": "x", "b": [1, None]}) == "8ea2c0f31b799f04"
    assert digest("text", 64) == hashlib.sha256(b"text").hexdigest()
