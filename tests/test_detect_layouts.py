"""Boxes as annotation tools export them: where their files lie, their ids and names."""

import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image
from support.detectors import write_coco

from datasets.image import decoding
from detection import coco
from detection.images import create
from runtime.errors import InputError


@pytest.fixture
def whole(tmp_path):
    """The folder of 10 images and the content of their file; move_to() makes a layout of them."""
    return tmp_path, write_coco(tmp_path / "before", "all", 10)


def lay_out(whole, *parts):
    """Write {file, images: folder, name: of an image in the file} of each part of the images."""
    root, content = whole
    step = len(content["images"]) // len(parts)
    for number, (file, folder, name) in enumerate(parts):
        images = content["images"][number * step : (number + 1) * step]
        ids = [image["id"] for image in images]
        for place in (root / "data" / file).parent, root / "data" / folder:
            place.mkdir(parents=True, exist_ok=True)
        part = {**content, "images": [], "annotations": []}
        for image in images:
            plain = image["file_name"]
            shutil.copy(root / "before" / "all" / plain, root / "data" / folder / plain)
            part["images"].append({**image, "file_name": name.format(plain)})
        part["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (root / "data" / file).write_text(json.dumps(part))
    return str(root / "data")


def options(data, **given):
    opt = {"train": "train2017", "val": "val2017", "trainImages": "", "valImages": ""}
    opt |= {"dataset": "coco", "testOnly": False, "skipCorrupt": False, "data": data, "gen": ""}
    return types.SimpleNamespace(**{**opt, **given})


SPLIT = {
    "Roboflow": [(f"{s}/_annotations.coco.json", s, "{}") for s in ("train", "valid")],
    "Roboflow without valid": [(f"{s}/_annotations.coco.json", s, "{}") for s in ("train", "test")],
    "CVAT": [
        (f"annotations/instances_{s}.json", f"images/{s}", "{}") for s in ("Train", "Validation")
    ],
    "CVAT, subset in the name": [
        (f"annotations/instances_{s}.json", f"images/{s}", s + "/{}") for s in ("train", "val")
    ],
    "labelme2coco": [
        (f"{s}.json", "images", "C:\\Users\\me\\photos\\{}") for s in ("train", "val")
    ],
    "COCO": [(f"annotations/instances_{s}2017.json", f"{s}2017", "{}") for s in ("train", "val")],
    "unpacked": [
        (f"Shapes/{s}/_annotations.coco.json", f"Shapes/{s}", "{}") for s in ("train", "test")
    ],
    "CVAT, unpacked": [
        (f"job/annotations/instances_{s}.json", f"job/images/{s}", "{}") for s in ("train", "val")
    ],
    "MMDetection": [(f"annotations/{s}.json", f"{s}/images", "{}") for s in ("train", "val")],
    "FiftyOne": [(f"{s}/labels.json", f"{s}/data", "{}") for s in ("train", "validation")],
    "deep": [(f"a/b/c/{s}/boxes.json", f"a/b/c/{s}", "{}") for s in ("train", "valid")],
    "2014": [(f"annotations/instances_{s}2014.json", f"{s}2014", "{}") for s in ("train", "val")],
}
ONE = {
    "CVAT": ("annotations/instances_default.json", "images", "{}"),
    "CVAT, default": ("annotations/instances_default.json", "images/default", "{}"),
    "labelme2coco": ("annotations.json", "JPEGImages", "JPEGImages/{}"),
    "Label Studio": ("result.json", "images", "images/{}"),
    "Label Studio, Windows": ("result.json", "images", "images\\{}"),
    "Label Studio, local": ("result.json", "images", "/data/local-files/?d=a%20b/{}"),
    "cloud": ("result.json", "images", "https://example.org/a/{}?key=a/b"),
    "FiftyOne": ("labels.json", "data", "{}"),
    "Label Studio, elsewhere": ("result.json", "images", "..\\..\\label-studio\\upload\\4\\{}"),
    "absolute": ("dataset.json", "images", "/home/me/photos/{}"),
    "VIA": ("via_export_coco.json", ".", "{}"),
    "URL": ("boxes.json", "images", "https://example.org/a/{}"),
    "a folder of any name": ("boxes.JSON", "my photos", "{}"),
    "beside annotations": ("annotations/all.json", "images", "../images/{}"),
}


@pytest.mark.parametrize("layout", SPLIT)
def test_a_folder_with_two_splits(whole, layout):
    data = lay_out(whole, *SPLIT[layout])
    train, val = create(options(data))
    assert (train.source.ids, val.source.ids) == ([*range(10, 15)], [*range(15, 20)])
    pixels = np.asarray(Image.open(whole[0] / "before" / "all" / "17.png")).transpose(2, 0, 1)
    assert (val.source.pixels(2) == pixels).all()


@pytest.mark.parametrize("given", ["-data alone", "-train", "-train from here"])
@pytest.mark.parametrize("layout", ONE)
def test_one_file_is_divided(whole, layout, given, capsys, monkeypatch):
    data = lay_out(whole, ONE[layout])
    monkeypatch.chdir(data)
    file = {"-train": ONE[layout][0], "-train from here": f"{data}/{ONE[layout][0]}"}.get(given)
    train, val = create(options(data, **({"train": file} if file else {})))
    assert val.source.ids == [10, 15] and train.source.ids == [11, 12, 13, 14, 16, 17, 18, 19]
    pixels = np.asarray(Image.open(whole[0] / "before" / "all" / "15.png")).transpose(2, 0, 1)
    assert (val.source.pixels(1) == pixels).all()
    for split in (train.source, val.source):
        assert {row[0] for row in split.rows()} == set(range(len(split.ids)))
        assert len(split.objects(1).labels) == 2
    notes = capsys.readouterr().err.splitlines()
    assert sum("every fifth image is kept for the test" in line for line in notes) == 1
    elsewhere = ONE[layout][2].startswith(("..", "/", "http"))
    assert sum("is read as '10.png', and so on" in line for line in notes) == elsewhere


@pytest.mark.parametrize("first", ["{}", "./{}", "..\\a\\{}", "/gone/{}"])
@pytest.mark.parametrize("others", ["{}", "./{}", "..\\a\\{}", "/gone/{}", "https://gone.org/{}"])
def test_names_of_several_kinds(whole, first, others):
    root, content = whole
    data = lay_out(whole, ("a.json", "images", "{}"))
    for number, image in enumerate(content["images"]):
        image["file_name"] = (others if number else first).format(image["file_name"])
    (root / "data" / "a.json").write_text(json.dumps(content))
    found = coco.open_split(data, "a.json", "")
    found.check_files(range(len(found.ids)))
    assert [found.name(i)[-6:] for i in range(10)] == [f"{id}.png" for id in range(10, 20)]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"image": 1}', "", '{"shapes": [], "imagePath": "a"}']
)
def test_other_files_of_json_do_not_matter(whole, text):
    data = lay_out(whole, ("a.json", "images", "{}"))
    for other in ("package.json", "train/notes.json", "images/10.json"):
        (whole[0] / "data" / other).parent.mkdir(exist_ok=True)
        (whole[0] / "data" / other).write_text(text)
    assert len(create(options(data))[0].source.ids) == 8


def test_one_folder_of_images_serves_both_parts_of_a_file(whole):
    data = lay_out(whole, ("a.json", "photos", "{}"))
    for name in ("trainImages", "valImages"):
        train, val = create(options(data, **{name: "photos"}))
        assert (train.size(), val.size()) == (8, 2)


@pytest.mark.parametrize("name", ["image_info_test2017", "image_info_test-dev2017"])
def test_images_without_annotations(whole, name):
    data = lay_out(whole, (f"annotations/{name}.json", "test2017", "{}"))
    for other in ("instances_a", "instances_b"):  # which would have to be the training images
        shutil.copy(f"{data}/annotations/{name}.json", f"{data}/annotations/{other}.json")
    given = {"val": f"annotations/{name}.json", "testOnly": True}
    assert create(options(data, **given))[1].size() == 10


def test_a_last_part_that_two_images_share_is_not_taken(whole):
    root, content = whole
    data = lay_out(whole, ("a.json", "images", "{}"))
    for image, folder in zip(content["images"], "xy" * 5):
        image["file_name"] = f"/gone/{folder}/1{image['id'] // 2}.png"
    (root / "data" / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="image 10 has an invalid file_name: '/gone/x/15.png'"):
        create(options(data))


@pytest.mark.parametrize(
    "names, words",
    [
        (["a.json", "b.json"], "has .json files, but none of COCO's JSON: .*labelme2coco conv"),
        (["notes.json", "labels/a.txt"], "has .txt files, but none of COCO's JSON"),
        (["a.xml"], "has .xml files, but none of COCO's JSON: the package supervision converts"),
        (["a.jpg"], "missing annotations"),
        (["README.roboflow.txt", "a.jpg"], "missing annotations"),
    ],
)
def test_other_folders(tmp_path, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=words):
        create(options(str(tmp_path)))


@pytest.mark.parametrize("others", [["dev"], ["test_a", "test_b"], ["a", "b", "c"]])
def test_one_of_several_files_is_not_divided(whole, others):
    files = ["train", *others]
    data = lay_out(whole, *((f"{name}.json", "images", "{}") for name in files))
    listed = ", ".join(f"{name}.json" for name in sorted(files)[:3])
    words = f"has {len(files)} files of boxes, {listed}{', and others' * (len(files) > 3)}: give"
    with pytest.raises(InputError, match=words):
        create(options(data))
    assert create(options(data, val=f"{others[0]}.json"))[0].source.ids[0] == 10


@pytest.mark.parametrize("keypoints", ["{}", '{"images": []}'])
def test_results_and_keypoints_beside_the_file_are_none(whole, keypoints):
    data = lay_out(whole, ("annotations/instances_default.json", "images", "{}"))
    (whole[0] / "data" / "detections.json").write_text('[{"image_id": 10}]')
    (whole[0] / "data" / "annotations" / "person_keypoints_default.json").write_text(keypoints)
    assert len(create(options(data))[0].source.ids) == 8


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(whole, encoding):
    """PowerShell's > writes UTF-16."""
    data = lay_out(whole, ("boxes.json", "images", "{}"))
    path = whole[0] / "data" / "boxes.json"
    path.write_text(path.read_text().replace("tall", "große"), encoding)
    assert create(options(data))[0].source.names == ["square", "große"]


IDS = {
    "text": lambda id: f"{id}",
    "names": lambda id: f"image_{id}",
    "floats": float,
    "0": lambda id: id - 10,
    "of 127 bits": lambda id: 2**126 + id,  # uuid4().int, say
}


@pytest.mark.parametrize("kind", [*IDS, "text in the annotations"])
def test_ids(tmp_path, kind):
    content = write_coco(tmp_path, "train2017", 3)
    of, in_file = IDS.get(kind, str), IDS.get(kind, int)
    for image in content["images"]:
        image["id"] = in_file(image["id"])
    for entry in content["annotations"]:
        entry["image_id"] = of(entry["image_id"])
        if kind != "0":
            entry["category_id"], entry["id"] = of(entry["category_id"]), of(entry["id"])
    for category in content["categories"]:
        category["id"] = in_file(category["id"]) if kind != "0" else category["id"]
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    found = coco.open_split(str(tmp_path), "train2017", "")
    plain = (
        [*map(IDS[kind], (10, 11, 12))] if kind in ("names", "0", "of 127 bits") else [10, 11, 12]
    )
    assert found.ids == plain
    assert [found.name(i)[-6:] for i in range(3)] == ["10.png", "11.png", "12.png"]
    assert all(len(found.objects(i).labels) == 2 for i in range(3))


def test_categories_of_one_id(tmp_path, capsys):
    """As VIA writes them; and entries that stand there twice."""
    content = write_coco(tmp_path, "train2017", 2)
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**content, "categories": 2 * content["categories"]}))
    assert coco.open_split(str(tmp_path), "train2017", "").names == ["square", "tall"]
    for entry in (*content["categories"], *content["annotations"]):
        entry["category_id" if "image_id" in entry else "id"] = 1
    path.write_text(json.dumps(content))
    found = coco.open_split(str(tmp_path), "train2017", "")
    assert (found.names, found.categories) == (["tall / square"], [1])
    assert (
        "all categories have the id 1, so they are one class, 'tall / square'"
        in capsys.readouterr().err
    )


def corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


@pytest.mark.parametrize(
    "change, words",
    [
        (corners, "boxes reach beyond their image"),
        (lambda box: [v / 50 for v in box], "all boxes are smaller than a pixel"),
        (lambda box: box, ""),
    ],
)
def test_boxes_that_seem_not_to_be_in_pixels(tmp_path, capsys, change, words):
    content = write_coco(tmp_path, "train2017", 6)
    beyond = 0
    for entry in content["annotations"]:
        box = entry["bbox"] = change(entry["bbox"])
        beyond += box[0] + box[2] > 49 or box[1] + box[3] > 41
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    coco.open_split(str(tmp_path), "train2017", "")
    notes = capsys.readouterr().err
    assert words in notes and bool(notes) == bool(words)
    assert f"{beyond} of 12 boxes reach" in notes or not beyond


@pytest.mark.parametrize("area", [0, None])
def test_a_good_box_without_an_area_is_a_box(tmp_path, area):
    content = write_coco(tmp_path, "train2017", 2)
    for entry in content["annotations"]:
        entry["area"] = area
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    found = coco.open_split(str(tmp_path), "train2017", "")
    assert len(found.objects(0).labels) == 2
    for *_, area, box in found.rows():
        assert area == box[2] * box[3]


@pytest.mark.parametrize("stated", ["turned", "as it lies"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "WEBP", "TIFF"])
def test_photos_are_turned_if_the_stated_size_is_the_turned_one(
    tmp_path, monkeypatch, capfd, kind, orientation, stated
):
    """By Pillow's own rule, which is the oracle."""
    from PIL import ImageOps

    monkeypatch.setattr(decoding, "_printed", bytearray(9))
    content = write_coco(tmp_path, "train2017", 1, size=(48, 40))
    path = tmp_path / "train2017" / "10.png"
    exif = Image.Exif()
    exif[274] = orientation
    progressive = {"progressive": True} if kind == "progressive JPEG" else {}
    before = Image.open(path).convert("RGB")
    before.save(path, kind.split()[-1], exif=exif, quality=95, **progressive)
    upright = ImageOps.exif_transpose(Image.open(path))
    turns = stated == "turned" and orientation > 4
    if turns:
        content["images"][0].update(width=40, height=48)
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    found = coco.open_split(str(tmp_path), "train2017", "").pixels(0)
    upright = np.asarray(upright.convert("RGB")).transpose(2, 0, 1)
    lies = before if kind == "TIFF" else Image.open(path).convert("RGB")  # Pillow turns a TIFF
    assert (found == (upright if turns else np.asarray(lies).transpose(2, 0, 1))).all()
    notes = capfd.readouterr().err
    assert ("are turned upright" in notes) == turns
    assert ("carry an orientation, which is ignored" in notes) == (orientation > 1 and not turns)
    assert (decoding.load_image(path, upright_unless=decoding.ALWAYS) == upright).all()
