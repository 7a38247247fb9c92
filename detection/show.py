"""Draws what a detector finds, in one photo or in the first images of a test."""

import contextlib
import io
import json
import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from datasets.image import decoding
from datasets.imagenet_gen import EXTENSIONS
from detection import files, scenes, scores
from parallel import group
from runtime.errors import InputError, cause, cut
from runtime.terminal import say
from storage import atomic

# Okabe and Ito's colours, as in plot.py
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
LONGEST = 40  # characters of a name
LEAST = 480  # pixels of the longer side: a smaller image is drawn larger
SHEET, COLUMNS = 6, 3  # images
LARGEST = 2000  # pixels of a side of the sheet
PICTURES = (".png", ".jpg", ".jpeg")


def photos(opt):
    """Draw what the detector -retrain finds in -show: a photo, a folder, or the number of a scene.

    Of a folder COCO's results are written as well, with the name of each photo's file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = files.load_detector(opt.retrain, **files.caps(opt)).eval()
    model.to(device, torch.float32, memory_format=torch.channels_last)
    number = scenes.scene(opt.show) if opt.dataset == "digits" else None
    if number is not None:
        _photo(scenes.create(opt)[1].pixels(number), model, opt, opt.out)
    elif os.path.isdir(opt.show):
        _folder(model, opt)
    else:
        _photo(_upright(opt.show), model, opt, opt.out)


def _folder(model, opt):
    names = sorted(name for name in os.listdir(opt.show) if name.lower().endswith(EXTENSIONS))
    names = [name for name in names if not name.startswith(".")]  # macOS adds "._photo.jpg"
    if not names:
        raise InputError(f"{opt.show!r} has no photo ({' '.join(EXTENSIONS)})")
    with contextlib.suppress(OSError):  # writing the first picture says what is wrong
        os.makedirs(opt.out, exist_ok=True)
    results, categories = [], range(1, 1 + len(model.classes))
    for id, name in enumerate(names, 1):
        try:
            pixels = _upright(os.path.join(opt.show, name))
        except InputError as error:
            if not opt.skipCorrupt:
                raise InputError(f"{error}; remove it, or give -skipCorrupt true") from None
            say(f"=> skipped: {error}")
            continue
        picture = name if name.lower().endswith(PICTURES) else f"{name}.png"
        found = _photo(pixels, model, opt, os.path.join(opt.out, picture))
        for each in scores.results([(0, *found.values())], [id], categories):
            label = model.classes[each["category_id"] - 1]
            results.append({**each, "file_name": name, "category": label})
    path = os.path.join(opt.out, "results.json")
    atomic.write(path, json.dumps(results).encode())
    say(f"=> {path}")


def _upright(path):
    return decoding.load_image(path, upright_unless=decoding.ALWAYS)


def _photo(pixels, model, opt, out):
    """Draw and print what is found in an image; returns that, {name: array}."""
    found = model(torch.from_numpy(pixels))
    found = {name: found[name].cpu().numpy() for name in ("boxes", "scores", "labels")}
    save(out, draw(pixels, found, model.classes, opt.minScore))
    for box, score, label in zip(*(values.tolist() for values in found.values())):
        if score >= opt.minScore:
            corners = " ".join(f"{value:7.1f}" for value in box)
            say(f" {score:5.3f}  {corners}  {cut(model.classes[label - 1], LONGEST)}")
    if not (found["scores"] >= opt.minScore).any():
        least = max(opt.minScore, model.roi_heads.score_thresh)
        best = f"; the best is {found['scores'].max():.3f}" if len(found["scores"]) else ""
        say(f" nothing found with a score of {least:g} or more (-minScore, -leastScore){best}")
    say(f"=> {out}")
    return found


def sheet_of(found, images, model, opt):
    """Draw the first images of the last test, with found and true boxes, into detections.png."""
    if group.rank() or not found:
        return
    by_place = {place: dict(zip(("boxes", "scores", "labels"), parts)) for place, *parts in found}
    pictures = []
    # images that were skipped (-skipCorrupt) are not among them
    for place, parts in sorted(by_place.items())[:SHEET]:
        pixels, truth = images.source.pixels(place), images.source.objects(place).boxes
        picture = draw(pixels, parts, model.classes, opt.minScore, truth)
        picture.thumbnail((LARGEST // COLUMNS, LARGEST // COLUMNS))
        pictures.append(picture)
    width, height = (max(p.size[i] for p in pictures) for i in (0, 1))
    rows = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (width * min(COLUMNS, len(pictures)), height * rows), "white")
    for k, picture in enumerate(pictures):
        page.paste(picture, (k % COLUMNS * width, k // COLUMNS * height))
    path = os.path.join(opt.save, "detections.png")
    save(path, page)
    say(f"=> {path}")


def draw(pixels, found, names, least, truth=()):
    """A picture of an image, uint8 (3, H, W), with what was found with a score of at least `least`.

    found: {"boxes" (n, 4), "scores" (n,), "labels" (n,) from 1} as arrays. truth: boxes (n, 4).
    """
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    times = max(1, -(-LEAST // max(image.size)))
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    pen, size = ImageDraw.Draw(image), max(12, max(image.size) // 48)
    font = ImageFont.load_default(size)
    for box in np.asarray(truth, float).reshape(-1, 4) * times:
        pen.rectangle(box.tolist(), outline="white", width=max(4, size // 3))
    order = np.argsort(found["scores"])  # the surest on top
    for i in order[found["scores"][order] >= least]:
        box = [float(v) * times for v in found["boxes"][i]]
        label = int(found["labels"][i])
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=max(2, size // 6))
        text = f"{cut(names[label - 1], LONGEST)} {found['scores'][i]:.2f}"
        left = min(box[0], image.width - pen.textlength(text, font=font))
        corner = (max(0, left), max(0, box[1] - size - 2))
        pen.rectangle(pen.textbbox(corner, text, font=font), fill=colour)
        pen.text(corner, text, fill="black", font=font)
    return image


def save(path, image):
    """Write a picture atomically, in the format of its extension."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG" if path.lower().endswith(".png") else "JPEG")
    except OSError as error:  # a side too long for JPEG
        raise InputError(f"cannot write {path}: {cause(error)}") from None
    atomic.write(path, buffer.getvalue())
