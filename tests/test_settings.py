import pytest

from cache.errors import UserError
from fewshot import GDA, NearestMean, Ridge, configure


def test_settings_are_read_as_their_fields_types() -> None:
    method = configure("gda", {"alpha": "4", "shrinkage": "oas", "priors": "empirical"})
    assert method == GDA(alpha=4.0, shrinkage="oas", priors="empirical")


def test_a_field_of_several_types_takes_each() -> None:
    assert configure("gda", {"shrinkage": "0.25"}) == GDA(shrinkage=0.25)


def test_without_settings_the_defaults_stand() -> None:
    assert configure("ridge") == Ridge()


def test_the_logit_scale_is_the_given_one_unless_set() -> None:
    assert configure("nearest-mean", logit_scale=30.0) == NearestMean(logit_scale=30.0)
    assert configure("gda", {"logit_scale": "50"}, logit_scale=30.0) == GDA(logit_scale=50.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gad", {}, "unknown method 'gad'; did you mean 'gda'"),
        ("gda", {"alhpa": "1"}, "unknown setting of gda 'alhpa'; did you mean 'alpha'"),
        ("gda", {"alpha": "much"}, "alpha must be a number; got 'much'"),
        (
            "gda",
            {"shrinkage": "much"},
            "shrinkage must be published or ledoit-wolf or oas or a number; got 'much'",
        ),
        ("gda", {"alpha": "-1"}, "alpha must be 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure(name, settings)
