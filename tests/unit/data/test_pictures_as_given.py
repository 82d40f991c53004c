"""Pictures become the same pixels in training and in use, whatever form a caller has them in."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as Pillow
from PIL import ImageOps

from hf_prompt_tuning import ChatTemplate, DataCollatorForPromptTuning, PromptTemplate, PromptTuningError
from hf_prompt_tuning.data.chat_tokenization import row_tokenizer
from hf_prompt_tuning.data.encoding import encode_data
from hf_prompt_tuning.data.rows import table_rows
from tests.shared.tiny_processors import picture, tiny_processor

TEMPLATE = PromptTemplate("{image} {question}", "{answer}")
TURNED = 6
"""The orientation of a picture that is to be turned by 90 degrees."""


def of_format(kind, image=None, **options):
    """The bytes of a file."""
    file = io.BytesIO()
    (picture(20, 30) if image is None else image).save(file, kind, **options)
    return file.getvalue()


def opened(data):
    return Pillow.open(io.BytesIO(data))


def turned_jpeg():
    exif = Pillow.Exif()
    exif[0x0112] = TURNED
    return of_format("JPEG", quality=90, exif=exif)


def with_text(image):
    return {"image": image, "question": "a dog ?", "answer": "yes"}


def pixels(processor, *images):
    return processor(text=["<image>" * len(images)], images=[list(images)], return_tensors="pt")["pixel_values"]


def learned_and_asked(processor, rows, template=TEMPLATE):
    """The pixels of rows in training, and in use."""
    coder = row_tokenizer(template, processor, False)
    encoded = list(encode_data(rows, "training", coder, None, True))
    batch = DataCollatorForPromptTuning(processor)(encoded)
    return batch["pixel_values"], coder.inputs(list(rows))["pixel_values"]


def drawn_in_place(file):
    file.write_bytes(of_format("JPEG", quality=90))
    image = Pillow.open(file)
    image.paste((0, 0, 0), (5, 5, 25, 15))
    return image


def palette_with_transparency(file):
    image = picture(20, 30).quantize(8)
    image.info["transparency"] = 0
    return opened(of_format("GIF", image, transparency=0))


def of_file(file):
    file.write_bytes(turned_jpeg())
    return Pillow.open(file)


GIVEN = {
    "a jpeg in memory": lambda file: opened(of_format("JPEG", quality=60)),
    "drawn in place": drawn_in_place,
    "a file that is turned": of_file,
    "a jpeg in memory that is turned": lambda file: opened(turned_jpeg()),
    "transparent colours of a palette": palette_with_transparency,
    **{mode: lambda file, mode=mode: picture(20, 30).convert(mode) for mode in ("L", "RGBA", "CMYK", "F")},
}


@pytest.mark.parametrize("name", ["llava", "idefics3"])
@pytest.mark.parametrize("what", GIVEN)
@pytest.mark.parametrize("as_stream", [False, True])
def test_pictures_of_pillow(what, name, as_stream, tmp_path):
    given = GIVEN[what](tmp_path / "seen.jpg")
    processor, expected = tiny_processor(name), ImageOps.exif_transpose(given)
    data = [with_text(given)]
    rows = IterableDataset.from_generator(lambda: iter(data)) if as_stream else data
    learned, asked = learned_and_asked(processor, rows)
    assert torch.equal(learned, pixels(processor, expected))
    assert torch.equal(asked, pixels(processor, expected))


def test_a_file_stays_a_file(tmp_path):
    """Pixels in the rows would fill the memory."""
    file = tmp_path / "seen.jpg"
    coder = row_tokenizer(PromptTemplate("{image}", "{answer}"), tiny_processor("llava"), False)
    with of_file(file) as fresh, of_file(file) as read:
        read.load()
        rows = [{"image": image, "answer": "yes"} for image in (fresh, read)]
        encoded = encode_data(rows, "training", coder, None, True)
        assert [row["image"] for row in rows] == [fresh, read]
    kept = [row["images"] for row in encoded.cast_column("images", List(Image(decode=False)))]
    assert kept == [[{"bytes": None, "path": str(file)}]] * 2


def test_a_transform_of_the_callers():
    """It gets pictures of Pillow, as elsewhere, and what it makes is read."""
    small, jpeg = picture(8, 8), of_format("JPEG", quality=60)
    data = Dataset.from_list([with_text(small), with_text(picture(20, 30))])
    makes = (lambda image: image.resize((9, 9))), (lambda image: opened(jpeg))
    for make in makes:
        rows = data.with_transform(lambda rows, make=make: {**rows, "image": [make(one) for one in rows["image"]]})
        learned, asked = learned_and_asked(tiny_processor("llava"), rows)
        expected = pixels(tiny_processor("llava"), *(make(image) for image in (small, picture(20, 30))))
        assert torch.equal(learned, expected) and torch.equal(asked, expected)


@pytest.mark.parametrize("as_stream", [False, True])
def test_the_mode_of_a_column(as_stream):
    red = Pillow.fromarray(np.full((8, 8, 3), (200, 30, 30), dtype=np.uint8))
    data = Dataset.from_list([with_text({"bytes": of_format("PNG", image), "path": None}) for image in (red, red)])
    data = data.cast_column("image", Image(mode="L"))
    processor = tiny_processor("idefics3")
    coloured, grey = (pixels(processor, image) for image in (red, red.convert("L")))
    assert not torch.equal(coloured, grey)
    learned, asked = learned_and_asked(processor, data.to_iterable_dataset() if as_stream else data)
    assert torch.equal(learned, torch.cat([grey, grey])) and torch.equal(asked, torch.cat([grey, grey]))
    lists = Dataset.from_list([with_text([{"bytes": of_format("PNG", red), "path": None}] * 2)])
    lists = lists.cast_column("image", List(Image(mode="L")))
    assert torch.equal(learned_and_asked(processor, lists)[0][0], torch.cat([grey, grey], 1)[0])
    broken = Dataset.from_list([with_text({"bytes": b"no picture", "path": None})])
    with pytest.raises(PromptTuningError, match=r"row 1 of the training data: \{image\} has a picture that cannot be"):
        learned_and_asked(processor, broken.cast_column("image", Image(mode="RGB")))


def test_tables_of_pandas(tmp_path):
    """Which has lists of parquet files as arrays."""
    stored = {"bytes": of_format("PNG"), "path": None}
    parts = [{"type": "image"}, {"type": "text", "text": "a dog ?"}]
    rows = [{"messages": [{"role": "user", "content": parts}], "images": [stored], **with_text([stored, stored])}] * 2
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    table, processor = pd.read_parquet(tmp_path / "rows.parquet"), tiny_processor("llava")
    for template, columns in ((TEMPLATE, ["image", "question", "answer"]), (ChatTemplate(), ["messages", "images"])):
        coder = row_tokenizer(template, processor, False)
        expected = coder.inputs([{name: row[name] for name in columns} for row in rows])
        for found in (table_rows(table[columns]), table[columns].to_dict("records")):
            batch = coder.inputs(found)
            assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("value", [np.zeros((8, 8, 3), dtype=np.uint8), torch.zeros(3, 8, 8)])
def test_arrays_of_pixels_are_refused(value):
    coder = row_tokenizer(TEMPLATE, tiny_processor("llava"), False)
    coder.pictures.know(["image"])
    with pytest.raises(PromptTuningError, match=r"(?s)\{image\} is a \w+ .*, and a template takes texts"):
        coder.inputs([with_text(value)])


@pytest.mark.parametrize("template", [TEMPLATE, ChatTemplate()])
def test_something_else_among_pictures(template):
    content = [{"type": "image"}, {"type": "text", "text": "a"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    column = "images" if isinstance(template, ChatTemplate) else "image"
    row = {**with_text("")} if column == "image" else {"messages": turns}
    for other in (None, "dog.png"):
        coder = row_tokenizer(template, tiny_processor("llava"), False)
        rows = [{**row, column: [picture(8, 8), other]}]
        with pytest.raises(PromptTuningError, match=f"'{column}' has {other!r} among its pictures"):
            coder.inputs(rows)
    rows[0][column][1] = None
    with pytest.raises(PromptTuningError, match=f"row 1 .* the column '{column}' has None among its pictures"):
        encode_data(rows, "training", coder, None, True)
