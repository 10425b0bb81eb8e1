"""Show what there is: `datasets`, `methods`, `inspect`, `verify`, `doctor`."""

from cache.errors import UserError
from fewshot.commands.options import (
    DataRootOption,
    JsonOption,
    ManifestOption,
    NameArgument,
    StoreOption,
    StoreOrAdapterArgument,
)
from fewshot.commands.terminal import print_table, show


def datasets(
    name: NameArgument = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    store: StoreOption = None,
) -> None:
    """List datasets, or show one."""
    from cache.datasets.manifest import all_manifests, describe, load_manifest
    from cache.datasets.resolving import data_root as found_root
    from cache.datasets.resolving import dataset_status
    from cache.location import default_root, find_stores

    if name or manifest:
        show(describe(load_manifest(name or "", manifest)))
        return
    extracted: dict[str, list[str]] = {}
    for path in find_stores(store or default_root()):
        extracted.setdefault(path.parent.name, []).append(path.stem)
    rows = [
        (
            m.name,
            str(m.n_classes or ""),
            dataset_status(m, found_root(data_root)),
            ", ".join(extracted.pop(m.name, [])),
        )
        for m in all_manifests()
    ]
    rows += [(name, "", "your own", ", ".join(models)) for name, models in extracted.items()]
    print_table(("dataset", "classes", "on disk", "extracted with"), rows)


def methods(
    name: NameArgument = None,
) -> None:
    """List methods, or show the settings of one."""
    from fewshot.outline import declared
    from fewshot.settings import describe

    on_features = declared("fewshot.methods")
    every = {**on_features, **declared("fewshot.endtoend.methods")}
    if name is not None:
        show(describe(name, every))
        return
    print_table(
        ("method", "command", "learns from", "tuned by default", "what it is"),
        [
            (
                name,
                "fit" if name in on_features else "train",
                method.learns_from,
                ", ".join(method.grid),
                (method.__doc__ or "").strip().splitlines()[0],
            )
            for name, method in every.items()
        ],
    )


def inspect(path: StoreOrAdapterArgument) -> None:
    """Show the contents of a file that fewshot wrote."""
    from fewshot.inspection import inspect as describe

    show(describe(path))


def verify(path: StoreOrAdapterArgument) -> None:
    """Check a file that fewshot wrote against its digests."""
    from cache.datasets.addresses import address_of
    from fewshot.inspection import verify as require_whole

    show(f"{address_of(path)}: {require_whole(path)}")


def doctor(
    data_root: DataRootOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check the installation, the machine and the folders.

    Says how to fix each problem. The exit code is 1 if there are any.
    """
    import json
    from dataclasses import asdict

    try:
        from cache.datasets.resolving import data_root as chosen_root
        from cache.location import default_root
        from fewshot.doctor.checkup import checkup, report
    except ImportError as error:
        raise UserError(f"the installation is not whole ({error}); install fewshot again") from None

    findings = checkup(store or default_root(), chosen_root(data_root))
    if as_json:
        for finding in findings:
            print(json.dumps(asdict(finding)))
    else:
        print(report(findings))
    return int(any(finding.state == "problem" for finding in findings))
