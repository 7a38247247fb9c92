"""The facts of CIFAR-100 with its fine labels. Port of datasets/cifar100.lua."""

stem = "cifar"
side = 32  # pixels
# of each colour over the training images, in 0..255; not those of CIFAR-10
mean = (129.3, 124.1, 112.4)
std = (68.2, 65.4, 70.4)
NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
    bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


def classes(opt):
    """Class names; a target is an index into them."""
    return NAMES.split()


def create(info, opt, split):
    """The split "train" or "val"; `info` is the cache that cifar100_gen.exec wrote."""
    from datasets.in_memory import Images  # here, so that opts.py gets `stem` without torch

    return Images(info, split, mean, std, padding=4, mirror=True)
