"""Images without ink, which a recogniser would read as some text all the same."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

# Of 255 grey levels. The grain of a scan (a deviation of 3 levels) stays below it once neighbours are averaged; a dot
# of 3x3 pixels that is 16 levels from its ground does not.
LEAST_CONTRAST = 16


def is_blank(image: Image.Image) -> bool:
    """Whether the grey levels of an RGB image, averaged over 3x3 pixels, differ by less than `LEAST_CONTRAST`.

    On purpose it errs towards ink: one speck of dirt, a shadow or an uneven ground makes an image not blank, and faint
    pencil does too.
    """
    levels = np.asarray(image.convert("L").filter(ImageFilter.BoxBlur(1)))
    return int(levels.max()) - int(levels.min()) < LEAST_CONTRAST
