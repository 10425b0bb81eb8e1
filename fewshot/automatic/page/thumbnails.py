"""Small copies of photos that a page can hold within itself."""

import base64
import io

from cache.datasets.source import Source
from fewshot.html import Thumbnail

SIDE = 160  # pixels, of the longer side
QUALITY = 70
BUDGET = 4_500_000  # characters of all of a page's thumbnails; some 500 of them


class Thumbnails:
    """Makes them, until a page is full."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.left = budget

    def of(self, source: Source, path: str) -> Thumbnail | None:
        """An image of the source, upright; None if it has gone, or the page is full."""
        if self.left <= 0:
            return None
        try:
            image = source.read(path)
        except OSError:
            return None
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        self.left -= len(uri)
        return Thumbnail(uri, image.width, image.height)
