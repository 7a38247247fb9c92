"""Draws what a detector finds, in one photo or in the first images of a test."""

import io
import itertools
import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from datasets.image import decoding
from detection import files, scenes, sources
from parallel import group
from runtime.errors import InputError, cut
from runtime.terminal import say
from storage import atomic

# Okabe and Ito's colours, as in plot.py
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
LONGEST = 40  # characters of a name
LEAST = 480  # pixels of the longer side: a smaller image is drawn larger
SHEET = 6  # images


def photo(opt):
    """Draw what the detector -retrain finds in -show, an image file or the number of a scene."""
    model = files.load_detector(opt.retrain).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, torch.float32, memory_format=torch.channels_last)
    number = scenes.scene(opt.show) if opt.dataset == "digits" else None
    if number is None:
        pixels = decoding.load_image(opt.show)
    else:
        pixels = sources.source(opt, "val").pixels(number)
    image = torch.from_numpy(pixels).to(device, torch.float32)
    with torch.inference_mode():
        (found,) = model([image])
    found = {name: value.cpu().numpy() for name, value in found.items()}
    save(opt.out, draw(pixels, found, model.classes, opt.minScore))
    for box, score, label in zip(*(found[name].tolist() for name in ("boxes", "scores", "labels"))):
        if score >= opt.minScore:
            corners = " ".join(f"{value:7.1f}" for value in box)
            say(f" {score:5.3f}  {corners}  {model.classes[label - 1]}")
    say(f"=> {opt.out}")


def sheet_of(found, images, model, opt):
    """Draw the first images of the last test, with what was found, into detections.png."""
    if group.rank() or not found:
        return
    by_id = {id: dict(zip(("boxes", "scores", "labels"), parts)) for id, *parts in found}
    pictures = []
    readable = (code for code in range(0, 2 * images.size(), 2) if images.id(code) in by_id)
    for code in itertools.islice(readable, SHEET):  # unreadable images were skipped (-skipCorrupt)
        pixels, parts = images.source.pixels(images.places[code // 2]), by_id[images.id(code)]
        pictures.append(draw(pixels, parts, model.classes, opt.minScore))
    path = os.path.join(opt.save, "detections.png")
    save(path, sheet(pictures))
    say(f"=> {path}")


def draw(pixels, found, names, least):
    """A picture of an image, uint8 (3, H, W), with what was found with a score of at least `least`.

    found: {"boxes" (n, 4), "scores" (n,), "labels" (n,) from 1} as arrays.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    times = max(1, -(-LEAST // max(image.size)))
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    pen, size = ImageDraw.Draw(image), max(12, max(image.size) // 48)
    font = ImageFont.load_default(size)
    order = np.argsort(found["scores"])  # the highest score on top
    for i in order[found["scores"][order] >= least]:
        box = [float(v) * times for v in found["boxes"][i]]
        label = int(found["labels"][i])
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=max(2, size // 6))
        text = f"{cut(names[label - 1], LONGEST)} {found['scores'][i]:.2f}"
        corner = (box[0], max(0, box[1] - size - 2))
        pen.rectangle(pen.textbbox(corner, text, font=font), fill=colour)
        pen.text(corner, text, fill="black", font=font)
    return image


def sheet(pictures, columns=3):
    """Several pictures on one, in rows."""
    width, height = (max(p.size[i] for p in pictures) for i in (0, 1))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (width * columns, height * rows), "white")
    for k, picture in enumerate(pictures):
        page.paste(picture, (k % columns * width, k // columns * height))
    return page


def save(path, image):
    """Write a picture atomically, in the format of its extension."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=Image.registered_extensions()[path[path.rindex(".") :].lower()])
        with atomic.replacing(path) as file:
            file.write(buffer.getvalue())
    except (KeyError, ValueError):
        raise InputError(f"{path} should end in .png or .jpg") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
