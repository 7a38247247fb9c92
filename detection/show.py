"""What a detector finds, as pictures: in one photo, and in the first images of a test."""

import itertools
import os

import torch

from datasets.image import decoding
from detection import files, picture, scenes, sources
from parallel import group
from runtime.terminal import say

SHEET = 6  # images


def photo(opt):
    """Draw what the detector -retrain finds in -show: an image file, or the number of a scene."""
    model = files.load(opt.retrain).eval()
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
    picture.save(opt.out, picture.draw(pixels, found, model.classes, opt.minScore))
    for box, score, label in zip(*(found[name].tolist() for name in ("boxes", "scores", "labels"))):
        if score >= opt.minScore:
            corners = " ".join(f"{value:7.1f}" for value in box)
            say(f" {score:5.3f}  {corners}  {model.classes[label - 1]}")
    say(f"=> {opt.out}")


def sheet_of(found, images, model, opt):
    """Draw the first images of the last test and what was found there into detections.png."""
    if group.rank() or not found:
        return
    by_id = {id: dict(zip(("boxes", "scores", "labels"), parts)) for id, *parts in found}
    pictures = []
    readable = (code for code in range(0, 2 * images.size(), 2) if images.id(code) in by_id)
    for code in itertools.islice(readable, SHEET):  # the others were skipped (-skipCorrupt)
        pixels, parts = images.source.pixels(images.places[code // 2]), by_id[images.id(code)]
        pictures.append(picture.draw(pixels, parts, model.classes, opt.minScore))
    path = os.path.join(opt.save, "detections.png")
    picture.save(path, picture.sheet(pictures))
    say(f"=> {path}")
