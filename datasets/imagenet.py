"""The facts of ImageNet, or of any folder laid out like it. Port of datasets/imagenet.lua."""

stem = "imagenet"

# of each colour in 0..1, over a random subset of the ImageNet training images
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classes(opt):
    """Class names, which are the folder names; a target is an index into them."""
    from datasets import imagenet_gen

    return imagenet_gen.classes(opt)


def create(info, opt, split):
    """The split "train" or "val"; `info` is the cache that imagenet_gen.exec wrote."""
    from datasets.image_folder import ImageFolder  # not at the top: opts.py needs only `stem`, fast

    return ImageFolder(info, opt, split, mean, std)
