"""The program without optional packages, without required ones, and without Unix's own names."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# what Windows' Python does not have of what the program uses on Linux
UNIX = """
import os, signal, sys
for name in ("fcntl", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGCHLD", "SIGKILL", "pthread_sigmask", "sigwaitinfo"):
    delattr(signal, name)
for name in ("sched_getaffinity", "O_DIRECTORY", "pwrite", "getpgid", "killpg"):
    delattr(os, name)
"""


def python(script, *words, absent=(), before="", flags=(), cwd=ROOT, folder=None):
    """Run Python code, a file or -m in a process that lacks these modules: the finished process."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    if absent or before:
        lines = [f"import sys; sys.modules[{name!r}] = None" for name in absent]
        with open(os.path.join(folder, "sitecustomize.py"), "w") as file:
            file.write("\n".join([*lines, before]))
        environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
    what = [script] if script.endswith(".py") or script == "-m" else ["-c", textwrap.dedent(script)]
    return subprocess.run(
        [sys.executable, *flags, *what, *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=environment,
    )


BATCHES = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
import dataloader, opts
found = {}
for dataset in ("imagenet", "cifar10"):
    data = sys.argv[1 + (dataset == "cifar10")]
    words = ["-dataset", dataset, "-data", data, "-gen", sys.argv[3], "-nThreads", "2"]
    opt = opts.parse([*words, "-depth", "29" if dataset == "cifar10" else "50",
                      "-cardinality", "4", "-baseWidth", "8", "-batchSize", "5",
                      "-testScale", "60", "-testCrop", "56", "-manualSeed", "1"])
    for loader in dataloader.create(opt, torch.device("cpu")):
        name = f"{dataset} {loader.training}"
        inputs = [(batch.input.clone(), batch.target) for batch in loader.run(1)]
        found[name] = torch.cat([input for input, _ in inputs]).numpy()
        found[name + " target"] = torch.cat([target for _, target in inputs]).numpy()
np.savez(sys.argv[4], **found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("absent", [["numba"], ["simplejpeg"], ["numba", "simplejpeg"]])
def test_batches_without_optional_packages(absent, photos, cifar, tmp_path):
    results = []
    for n, away in enumerate(([], absent)):
        out = str(tmp_path / f"{n}.npz")
        words = (photos, cifar, str(tmp_path / "gen"), out)
        done = python(BATCHES, *words, absent=away, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in ("numba", "simplejpeg"):
            assert done.stderr.count(f"{name} cannot be imported") == (name in away)
        results.append(np.load(out))
    full, plain = results
    assert set(full.files) == set(plain.files) and len(full.files) == 8
    for name in full.files:
        assert len(full[name]) == len(plain[name]) > 0
        # float32 rounding of the fused transforms, see test_kernels.py; CIFAR's are equal
        close = 0 if "cifar" in name or "target" in name else 5e-6
        np.testing.assert_allclose(full[name], plain[name], rtol=0, atol=close)


@pytest.mark.slow
def test_a_run_without_what_only_unix_has(tmp_path):
    words = "-dataset digits -depth 11 -cardinality 2 -baseWidth 4 -nEpochs 1 -batchSize 64".split()
    folders = ("-save", str(tmp_path / "run"), "-gen", str(tmp_path / "gen"))
    done = python("main.py", *words, *folders, before=UNIX, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " * Finished top1:" in done.stdout
    with open(tmp_path / "run" / "log.jsonl") as file:
        line = json.loads(file.readlines()[-1])
    assert line["epoch"] == 1 and line["peak_memory"] is None
    assert "lock" not in "".join(os.listdir(tmp_path / "run"))
    more = python(
        *("main.py", *words, "-nEpochs", "2", "-resume", str(tmp_path / "run"), *folders),
        before=UNIX,
        folder=tmp_path,
    )
    assert more.returncode == 0 and more.stdout.count("=> Training epoch") == 1, more.stderr


@pytest.mark.slow
def test_workers_without_what_only_unix_has(photos, tmp_path):
    """The loading workers are spawned, as on Windows."""
    # torch's DataLoader itself uses these two where the system is not Windows
    unix = UNIX.replace('"SIGCHLD", "SIGKILL", ', "")
    before = unix + "import multiprocessing\nmultiprocessing.set_start_method('spawn')\n"
    words = "-depth 50 -cardinality 1 -baseWidth 2 -trainCrop 64 -nEpochs 1 -batchSize 6".split()
    words += ["-nThreads", "1"]
    folders = ("-save", str(tmp_path / "run"), "-gen", str(tmp_path / "gen"))
    done = python("main.py", "-data", photos, *words, *folders, before=before, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " * Finished top1:" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "main.py -dataset digits -depth 29 -cardinality 4 -baseWidth 8",
        "evaluate.py LICENSE -dataset digits",
        "complexity.py -depth 50 -cardinality 32 -baseWidth 4",
        "convert.py LICENSE out.pth",
        "-m datasets.prepare_imagenet .",
        "pretrained/classify.py LICENSE photo.jpg",
        "pretrained/extract_features.py LICENSE photo.jpg",
    ],
)
def test_without_packages_one_sentence(command):
    done = python(*command.split(), flags=("-S", "-E"))  # no site-packages
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    for words in ("make demo", ". .venv/bin/activate", "pip install -r requirements.txt"):
        assert words in line
    assert "is not installed" in line and not os.path.exists(os.path.join(ROOT, "out.pth"))
