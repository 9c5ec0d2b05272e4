"""data_prep export: coordinates are right for the family, and boxes survive the way there and back."""

import json
import math

import numpy as np
import pytest
from PIL import ExifTags, Image

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.batching.encoder import expected_input_size
from boxtune.data.dataset import read_records, write_dataset
from boxtune.data.images import load_image
from boxtune.families import FAMILIES
from boxtune.models.processors import set_pixel_budget
from data_prep.__main__ import main as data_prep
from data_prep.tools.export_detectors import coco_annotations
from tests.helpers.collators import make_collator
from tests.helpers.sources import make_image

BOXES = [[10.5, 20, 300.25, 411], [0, 0, 512, 640], [400.125, 100, 420, 130]]


def record(folder, name: str, boxes: list, ignore: bool = False, rotated: bool = False) -> dict:
    path = make_image(folder / f"{name}.png", 512, 640)
    if rotated:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        path = path.with_suffix(".jpg")
        Image.new("RGB", (640, 512), "red").save(path, exif=exif)
    count = len(boxes)
    labels, ignored = ['cup "A"', "jar", "jar"][:count], [False, False, ignore][:count]
    return {
        "id": name,
        "image": str(path),
        "width": 512,
        "height": 640,
        "objects": {"bbox": boxes, "category": labels, "ignore": ignored},
        "messages": [
            {"role": "user", "content": '<image>Detect every cup "A" and jar in the image.'},
            {"role": "assistant", "content": "<boxes>"},
        ],
    }


@pytest.fixture
def data(tmp_path):
    """Two splits, an empty image, an image with an EXIF rotation, and an ignored object."""
    folder = tmp_path / "images"
    splits = {
        # An id with the word that YOLO tools replace to find labels, and two ids that differ only in their extension.
        "train": [
            record(folder, "a", BOXES, ignore=True),
            record(folder, "images/a", []),
            record(folder, "x", BOXES[:1]),
            record(folder, "x.png", BOXES[1:2]),
        ],
        "validation": [record(folder, "c", BOXES[:1], rotated=True)],
    }
    write_dataset(
        tmp_path / "data", name="d", source_format="coco", classes=['cup "A"', "jar"], splits=splits, problems=[]
    )
    return tmp_path / "data"


def run(data, kind: str, *more, out=None):
    out = out or data.parent / f"out_{kind}"
    data_prep(["export", str(data), "--export", kind, "--out", str(out), *map(str, more)])
    return out


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_coco_annotations_are_not_rounded_and_have_the_stated_areas():
    """27.24 and 148.64 − 121.4 are different floats, and an IoU threshold may lie between them."""
    objects = {"bbox": [[539.09, 121.4, 543.09, 148.64], [0, 0, 10, 20]], "category": ["cup", "jar"]}
    objects |= {"ignore": [False, True], "area": [77.7777, None]}
    stated, own = coco_annotations([{"objects": objects}], ["jar", "cup"])
    assert stated["bbox"] == [539.09, 121.4, 543.09 - 539.09, 148.64 - 121.4]
    assert (stated["area"], stated["iscrowd"], stated["category_id"]) == (77.7777, 0, 2)
    assert (own["area"], own["iscrowd"], own["category_id"]) == (200, 1, 1)


@pytest.mark.parametrize("kind", ["coco", "yolo"])
@pytest.mark.parametrize("copied", [False, True])
def test_detection_formats_come_back_with_the_same_boxes(data, tmp_path, capsys, kind, copied):
    out = run(data, kind, *(["--copy-images"] if copied else []))
    data_prep([kind, str(out), "--out", str(tmp_path / "back")])
    for split in ("train", "validation"):
        before, after = read_records(data, split), read_records(tmp_path / "back", split)
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            kept = [i for i, ignore in enumerate(old["objects"]["ignore"]) if kind == "coco" or not ignore]
            for key, values in old["objects"].items():
                assert new["objects"][key] == [values[i] for i in kept], key
            assert (new["width"], new["height"]) == (old["width"], old["height"])
    assert (out / "images" / "train" / "a.png").is_symlink() != copied
    with Image.open(out / "images" / "val" / "c.png") as image:
        assert image.size == (512, 640) and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert ("1 ignored object(s) are left out" in capsys.readouterr().out) == (kind == "yolo")


@pytest.mark.parametrize("family", FAMILIES)
def test_trl_answers_fit_the_image_that_the_collator_makes(data, tiny_models, family):
    """Coordinates are computed for the size that the family's own processor produces."""
    from transformers import AutoProcessor

    out = run(data, "trl", "--family", family, "--max-pixels", 100_352, out=data.parent / family)
    processor = AutoProcessor.from_pretrained(tiny_models[family])
    set_pixel_budget(processor, 3136, 100_352)
    row, empty, *_ = lines(out / "train.jsonl")
    size = expected_input_size(processor, (640, 512))
    codec = CODECS[family]
    wanted = codec.encode(BOXES[:2], ['cup "A"', "jar"], (640, 512), size).text
    assert row["completion"] == [{"role": "assistant", "content": wanted}]
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert "<image>" not in row["prompt"][1]["content"] and (out / row["images"][0]).is_file()
    assert empty["completion"][0]["content"] == codec.encode([], [], (640, 512), size).text


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_trl_trains_on_the_tokens_that_boxtune_trains_on(data, tiny_models, tmp_path, family):
    """SFTTrainer, used as the command prints, trains on our answers to our questions, and also on the line break that ends
    a turn."""
    from datasets import Image as ImageFeature
    from datasets import Sequence, load_dataset
    from transformers import AutoModelForImageTextToText
    from trl import SFTConfig, SFTTrainer

    out = run(data, "trl", "--family", family, "--max-pixels", 100_352, out=data.parent / family)
    rows = load_dataset("json", data_files=str(out / "train.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.map(lambda row: {"images": [str(out / name) for name in row["images"]]})
    rows = rows.cast_column("images", Sequence(ImageFeature()))
    collator = make_collator(
        tiny_models[family], data, system_prompt=SYSTEM_PROMPT, min_pixels=3136, max_pixels=100_352
    )
    processor = collator.processor
    model = AutoModelForImageTextToText.from_pretrained(tiny_models[family])
    options = SFTConfig(str(tmp_path / "run"), max_length=None, use_cpu=True, bf16=False, report_to="none")
    trainer = SFTTrainer(model=model, args=options, train_dataset=rows, processing_class=processor)
    line_break = processor.tokenizer("\n")["input_ids"]
    for row, record in zip(rows, read_records(data, "train"), strict=True):
        batch = trainer.data_collator([row])
        wanted = collator.encoder.encode(record, expected_input_size(processor, (record["height"], record["width"])))
        assert batch["input_ids"][0].tolist() == wanted.input_ids
        labels = batch["labels"][0].tolist()
        assert labels[:-1] == wanted.labels[:-1] and labels[-1:] == line_break


@pytest.mark.parametrize("family", FAMILIES)
def test_swift_boxes_fit_the_image_that_ms_swift_makes(data, capsys, family):
    """ms-swift resizes with qwen-vl-utils, to a budget rounded down to whole tokens: with a factor of 28, 90,400 px would
    give 336 × 252, but 115 tokens give 308 × 252. ms-swift's own placeholders would not give this text."""
    from qwen_vl_utils import fetch_image

    out = run(data, "swift", "--family", family, "--max-pixels", 90_400)
    factor = FAMILIES[family].factor
    token = factor**2
    least, most = 3136 // token * token, 90_400 // token * token
    printed = capsys.readouterr().out
    assert f"MIN_PIXELS={least} MAX_PIXELS={most} swift sft --model MODEL --dataset {out / 'train.jsonl'}" in printed
    assert f"--val_dataset {out / 'validation.jsonl'}" in printed
    row, empty, *_ = lines(out / "train.jsonl")
    assert set(row) == {"messages", "images"} and row["messages"][1]["content"].count("<image>") == 1
    seen = fetch_image({"image": row["images"][0], "min_pixels": least, "max_pixels": most}, factor // 2)
    if factor == 28:
        assert seen.size == (252, 308)
    codec, size = CODECS[family], (seen.height, seen.width)
    wanted = codec.encode(BOXES[:2], ['cup "A"', "jar"], (640, 512), size).text
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][-1]["content"] == wanted
    assert empty["messages"][-1]["content"] == codec.encode([], [], (640, 512), size).text


@pytest.mark.parametrize(("family", "template"), [("qwen2_5_vl", "qwen2_vl"), ("qwen3_vl", "qwen3_vl_nothink")])
def test_the_llamafactory_command_names_the_data_and_a_template_without_thinking(data, capsys, family, template):
    out = run(data, "llamafactory", "--family", family, "--max-pixels", 100_352)
    printed = capsys.readouterr().out
    assert f"--template {template} --dataset_dir {out} --media_dir {out} --dataset out_llamafactory_train " in printed
    assert "--image_min_pixels 3136 --image_max_pixels 100352 --cutoff_len 32768 " in printed


def test_images_that_programs_read_differently_are_rewritten_as_boxtune_reads_them(data):
    """Pillow's own conversion drops an alpha channel and turns most of a 16-bit image white."""
    folder = data.parent / "images"
    Image.new("RGBA", (512, 640), (255, 0, 0, 40)).save(folder / "a.png")
    ramp = np.linspace(0, 65535, 512 * 640).reshape(640, 512).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "x.png")
    out = run(data, "llamafactory", "--family", "qwen3_vl") / "images" / "train"
    for name in ("a.png", "x.png"):
        with Image.open(out / name) as image:
            assert image.mode == "RGB" and not (out / name).is_symlink()
            assert np.array_equal(image, load_image(folder / name))
    assert (out / "x.png.png").is_symlink()


def test_llamafactory_resizes_twice(data):
    """First to its own budget, 512 × 640 at 100,352 px to 283 × 354, then to multiples of 28, 280 × 364."""
    out = run(data, "llamafactory", "--family", "qwen2_5_vl", "--max-pixels", 100_352)
    described = json.loads((out / "dataset_info.json").read_text())
    assert described["out_llamafactory_train"]["file_name"] == "train.json"
    row, *_ = json.loads((out / "train.json").read_text())
    factor = math.sqrt(100_352 / (512 * 640))
    assert (int(512 * factor), int(640 * factor)) == (283, 354)
    wanted = CODECS["qwen2_5_vl"].encode(BOXES[:2], ['cup "A"', "jar"], (640, 512), (364, 280)).text
    assert row["messages"][-1] == {"role": "assistant", "content": wanted}
    assert row["messages"][1]["content"].startswith("<image>") and (out / row["images"][0]).is_file()


def test_llamafactory_rounds_down(data):
    """At 129,364 px, 321.7 × 402.1 becomes 321 × 402 and then 308 × 392. Rounded, 322 × 402 would become 336 × 392."""
    out = run(data, "llamafactory", "--family", "qwen2_5_vl", "--max-pixels", 129_364)
    row, *_ = json.loads((out / "train.json").read_text())
    wanted = CODECS["qwen2_5_vl"].encode(BOXES[:2], ['cup "A"', "jar"], (640, 512), (392, 308)).text
    assert row["messages"][-1]["content"] == wanted


def test_all_invalid_arguments_are_listed(data, capsys):
    def failure(*args) -> str:
        with pytest.raises(SystemExit) as stop:
            run(data, *args, out=data)
        assert stop.value.code == 2
        return capsys.readouterr().err

    message = failure("trl")
    assert "needs --family" in message and f"--out {data} exists" in message
    for kind in ("trl", "swift", "llamafactory"):
        assert "give the --max-pixels of your training" in failure(kind, "--family", "qwen2_5_vl")
    assert "need 1024 ≤ min ≤ max" in failure("trl", "--family", "qwen3_vl", "--min-pixels", 900, "--max-pixels", 4096)
    assert read_records(data, "train")
    assert "need 1 ≤ min ≤ max" in failure("coco", "--max-pixels", 0)


def test_corrupt_images_and_unknown_classes_are_all_listed(data, capsys):
    (data.parent / "images" / "a.png").write_bytes(b"corrupt")
    (data.parent / "images" / "x.png").unlink()
    lines = (data / "validation.jsonl").read_text().replace('cup \\"A\\""]', 'zebra"]')
    (data / "validation.jsonl").write_text(lines)
    with pytest.raises(SystemExit) as stop:
        run(data, "yolo")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "a.png cannot be opened" in message and "x.png cannot be opened" in message
    assert "'zebra' is not one of the classes" in message and not (data.parent / "out_yolo").exists()


def test_an_image_that_was_corrupted_later_is_one_message(data, capsys):
    """Its header is intact, but its pixels are needed to rewrite it upright."""
    corrupt = data.parent / "images" / "c.jpg"
    corrupt.write_bytes(corrupt.read_bytes()[:-500])
    with pytest.raises(SystemExit) as stop:
        run(data, "coco")
    assert stop.value.code == 2 and f"{corrupt} cannot be read" in capsys.readouterr().err
    assert not (data.parent / "out_coco").exists()


def test_an_image_that_was_resized_later_is_named_with_both_sizes(data, capsys):
    make_image(data.parent / "images" / "x.png", 50, 60)
    with pytest.raises(SystemExit) as stop:
        data_prep(["export", str(data), "--export", "coco", "--out", str(data.parent / "out")])
    assert stop.value.code == 2 and not (data.parent / "out").exists()
    assert "x.png is 50 × 60, but its record says 512 × 640" in capsys.readouterr().err


def test_a_dataset_without_training_images_gives_no_training_command(data, capsys):
    (data / "train.jsonl").unlink()
    info = json.loads((data / "dataset.json").read_text())
    del info["splits"]["train"]
    (data / "dataset.json").write_text(json.dumps(info))
    for kind in ("swift", "llamafactory"):
        with pytest.raises(SystemExit):
            data_prep(["export", str(data), "--export", kind, "--family", "qwen3_vl", "--out", str(data.parent / kind)])
        assert "no training images, only validation" in capsys.readouterr().err
    data_prep(["export", str(data), "--export", "yolo", "--out", str(data.parent / "yolo")])
    assert "train: images/val" in (data.parent / "yolo" / "data.yaml").read_text()


def test_yolo_gets_only_image_formats_that_its_tools_list(tmp_path):
    place = tmp_path / "a.gif"
    Image.new("RGB", (512, 640), "red").save(place)
    row = record(tmp_path, "a", BOXES[:1]) | {"image": str(place)}
    write_dataset(
        tmp_path / "data",
        name="d",
        source_format="test",
        classes=["jar", 'cup "A"'],
        splits={"train": [row]},
        problems=[],
    )
    data_prep(["export", str(tmp_path / "data"), "--export", "yolo", "--out", str(tmp_path / "yolo")])
    assert [path.name for path in (tmp_path / "yolo" / "images" / "train").iterdir()] == ["a.png"]
