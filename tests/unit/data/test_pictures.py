"""Pictures of rows: read as they are in the data, placed in texts, and batched."""

import pytest
import torch
from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as Pillow

from hf_prompt_tuning import DataCollatorForPromptTuning, PromptTemplate, PromptTokenizer, PromptTuningError
from hf_prompt_tuning.data.chat_tokenization import row_tokenizer
from hf_prompt_tuning.data.encoded_rows import is_encoded
from hf_prompt_tuning.data.encoding import encode_data
from hf_prompt_tuning.data.picture_parts import WrittenPictures, picture_part
from tests.shared.tiny_processors import picture, tiny_processor

TEMPLATE = PromptTemplate("{image} {question}", "{answer}")


@pytest.fixture
def jpeg(tmp_path):
    """A file that would not be the same if it were written again."""
    file = tmp_path / "seen.jpg"
    picture(20, 30).save(file, quality=30)
    return file


def encoder(name="idefics3"):
    processor = tiny_processor(name)
    return row_tokenizer(TEMPLATE, processor, False), processor


def rows_with(pictures):
    count = len(pictures)
    data = Dataset.from_dict({"image": pictures, "question": ["a dog ?"] * count, "answer": ["yes"] * count})
    return data.cast_column("image", Image())


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_file_is_read_as_it_is(jpeg, as_bytes):
    coder, processor = encoder("llava")
    image = {"bytes": jpeg.read_bytes(), "path": None} if as_bytes else str(jpeg)
    encoded = coder.encode_dataset(rows_with([image, None]), "training")
    batch = DataCollatorForPromptTuning(processor)([encoded[i] for i in range(2)])
    expected = processor(text=["<image>"], images=[[Pillow.open(jpeg)]], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert is_encoded(encoded)
    assert encode_data(encoded, "training", coder, None, True) is encoded


def test_a_stream_has_the_same_rows():
    coder, _ = encoder()
    data = rows_with([picture(20, 30), None, picture(16, 16, 1)])
    expected = coder.encode_dataset(data, "training").to_list()
    streams = data.to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(list(data)))
    for stream in streams:
        found = list(coder.encode_dataset(stream, "training"))
        for row, other in zip(found, expected, strict=True):
            assert row["input_ids"] == other["input_ids"] and row["labels"] == other["labels"]
            assert len(row["images"]) == len(other["images"])


def test_several_pictures_in_a_field_and_a_field_twice():
    processor = tiny_processor("llava")
    template = PromptTemplate("{image} and {images} {image} ?", "{answer}")
    coder = row_tokenizer(template, processor, False)
    first, *others = seen = [picture(8, 8, i) for i in range(3)]
    encoded = coder.encode_dataset(
        Dataset.from_list([{"image": first, "images": others, "answer": "yes"}]), "training"
    )
    batch = DataCollatorForPromptTuning(processor)([encoded[0]])
    assert encoded["input_ids"][0].count(processor.image_token_id) == 4 * 4
    expected = processor(text=["<image>" * 4], images=[[*seen, first]], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)


@pytest.mark.parametrize("none", [None, []])
def test_a_row_without_a_picture_in_a_column_of_pictures(none):
    template, processor = PromptTemplate("{image} ?", "{answer}"), tiny_processor("llava")
    rows = [[picture(8, 8)], none] if none is not None else [picture(8, 8), none]
    data = Dataset.from_dict({"image": rows, "answer": ["yes", "no"]})
    kind = Image() if none is None else List(Image())
    encoded = row_tokenizer(template, processor, False).encode_dataset(data.cast_column("image", kind), "training")
    assert [len(row["images"]) for row in encoded] == [1, 0]
    assert processor.tokenizer.decode(encoded["input_ids"][1]).split()[0].startswith("?")


def test_names_of_files_are_no_pictures(caplog):
    coder, _ = encoder("llava")
    row = {"image": "a.png", "question": "a dog ?", "answer": "yes"}
    coder.encode_dataset(Dataset.from_list([row]), "training")
    assert "no column of the data has any (image, question, answer). If one names files, cast it" in caplog.text


def test_a_tokenizer_reads_no_pictures():
    coder = row_tokenizer(TEMPLATE, tiny_processor("llava").tokenizer, False)
    for value in (picture(8, 8), {"bytes": b"", "path": None}):
        with pytest.raises(
            PromptTuningError, match=r"\{image\} is a .* and dates. Pictures are read with the backbone's"
        ):
            coder.encode({"image": value, "question": "a dog ?", "answer": "yes"})


def test_batches_without_pictures_have_no_pixels():
    coder, processor = encoder("qwen2_5_vl")
    encoded = coder.encode_dataset(rows_with([picture(8, 8), None]), "training")
    batch = DataCollatorForPromptTuning(processor, pad_to_multiple_of=8)([encoded[1]])
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "mm_token_type_ids"}
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    assert not batch["mm_token_type_ids"].any()


def test_what_is_no_picture():
    coder, processor = encoder()
    broken = rows_with([{"bytes": b"no picture", "path": None}])
    with pytest.raises(PromptTuningError, match=r"row 1 of the test data: \{image\} has a picture that cannot be"):
        coder.encode_dataset(broken, "test")
    with pytest.raises(PromptTuningError, match=r"a picture of \(0, 0\) pixels cannot be read by Idefics3Processor"):
        coder.pictures.placed({"image": Pillow.new("RGB", (0, 0)), "question": "a"}, TEMPLATE)
    with pytest.raises(PromptTuningError, match="the column 'images' makes no batch"):
        row = {"input_ids": [1], "labels": [1], "images": [picture(8, 8)]}
        DataCollatorForPromptTuning(processor.tokenizer)([row])
    processor.image_token = None
    with pytest.raises(PromptTuningError, match="Idefics3Processor, which has no token for a picture"):
        row_tokenizer(TEMPLATE, processor, False)


def test_a_tokenizer_makes_no_picture_rows():
    assert type(row_tokenizer(TEMPLATE, tiny_processor("llava").tokenizer, False)) is PromptTokenizer
    assert row_tokenizer(TEMPLATE, tiny_processor("llava").tokenizer, False).pictures is None


@pytest.mark.parametrize("image", [picture(8, 8), None])
def test_a_text_with_the_token_of_a_pictures_features(image):
    """Gemma 3 writes one token for a picture in a text, and makes another of it for each of its features."""
    coder, _ = encoder("gemma3")
    expected = 4 if image else 0
    with pytest.raises(PromptTuningError, match=rf"has {expected + 1} times the token '<image>' .* have {expected};"):
        coder.inputs([{"image": image, "question": "an <image> of ?"}])


def test_pictures_side_by_side():
    """Qwen's positions are counted for each run of a picture's tokens."""
    seen = [picture(8, 8), picture(8, 8, 1)]
    for name in ("llava", "gemma3"):
        assert encoder(name)[0].inputs([{"image": seen, "question": "a"}])["pixel_values"].shape[0] == 2
    coder, _ = encoder("qwen2_5_vl")
    with pytest.raises(PromptTuningError, match="two pictures of the row stand side by side, and the backbone of"):
        coder.inputs([{"image": seen, "question": "a"}])
    apart = row_tokenizer(PromptTemplate("{image} and {question}", "{answer}"), tiny_processor("qwen2_5_vl"), False)
    assert len(apart.inputs([{"image": seen[0], "question": seen[1]}])["image_grid_thw"]) == 2


def test_spans_move_by_what_is_written_before_them():
    content = [picture_part("<i>", "[one]"), {"type": "text", "text": "a"}, picture_part("<i>", "[second]")]
    text = "x<i>abc<i>de"
    written = WrittenPictures(text, [{"role": "user", "content": content}])
    assert written.text == "x[one]abc[second]de"
    spans = [(0, 1), (4, 7), (10, 12), (0, 12)]
    expected = ["x", "abc", "de", "x[one]abc[second]de"]
    assert [written.text[start:end] for start, end in written.moved(spans)] == expected
    assert WrittenPictures(text, [{"role": "user", "content": "no picture"}]).moved(spans) == spans
