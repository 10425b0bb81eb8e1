"""How people name splits, columns, image files and what their systems leave in folders.

The one place for such names; `docs/guide/own-photos.md` lists them for users.
"""

import re

SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")  # a table among the images
UNLABELED = ("unlabeled", "unlabelled")

# Columns of a table, the surest name first. A name is compared without case, spaces, "-" and "_".
COLUMNS = {
    "path": (
        "path", "filepath", "imagepath", "imgpath", "filename", "imagename", "imgname", "fname",
        "file", "imagefile", "image", "img", "images", "imageid", "id",
    ),
    "label": (
        "label", "labels", "lbl", "class", "classes", "cls", "category", "target", "labelid",
        "classid", "categoryid", "classname", "labelname", "categoryname", "classlabel", "breed",
        "species", "y", "text",
    ),
    "classname": ("classname", "labelname", "categoryname", "labeltext", "classtext"),
    "split": ("split", "subset", "partition", "fold", "set", "phase", "usage"),
}  # fmt: skip

IMAGES = {
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "bmp", "dib", "gif", "webp", "tif", "tiff", "ppm",
    "pgm", "pbm", "pnm", "avif", "jp2", "j2k",
}  # fmt: skip
# Photographs and drawings of formats that are not read: they are told apart from other files.
NOT_READ = {
    "heic", "heif", "jxl", "dng", "cr2", "cr3", "nef", "arw", "orf", "raf", "rw2", "raw", "psd",
    "svg", "eps", "ico", "tga",
}  # fmt: skip

# What NAS, archive tools, file managers and notebooks put among photos; hidden files besides.
_OF_SYSTEMS = {
    "@eadir", "#recycle", "#snapshot", "@recycle", "@tmp", "__macosx", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "icon\r",
}  # fmt: skip

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def split_of(name: str) -> str | None:
    """The split that a folder or a table's cell calls by this name; None for any other name."""
    plain = re.sub(r"[\s_-]*(set|images|imgs|data|split)$", "", name.strip().lower()) or name
    return next((split for split, names in SPLITS.items() if plain in names), None)


def columns(header: list[str]) -> dict[str, str]:
    """Our word -> the table's own column, for each of ours that is found; the surest name wins."""
    plain = {re.sub(r"[\s_-]", "", name).lower(): name for name in reversed(header)}
    found: dict[str, str] = {}
    for ours, names in COLUMNS.items():
        theirs = [plain[name] for name in names if name in plain]
        free = [name for name in theirs if name not in found.values()]
        if free:
            found[ours] = free[0]
    return found


def of_a_system(name: str) -> bool:
    """True if a file or folder is no user's: hidden, or put there by a system."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def extension(name: str) -> str:
    """The part after the last dot, in lower case; empty without a dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def begins_as_an_image(head: bytes) -> bool:
    """True if the first 16 bytes are those of an image; for files that have no extension."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(_BEGINNINGS) or webp or head[4:12] == b"ftypavif"
