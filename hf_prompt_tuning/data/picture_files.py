"""Read pictures as they look, and keep those of Pillow without a loss.

A camera's file may say that its picture is to be turned. Pillow does not turn it, and the datasets library does. It
keeps a picture of Pillow as its file's name, even if it was drawn in since, and writes one without a name as it was
packed before: a JPEG is packed twice. Here a picture is the same in training and in use, and the one that was given.
"""

import io
import os
from typing import Any

from datasets import Image
from PIL import ExifTags, ImageOps
from PIL import Image as Pillow

from ..errors import PromptTuningError, first_line, sentence

IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""The modes that PNG keeps as they are. TIFF keeps the others."""


def opened(value: Any, where: str) -> Pillow.Image:
    """Return a picture as Pillow has it, turned as its file says. Raise PromptTuningError if it cannot be read."""
    try:
        if not isinstance(value, Pillow.Image):
            return Image().decode_example(value)
        is_to_be_turned = value.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(value) if is_to_be_turned else value
    except Exception as error:  # of a file or of bytes that are no picture
        raise PromptTuningError(
            f"{where} has a picture that cannot be read: {sentence(first_line(error))} Give pictures as "
            "datasets.Image or Pillow reads them."
        ) from error


def in_mode(value: Any, mode: str, where: str) -> Any:
    """Return a picture of the mode ("RGB"), as it is stored; unchanged if it has this mode. Raise as `opened` does."""
    picture = opened(value, where)
    return value if picture.mode == mode else stored(picture.convert(mode), where)


def stored(value: Any, where: str) -> Any:
    """Return a picture of Pillow as datasets stores it: its file's name, or its pixels. Others stay as they are.

    Raise PromptTuningError if it cannot be read, or has a mode that no file keeps.
    """
    if not isinstance(value, Pillow.Image):
        return value
    if _is_of_its_file(value):
        return {"bytes": None, "path": os.fspath(value.filename)}
    picture, file = opened(value, where), io.BytesIO()
    try:
        picture.copy().save(file, "PNG" if picture.mode in IN_PNG else "TIFF")  # a copy has no marks of its old file
    except Exception as error:  # of a file that ends too early, or a mode that is of no file
        raise PromptTuningError(
            f"{where} has a picture of the mode {picture.mode!r} that cannot be kept: {sentence(first_line(error))} "
            "Correct it, or convert it: picture.convert('RGB')."
        ) from error
    return {"bytes": file.getvalue(), "path": None}


def _is_of_its_file(picture: Pillow.Image) -> bool:
    """Tell whether a picture is that which its file has: it may have been drawn in, or made smaller, in its place."""
    name = getattr(picture, "filename", None)
    if not name or not isinstance(name, str | os.PathLike) or not os.path.isfile(name):
        return False
    try:
        with Pillow.open(name) as file:
            if (file.mode, file.size, file.tell()) != (picture.mode, picture.size, picture.tell()):
                return False
            # What was never read cannot have been changed, and is not read here: it would stay in the memory.
            pixels = vars(picture).get("_im", vars(picture).get("im", picture))
            return pixels is None or _contents(file) == _contents(picture)
    except OSError:  # another file by now
        return False


def _contents(picture: Pillow.Image) -> tuple[Any, ...]:
    return picture.tobytes(), picture.getpalette(), picture.info.get("transparency")
