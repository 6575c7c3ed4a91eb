"""Images of any kind to pixel values, as transformers' PIL image processors make them.

The reference for pixels is transformers' PIL backend: Pillow's resize on 8-bit RGB, then rescaling and normalising in
the reference's order and dtypes. (transformers 5 defaults to torchvision, which differs by one level here and there.)
Unlike the reference, every input is brought to 8-bit RGB first: EXIF orientation, palettes, transparency (on white),
CMYK, 16-bit and grayscale are handled here.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trocr_jax.config import read_json, write_json

PREPROCESSOR_NAME = "preprocessor_config.json"
# Where transformers 5 keeps the same settings, one level down, when it saves a whole processor.
PROCESSOR_NAME = "processor_config.json"

ImageInput = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray"

# Class defaults of the reference, for keys that a file leaves out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViTImageProcessor": {"resample": 2, "size": 224, "do_center_crop": False, "crop_size": 224},
    "DeiTImageProcessor": {"resample": 3, "size": 256, "do_center_crop": True, "crop_size": 224},
}
_IMAGENET_STANDARD = (0.5, 0.5, 0.5)


class ImageError(ValueError):
    """An image cannot be read; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Images -> pixel values float32 [B, 3, height, width], by the settings of preprocessor_config.json.

    `size` and `crop_size` are (height, width) in pixels; `resample` is Pillow's filter number (2 bilinear, 3 bicubic).
    """

    image_processor_type: str = "ViTImageProcessor"
    do_resize: bool = True
    size: tuple[int, int] = (224, 224)
    resample: int = 2
    do_center_crop: bool = False
    crop_size: tuple[int, int] = (224, 224)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = _IMAGENET_STANDARD
    image_std: tuple[float, ...] = _IMAGENET_STANDARD

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ImageProcessor:
        """The processor that a preprocessor_config.json describes, in its old and new dialects."""
        content = content.get("image_processor", content)
        if not {"size", "image_processor_type", "feature_extractor_type"} & content.keys():
            raise ValueError("it does not describe an image processor: it has neither size nor image_processor_type")
        kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "ViTImageProcessor"
        kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
        if kind not in _DEFAULTS:
            raise ValueError(f"image processor {kind!r} is not supported; supported are {sorted(_DEFAULTS)}")
        names = {field.name for field in dataclasses.fields(cls)}
        settings = {**_DEFAULTS[kind], **{k: v for k, v in content.items() if k in names and v is not None}}
        for name in ("size", "crop_size"):
            settings[name] = _size(settings[name], name)
        for name in ("image_mean", "image_std"):
            if name in settings:
                values = settings[name]
                settings[name] = tuple(values) if isinstance(values, list | tuple) else (values,) * 3
        return cls(**{**settings, "image_processor_type": kind})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> ImageProcessor:
        """The processor of a checkpoint folder, or of the JSON file given."""
        path = find_settings(folder)
        if path is None:
            raise FileNotFoundError(f"{os.fspath(folder)} holds no {PREPROCESSOR_NAME}")
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The settings as transformers reads them."""
        content = dataclasses.asdict(self)
        for name in ("size", "crop_size"):
            height, width = content[name]
            content[name] = {"height": height, "width": width}
        if not self.do_center_crop:
            del content["crop_size"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes preprocessor_config.json."""
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(pathlib.Path(folder) / PREPROCESSOR_NAME, self.to_dict())

    def __call__(self, images: Any) -> np.ndarray:
        """One image or a sequence of them -> float32 [B, 3, height, width]. Raises ImageError."""
        pixels = [self.pixels(image) for image in as_list(images)]
        if not pixels:
            raise ValueError("there are no images: pass at least one")
        return np.stack(pixels)

    def to_original(self, x: np.ndarray, width: int) -> np.ndarray:
        """Places along the line in `pixels`, undone to those in the upright image of this width, both in pixels."""
        resized = self.size[1] if self.do_resize else width
        cropped = (resized - self.crop_size[1]) // 2 if self.do_center_crop else 0  # less than 0 where that pads
        return (x + cropped) * width / resized

    def pixels(self, image: Any) -> np.ndarray:
        """One image (path, file, PIL image or array) -> float32 [3, height, width]. Raises ImageError."""
        values = self._values(self.levels(load_rgb(image)))
        return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)  # [height, width, 3] -> [3, height, width]

    def levels(self, rgb: Image.Image) -> np.ndarray:
        """An RGB image at the model's size, before its levels are rescaled: uint8 [height, width, 3]."""
        if self.do_resize:
            height, width = self.size
            rgb = rgb.resize((width, height), resample=Image.Resampling(self.resample))
        levels = np.asarray(rgb)
        return _center_crop(levels, self.crop_size) if self.do_center_crop else levels

    @property
    def table(self) -> np.ndarray:
        """The pixel value of each level in each channel: float32 [256, 3]."""
        return self._values(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)).astype(np.float32)

    def _values(self, levels: np.ndarray) -> np.ndarray:
        # float64 for the product and float32 for the rest, as the reference rounds.
        scaled = (levels.astype(np.float64) * self.rescale_factor).astype(np.float32) if self.do_rescale else levels
        if self.do_normalize:
            mean, std = (np.asarray(v, np.float32) for v in (self.image_mean, self.image_std))
            scaled = (scaled.astype(np.float32) - mean) / std
        return scaled


def find_settings(folder: str | os.PathLike[str]) -> pathlib.Path | None:
    """The file that a checkpoint folder's image settings are read from; a file given is that file itself."""
    path = pathlib.Path(folder)
    places = [path / PREPROCESSOR_NAME, path / PROCESSOR_NAME] if path.is_dir() else [path]
    return next((place for place in places if place.is_file()), None)


def as_list(images: Any) -> list[Any]:
    """A single image as a list of one; a sequence, or a 4-D array, as a list of its images."""
    if is_single(images):
        return [images]
    is_scalar = isinstance(images, Mapping) or getattr(images, "ndim", 1) == 0
    if isinstance(images, Iterable) and not is_scalar:
        return list(images)
    raise TypeError(
        f"images are given as {type(images).__name__}; pass a path, a file, a PIL image, an array or a list of them"
    )


def is_single(images: Any) -> bool:
    """Whether this is one image rather than a collection."""
    if isinstance(images, str | os.PathLike | Image.Image | bytes | bytearray):
        return True
    return hasattr(images, "read") or (hasattr(images, "ndim") and images.ndim in (2, 3))


def load_rgb(image: Any, *, name: str | None = None) -> Image.Image:
    """One image (path, open file, a file's bytes, PIL image or array) as an upright 8-bit RGB image.

    Raises ImageError, whose message has its `name`, by default what `describe` says.
    """
    name = describe(image) if name is None else name
    try:
        if isinstance(image, bytes | bytearray):
            image = io.BytesIO(image)
        if isinstance(image, str | os.PathLike) or hasattr(image, "read"):
            with Image.open(image) as opened:
                return _to_rgb(opened)
        if isinstance(image, Image.Image):
            return _to_rgb(image)
        if hasattr(image, "__array__"):
            return _to_rgb(_from_array(np.asarray(image)))
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read") from error
    except Exception as error:
        # Pillow's decoders report damage by nearly any exception (AVIF's by RuntimeError); none may end a whole batch.
        raise ImageError(f"{name} cannot be read: {error}") from error
    raise ImageError(f"{name} is neither a path, nor a file, nor a PIL image, nor an array")


def describe(image: Any) -> str:
    """How messages name an image."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, Image.Image):
        return f"the {image.mode} image of {image.width}x{image.height} pixels"
    if isinstance(image, bytes | bytearray):
        return f"the image in {len(image)} bytes"
    if hasattr(image, "read"):
        name = getattr(image, "name", None)  # of a temporary file a number, or None
        return name if isinstance(name, str) else "the open file"
    shape = getattr(image, "shape", None)
    return f"the array of shape {tuple(shape)}" if shape is not None else f"the {type(image).__name__}"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"it has no pixels ({image.width}x{image.height})")
    image = ImageOps.exif_transpose(image)  # a copy in any case: the file behind it is about to be closed
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" and np.asarray(image).max() > 1:
        return image.convert("L").convert("RGB")  # Pillow's own reading of floats: 0 to 255
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_array(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    """[h, w], [h, w, 1 | 3 | 4] or channels first; uint8, wider integers as 16-bit, bool, or floats in [0, 1]."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)  # [C, h, w] -> [h, w, C]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError("its shape is neither [h, w], nor [h, w, C] nor [C, h, w] with 1, 3 or 4 channels")
    if array.size == 0:
        raise ValueError("it has no pixels")
    return Image.fromarray(_to_uint8(array))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if array.dtype.name == "bfloat16":  # which numpy does not count among its floats
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its floats range from {low} to {high}; pass floats in [0, 1] or uint8 in [0, 255]")
        return np.rint(array * 255).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 65535:
        # Narrow values in a wide integer are 8-bit pixels; anything above is 16-bit, of which the high byte counts.
        is_wide = array.dtype in ("<u2", ">u2") or high > 255
        return (array >> 8 if is_wide else array).astype(np.uint8)
    raise ValueError(
        f"its {array.dtype} values range from {low} to {high}; pass uint8, uint16, bool or floats in [0, 1]"
    )


def _center_crop(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] -> the middle of it, [*size, 3], zeros where it is too small; rounded as the reference rounds."""
    height, width = values.shape[:2]
    target_height, target_width = size
    top, left = (height - target_height) // 2, (width - target_width) // 2
    if top >= 0 and left >= 0:
        return values[top : top + target_height, left : left + target_width]
    padded_height, padded_width = max(target_height, height), max(target_width, width)
    top_pad, left_pad = -(-(padded_height - height) // 2), -(-(padded_width - width) // 2)
    padded = np.zeros((padded_height, padded_width, values.shape[2]), values.dtype)
    padded[top_pad : top_pad + height, left_pad : left_pad + width] = values
    top, left = max(0, top + top_pad), max(0, left + left_pad)
    return padded[top : top + target_height, left : left + target_width]


def _size(value: Any, name: str) -> tuple[int, int]:
    """Old files give one int for a square, new ones {"height": ..., "width": ...}."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, Mapping) and isinstance(value.get("height"), int) and isinstance(value.get("width"), int):
        return (value["height"], value["width"])
    if isinstance(value, list | tuple) and len(value) == 2:
        return (value[0], value[1])
    raise ValueError(f'{name} is {value!r}; it must be an int or {{"height": ..., "width": ...}}')
