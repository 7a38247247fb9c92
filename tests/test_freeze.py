"""-freeze and -classifierLR: what is held still is bit for bit the same, the rest is trained."""

import os

import pytest
import torch
from support.runs import difference, finish, results, same, start
from torch import nn

import main
import opts
from dataloader import LAYOUT, Batch
from formats import model_files
from models import pack
from models.blocks import freeze, set_recompute
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from parallel.group import split_sizes
from runtime.errors import InputError
from storage import atomic
from train import setup

CPU = torch.device("cpu")
NETS = {
    "resnet": lambda: resnet(8, 10, "cifar", "A"),
    "resnet, ImageNet's stem": lambda: resnet(18, 10),
    "preresnet": lambda: preresnet(8, 10, "cifar", "B"),
    "preresnet, ImageNet's stem": lambda: preresnet(18, 10),
    "resnext, form A": lambda: resnext(11, 2, 4, 10, "cifar", bottleneck="resnext_A"),
    "preresnext": lambda: preresnext(11, 2, 4, 10, "cifar"),
}
TUNE = "-dataset cifar10 -retrain base.pth -batchSize 8 -LR 0.01 -nThreads 0 -nGPU 2"


class Batches:
    """Random batches of these sizes, in replica slices; the same in every epoch."""

    crops = 1

    def __init__(self, *sizes, replicas=1, dtype=torch.float32):
        random = torch.Generator().manual_seed(1)
        self.batches = [
            Batch(
                torch.randn(n, 3, 32, 32, generator=random, dtype=torch.float64).to(dtype),
                torch.randint(10, (n,), generator=random),
                [split_sizes(n, replicas)],
            )
            for n in sizes
        ]

    def size(self):
        return len(self.batches)

    def run(self, epoch, start=0, stop=None):
        return iter(self.batches[start:stop])


def trainer(net, count, words="", seed=3):
    """A Trainer of a frozen net whose running statistics are not those of a new net."""
    opt = opts.parse(f"-dataset cifar10 -netType resnet -depth 8 -LR 0.02 {words}".split())
    torch.manual_seed(seed)
    model = NETS[net]().to(memory_format=LAYOUT)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand_like(buffer) / 5)
    model = model.double() if opt.precision == "double" else model
    freeze(model, count)
    set_recompute(model, opt.optnet)
    found = setup(opt, model, CPU)
    if opt.precision == "half":  # a scale at which no first step overflows and is left out
        found.scaler.load_state_dict({**found.scaler.state_dict(), "scale": 16.0})
    return found


def copy(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def held(name, count, stages):
    """Whether -freeze `count` holds a tensor, by its name."""
    parts = ["conv1", "bn1", *(f"layer{i + 1}" for i in range(count))]
    return name.split(".")[0] in parts + ["bn_last"] * (count == stages)


@pytest.mark.parametrize("words", ["-nGPU 2", "-nGPU 2 -optnet true", "-precision half"])
@pytest.mark.parametrize("net", NETS)
def test_only_the_rest_is_trained(net, words):
    stages = len(NETS[net]().stages)
    for count in (1, stages):
        tuned = trainer(net, count, words)
        before = copy(tuned.model)
        # slices of 4 and 4, of 2 and 1; the last one reads running statistics
        tuned.train(1, Batches(8, 3, replicas=2))
        assert tuned.model.training
        changed = {n for n, t in tuned.model.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == {name for name in before if not held(name, count, stages)}
        parameters = dict(tuned.model.named_parameters())
        free = {name for name in parameters if not held(name, count, stages)}
        assert {name for name, p in parameters.items() if p.grad is not None} == free
        assert tuned.state()["momentum"].keys() == free == changed & parameters.keys()
        assert len(tuned.optimizer.state) == len(free)


def test_as_a_plain_loop():
    """float64: features of stages in evaluation mode, the rest trained by torch's own SGD."""
    for count, words in ((2, ""), (3, "-classifierLR 0.3")):
        batches = Batches(6, 5, 6, dtype=torch.float64)
        tuned = trainer("preresnet", count, "-precision double " + words)
        plain = trainer("preresnet", 0, "-precision double").model
        tuned.train(1, batches)
        stages = [plain.layer1, plain.layer2, plain.layer3]
        free = [*stages[count:], *([plain.bn_last] if count < 3 else []), plain.fc]
        body = [p for module in free[:-1] for p in module.parameters()]
        groups = [{"params": body}] if body else []
        groups += [{"params": plain.fc.parameters(), "lr": 0.3 if words else 0.02}]
        sgd = torch.optim.SGD(groups, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
        plain.eval()
        for module in free:
            module.train()
        for input, target, *_ in batches.run(1):
            with torch.no_grad():
                x = plain.conv1(input)
                for stage in stages[:count]:
                    x = stage(x)
            for stage in stages[count:]:
                x = stage(x)
            x = nn.functional.relu(plain.bn_last(x)).mean((2, 3))
            sgd.zero_grad()
            nn.functional.cross_entropy(plain.fc(x), target).backward()
            sgd.step()
        for name, tensor in plain.state_dict().items():
            assert torch.allclose(tuned.model.state_dict()[name], tensor, rtol=1e-10), name


def test_activations_of_frozen_parts_are_not_kept():
    sizes = []
    for count in (0, 1, 2, 3):
        kept = {}
        net = trainer("resnet", count).model.train()

        def pack_tensor(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
            net(torch.randn(4, 3, 32, 32))
        sizes.append(sum(kept.values()))
    # stage by stage the maps have half the size; the last is fc and its input
    assert sizes[0] > 2 * sizes[1] > 3 * sizes[2] and sizes[3] < 20000


def test_recompute_bn_leaves_the_frozen_alone():
    tuned = trainer("resnet", 2, "-recomputeBN 2")
    before = copy(tuned.model)
    tuned.recompute(1, Batches(8, 8), 2)
    changed = {n for n, t in tuned.model.state_dict().items() if not torch.equal(t, before[n])}
    running = {name for name in before if "running" in name}
    assert changed == {name for name in running if not held(name, 2, 3)}
    with pytest.raises(InputError, match="no batch norm that is not frozen"):
        trainer("resnet", 3, "-recomputeBN 2").recompute(1, Batches(8, 8), 2)


@pytest.mark.slow
def test_compiled_is_the_same_training():
    found = []
    for words in ("", "-compile true", "-compile true -optnet true"):
        tuned = trainer("resnet", 2, "-precision double -nGPU 2 " + words)
        batches = Batches(8, 3, dtype=torch.float64, replicas=2)
        tuned.train(1, batches)
        tuned.test(1, batches)
        found.append(copy(tuned.model))
    for other in found[1:]:
        assert all(torch.allclose(other[n], t, rtol=1e-9, atol=1e-12) for n, t in found[0].items())
        assert all(torch.equal(other[n], t) for n, t in found[0].items() if held(n, 2, 3))


def test_refused():
    for count, net in ((4, "resnet"), (5, "preresnet, ImageNet's stem")):
        with pytest.raises(
            InputError, match=f"-freeze {count}: this net has only {count - 1} stages"
        ):
            freeze(NETS[net](), count)
    with pytest.raises(InputError, match="-recomputeBN: -freeze 3 freezes every batch norm"):
        freeze(NETS["resnet"](), 3, recomputes=True)
    with pytest.raises(InputError, match="this net has no stages"):
        freeze(nn.Linear(3, 4), 1)


def test_untrained_weights_are_not_frozen(capsys):
    with pytest.raises(SystemExit):
        opts.parse("-dataset cifar10 -depth 29 -freeze 1".split())
    assert "-freeze needs trained weights: give -retrain FILE" in capsys.readouterr().err


def test_a_folder_without_a_checkpoint_has_no_weights_to_freeze(cifar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = f"-dataset cifar10 -data {cifar} -netType resnet -depth 8 -freeze 1 -nEpochs 1"
    with pytest.raises(InputError, match="-freeze needs trained weights: give -retrain FILE"):
        main.main([*words.split(), "-resume", "nowhere"])
    assert not os.path.exists("nowhere/log.jsonl")


# whole runs


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A net in base.pth, in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    net = resnet(8, 10, "cifar", "A")
    net.classes = net.input_spec = None
    model_files.write("base.pth", pack(net))
    return net


def run(words, data, capsys):
    main.main([*words.split(), "-data", data])
    captured = capsys.readouterr()
    return (captured.err + captured.out).splitlines()


def test_a_resumed_run_is_the_straight_run(base, cifar, capsys):
    words = TUNE + " -freeze 2 -classifierLR 0.1 -LRSteps 2"
    lines = run(words + " -nEpochs 2 -save straight", cifar, capsys)
    assert "=> Frozen: conv1, bn1, layer1, layer2" in lines
    run(words + " -nEpochs 1 -save stopped", cifar, capsys)
    resumed = "-dataset cifar10 -nThreads 0 -nEpochs 2 -resume stopped -save stopped"
    lines = run(resumed, cifar, capsys)
    adopted = next(line for line in lines if line.startswith("=> from the checkpoint: "))
    assert "-freeze 2" in adopted and "-classifierLR 0.1" in adopted
    same(results("straight", 2), results("stopped", 2))
    state, weights = base.state_dict(), atomic.load("stopped/model_2.pth")["model"]
    still = {name for name in state if held(name, 2, 3)}
    assert {name for name in state if torch.equal(state[name], weights[name])} == still
    assert not still & atomic.load("stopped/optimState_2.pth")["momentum"].keys()


def test_frozen_and_free_again(base, cifar, capsys):
    """A checkpoint with all momenta goes on frozen, and one without them goes on free."""
    run(TUNE + " -nEpochs 1", cifar, capsys)
    on = "-dataset cifar10 -nThreads 0 -resume checkpoints"
    run(on + " -nEpochs 2 -freeze 3", cifar, capsys)
    assert list(atomic.load("checkpoints/optimState_2.pth")["momentum"]) == ["fc.weight", "fc.bias"]
    one, two = (atomic.load(f"checkpoints/model_{n}.pth")["model"] for n in (1, 2))
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert changed == {"fc.weight", "fc.bias"}
    lines = run(on + " -nEpochs 3 -freeze 0", cifar, capsys)
    assert "=> -freeze 0 as given, in place of the checkpoint's 3" in lines
    three = atomic.load("checkpoints/model_3.pth")["model"]
    assert not any(torch.equal(two[name], three[name]) for name in two)
    assert len(atomic.load("checkpoints/optimState_3.pth")["momentum"]) == 23
    # the optimizer state of a whole net for one of which a part is frozen
    state = "-optimState checkpoints/optimState_1.pth -nEpochs 1 -save other"
    run(f"{TUNE} -freeze 1 {state}", cifar, capsys)


@pytest.mark.slow
def test_in_two_processes(base, cifar):
    words = TUNE + " -nEpochs 1 -freeze 1 -precision double -recomputeBN 2"
    finish(start(f"{words} -save one", cifar, "."))
    finish(start(f"{words} -save two -nProcs 2", cifar, "."))
    one, two = results("one", 1), results("two", 1)
    # processes sum gradients in another order
    assert difference(one, two) < 1e-9
    state = base.state_dict()
    assert all(torch.equal(two[0][n].to(t.dtype), t) for n, t in state.items() if held(n, 1, 3))
