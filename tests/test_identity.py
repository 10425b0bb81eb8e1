import pytest

from cache.identity import differences, fingerprint


def test_differences_are_named_at_any_depth() -> None:
    assert differences({"a": {"b": {"c": 1}}, "d": 2}, {"a": {"b": {"c": 3}}, "d": 2}) == [
        "a.b.c is 1, asked for 3"
    ]
    assert differences({"a": "x" * 99}, {"a": None}) == [f"a is '{'x' * 56}..., asked for None"]


def test_the_fingerprint_depends_on_content_and_not_on_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})
