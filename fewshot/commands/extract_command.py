"""Encode the images and prompts of a dataset into a store."""

from pathlib import Path

from fewshot.commands.extract_options import (
    AllTrainOption,
    BatchSizeOption,
    CropScaleOption,
    DownloadOption,
    DryRunOption,
    EngineOption,
    FastImagesOption,
    InPartsOption,
    MultiLabelOption,
    PreProjectionOption,
    ProcessesOption,
    PromptFilesOption,
    ResizeOption,
    SeedsOption,
    ShardOption,
    ShareOption,
    SkipUnreadableOption,
    SupportOnlyOption,
    TemplateOption,
    TemplateSetOption,
    UnlabeledOption,
    ViewSeedOption,
    ViewsOption,
)
from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
    DataRootOption,
    DatasetOption,
    DeviceOption,
    IfExistsOption,
    ManifestOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    RehashOption,
    StoreOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_shard
from fewshot.commands.terminal import say, show
from fewshot.commands.typed_recipe import (
    checked,
    contents,
    recipe_for,
    require_alone,
    require_text_tower,
    train_rows,
    typed_few_shots,
    typed_prompts,
)


def extract(
    dataset: DatasetOption = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    model: ModelOption = DEFAULT_MODEL,
    store: StoreOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    resize: ResizeOption = None,
    fast_images: FastImagesOption = False,
    template: TemplateOption = None,
    template_set: TemplateSetOption = None,
    prompts: PromptFilesOption = None,
    views: ViewsOption = 0,
    crop_scale: CropScaleOption = (0.5, 1.0),
    view_seed: ViewSeedOption = 0,
    pre_projection: PreProjectionOption = False,
    support_only: SupportOnlyOption = None,
    seeds: SeedsOption = "1,2,3",
    multi_label: MultiLabelOption = False,
    all_train: AllTrainOption = False,
    unlabeled: UnlabeledOption = None,
    if_exists: IfExistsOption = "resume",
    skip_unreadable: SkipUnreadableOption = False,
    download: DownloadOption = False,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    rehash: RehashOption = False,
    shard: ShardOption = None,
    engine: EngineOption = "serial",
    processes: ProcessesOption = 2,
    share: ShareOption = None,
    in_parts: InPartsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Encode the images and prompts of a dataset into a store."""
    from cache.datasets.resolving import find
    from cache.datasets.source import pooled
    from cache.datasets.unlabeled_source import find_unlabeled
    from cache.extract import default_workers
    from cache.extract import extract as extract_to
    from cache.identity import Recipe
    from cache.location import (
        bank_path,
        default_root,
        pair_names,
        require_outside,
        require_writable,
        store_path,
    )
    from cache.models.architectures import require_architecture

    part = parse_shard(shard)
    root = store or default_root()
    if dataset is not None:
        require_outside(Path(dataset), {"--store": root})
    if unlabeled is None:
        source = find(
            dataset, manifest, root=data_root, download=download, max_pixels=max_pixels,
            multi_label=multi_label,
        )  # fmt: skip
    else:
        require_alone(manifest, support_only, all_train, download, multi_label)
        source = find_unlabeled(dataset, unlabeled, max_pixels=max_pixels)
    source = pooled(source) if all_train else source
    few = typed_few_shots(support_only, seeds)
    source, left_out = checked(source, few, skip_unreadable=skip_unreadable)
    models = pair_names(model) or (model,)
    require_text_tower(models, template, prompts, template_set)
    recipe = Recipe(
        prompts=typed_prompts(source, template, template_set, prompts),
        views=views,
        crop_scale=crop_scale,
        view_seed=view_seed,
        train_rows=train_rows(source, few),
        support_only=few,
        left_out=left_out,
        pre_projection=pre_projection,
    )
    recipes = {name: recipe_for(name, recipe) for name in models}
    paths = {name: store_path(root, source.dataset, name) for name in models}
    if dry_run:
        for name, wanted in recipes.items():
            require_architecture(name)
            say(f"would encode {contents(wanted, source)} with {name} into {paths[name]}")
        return
    from cache.models.loading import load

    require_writable(folders={"--store": paths[models[0]].parent})
    for name, wanted in recipes.items():
        path = paths[name]
        encoder = load(
            name, device=device, precision=precision, resize=resize, fast_images=fast_images
        )
        built = extract_to(
            source,
            encoder,
            wanted,
            path,
            bank=bank_path(root),
            rehash=rehash,
            batch_size=batch_size,
            workers=workers or default_workers(),
            if_exists=if_exists,
            skip_unreadable=skip_unreadable,
            part=part,
            engine=engine,
            processes=processes,
            share=share,
            in_parts=in_parts,
            say=say,
        )
        if shard and built:
            say(f"part {shard} of {path} is encoded; the command without --shard assembles all")
        else:
            show(str(path) if built else f"{path} (already there)")
