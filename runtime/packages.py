"""What to do when a required package is not installed, in one sentence."""

# as they are imported; requirements.txt has their names for pip
REQUIRED = ("torch", "torchvision", "numpy", "PIL", "filelock")


def missing(error):
    """The sentence for an ImportError of a required package, or None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in REQUIRED:
        return None
    return (
        f"{error.name} is not installed in this Python: `make demo` installs what is needed into"
        " .venv, and `. .venv/bin/activate` enters it in this shell; or install it by hand,"
        " `pip install -r requirements.txt`"
    )
