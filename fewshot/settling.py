"""The method and the protocol that a run is of, from what was typed and for a store."""

from dataclasses import replace
from typing import Any

from cache.errors import UserError, excerpt
from cache.store import FeatureStore
from fewshot.method import Method, MethodInfo
from fewshot.protocol import Asked, Protocol
from fewshot.run import Run
from fewshot.settings import configure, fixed_of


def settled(
    store: FeatureStore, method: Method | str, protocol: Protocol | None, asked: Asked
) -> tuple[Method, Protocol]:
    """The method with the hyper-parameters that are fixed, and the protocol, from what was typed.

    Args:
        store: The features, whose logit scale a method given by its name takes.
        method: A method or its name.
        protocol: What is asked; the default `Protocol()` without it.
        asked: Fields of the protocol that take the place of its own.

    Raises:
        UserError: No such method or hyper-parameter, no method at all, or what `Protocol` raises.
    """
    if isinstance(method, str):
        method = configure(method, logit_scale=store.logit_scale)
    if not isinstance(method, Method):
        raise UserError(f"expected a method such as GDA(), or a name; got {excerpt(method)}")
    protocol = asked_of(method, protocol, asked)
    method = replace(method, **protocol.fixed)
    pooled = protocol.synthesize is None  # a generator makes features
    return _settled_on(store, method, pooled=pooled), protocol


def configured(store: FeatureStore, name: str) -> Method:
    """The method of that name, with its defaults for this store.

    Raises:
        UserError: No such method.
    """
    return _settled_on(store, configure(name, logit_scale=store.logit_scale))


def _settled_on(store: FeatureStore, method: Method, *, pooled: bool = True) -> Method:
    return method.on_store(pooled=pooled and store.image_tower is not None)


def asked_of(method: MethodInfo, protocol: Protocol | None, asked: Asked) -> Protocol:
    """The protocol with these fields in place of its own, its fixed settings as values.

    Raises:
        UserError: No such hyper-parameter, or what `Protocol` raises.
    """
    protocol = protocol or Protocol()
    fixed = fixed_of(method, asked.get("fixed", protocol.fixed), method.name)
    changes: dict[str, Any] = {**asked, "fixed": fixed}
    return replace(protocol, **changes)


def require_labels(method: MethodInfo, generator: str) -> None:
    """Raise unless the method can learn from synthesized features.

    Raises:
        UserError: It learns from unlabeled images.
    """
    if method.unsupervised():
        raise UserError(
            f"{method.name} learns from unlabeled images, and {generator} makes labeled features; "
            "use a method that learns from labels"
        )
    if isinstance(method, Method) and method.reads_pooled:
        raise UserError(
            f"{generator} makes features, and {method.name} as it is set learns from pooled "
            "images; use --set space=features"
        )


def run_on(
    store: FeatureStore, method: Method, protocol: Protocol, shots: int, fewest: int, n_views: int
) -> Run:
    """The run of a method on a store; see `Run.planned`."""
    return Run.planned(
        method,
        protocol,
        dataset=store.dataset,
        model=store.model,
        fingerprint=store.fingerprint,
        shots=shots,
        fewest=fewest,
        n_views=n_views,
    )
