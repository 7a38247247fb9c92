"""The facts of ImageNet, or of any folder laid out like it. Port of datasets/imagenet.lua."""

stem = "imagenet"

# of each colour in 0..1, computed from a random subset of the ImageNet training images
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classes(opt):
    """Names of the classes in the order of the targets: the folders of the images."""
    from datasets import imagenet_gen

    return imagenet_gen.classes(opt)


def create(info, opt, split):
    """One split; `info` is what imagenet_gen.exec stored."""
    from datasets.image_folder import ImageFolder  # not at the top: opts.py only wants `stem`

    return ImageFolder(info, opt, split, mean, std)
