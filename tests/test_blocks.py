"""What the nets share: replicas as slices, shortcut A, recomputation; Torch7 is the oracle."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import torch7
from torch import nn

from models import slices
from models.blocks import StridedIdentity, set_recompute
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from models.slices import set_slices
from parallel.group import split_sizes

SINGLE = {"rtol": 1e-5, "atol": 1e-6}  # stored in float32
DOUBLE = {"rtol": 1e-9, "atol": 1e-12}  # order of summation only


@pytest.fixture(params=["each", "together"])
def together(request, monkeypatch):
    """Replica slices one by one, as on a CPU, and together, as on a GPU."""
    if request.param == "together":
        monkeypatch.setattr(slices, "TOGETHER", {"cpu": 2})


def close(ours, theirs, tolerance):
    theirs = torch.as_tensor(theirs)
    torch.testing.assert_close(ours.detach(), theirs, check_dtype=False, **tolerance)


@pytest.mark.parametrize(
    ("replicas", "batch", "sizes"),
    [
        (1, 8, [8]),
        (2, 8, [4, 4]),
        (3, 8, [3, 3, 2]),
        (3, 7, [3, 2, 2]),
        (3, 2, [1, 1]),
        (4, 1, [1]),
        (4, 6, [2, 2, 1, 1]),
    ],
)
def test_split_sizes(replicas, batch, sizes):
    assert split_sizes(batch, replicas) == sizes


@pytest.mark.parametrize("case", ["4x3x5x5", "2x3x1x1", "1x3x5x5"])
def test_batch_norm_is_torch7s_also_for_one_sample(case):
    with np.load(torch7.REFERENCE / "models" / "nn.npz") as file:
        nn7 = {
            k.split("/")[1]: torch.from_numpy(file[k]) for k in file if k.startswith(f"bn_{case}/")
        }
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(nn7["weight"])
        norm.bias.copy_(nn7["bias"])
        norm.running_mean.copy_(nn7["running_mean0"])
        norm.running_var.copy_(nn7["running_var0"])
    close(norm.eval()(nn7["x"]), nn7["y_eval"], SINGLE)
    x = nn7["x"].requires_grad_()
    set_slices(norm, [len(x)])
    y = norm.train()(x)
    y.backward(nn7["gradOutput"])
    close(y, nn7["y_train"], SINGLE)
    # two samples of one pixel: the gradient is a difference of numbers a thousand times larger
    cancelling = {"rtol": 1e-3, "atol": 1e-4} if case == "2x3x1x1" else SINGLE
    close(x.grad, nn7["gradInput"], cancelling)
    close(norm.weight.grad, nn7["gradWeight"], SINGLE)
    close(norm.bias.grad, nn7["gradBias"], SINGLE)
    close(norm.running_mean, nn7["running_mean1"], SINGLE)
    close(norm.running_var, nn7["running_var1"], SINGLE)


def test_pooling_and_shortcut_a_are_torch7s():
    with np.load(torch7.REFERENCE / "models" / "nn.npz") as file:
        nn7 = {name: torch.from_numpy(file[name]) for name in file}
    pool = resnet(18).maxpool
    assert torch.equal(pool(nn7["maxpool/x"]), nn7["maxpool/y"])
    x, y = nn7["shortcutA/x"], nn7["shortcutA/y"]
    assert torch.equal(StridedIdentity(y.shape[1] - x.shape[1], 2)(x), y)


def test_shortcut_a_pads_to_any_width():
    x = torch.randn(2, 3, 5, 7)
    y = StridedIdentity(9, 2)(x)
    assert y.shape == (2, 12, 3, 4)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()
    resnext(11, 2, 8, 10, "cifar", "A")(torch.randn(2, 3, 32, 32)).sum().backward()


def test_no_shortcut_leaves_the_branch_alone():
    net = resnet(20, 10, "cifar", "none")
    assert not [name for name in net.state_dict() if "downsample" in name]
    block = net.layer2[0].eval()
    block.bn2.weight.data.zero_()  # the branch is 0 everywhere, so without shortcut the block is
    assert not block(torch.randn(2, 16, 8, 8)).any()
    block = preresnet(20, 10, "cifar", "none").layer2[0].eval()
    block.conv2.weight.data.zero_()
    assert not block(torch.randn(2, 16, 8, 8)).any()


def test_no_shortcut_works_with_every_net():
    for net in (
        resnext(11, 2, 8, 10, "cifar", "none", "resnext_A"),
        preresnext(11, 2, 8, 10, "cifar", "none", "resnext_B"),
        preresnet(8, 10, "cifar", "none"),
    ):
        net(torch.randn(2, 3, 32, 32)).sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_shortcuts_of_type_b_and_c():
    def projected(shortcut):
        names = resnext(20, 2, 8, 10, "cifar", shortcut).state_dict()
        return {name.split(".downsample")[0] for name in names if "downsample.0" in name}

    assert projected("B") == {"layer1.0", "layer2.0", "layer3.0"}
    assert projected("C") == projected("B") | {"layer1.1", "layer2.1", "layer3.1"}
    assert projected("A") == set()


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize(("replicas", "batch"), [(1, 8), (2, 8), (3, 8), (3, 7), (3, 2)])
def test_replicas_are_data_parallel_tables(replicas, batch):
    """Two steps of the original's Trainer under nn.DataParallelTable with 1, 2 or 3 replicas."""
    with np.load(torch7.REFERENCE / "models" / "dpt.npz") as file:
        case = f"gpus{replicas}_n{batch}/"
        dpt = {name.split("/")[1]: file[name] for name in file if name.startswith(case)}
    parameters = torch7.facts()["resnet8_cifar10"]["parameters"]
    fresh = np.zeros(240), np.ones(240)  # running statistics of a new net, unlike in test_nets.py
    net = torch7.fill_net(resnet(8, 10, "cifar", "A"), parameters, *fresh)
    sgd = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    set_slices(net.train(), split_sizes(batch, replicas))
    for step in (1, 2):
        input, target = torch7.batch((batch, 3, 32, 32), 10, step)
        sgd.zero_grad()
        output = net(input)
        loss = F.cross_entropy(output, target)
        loss.backward()
        close(output, dpt[f"out{step}"], DOUBLE)
        close(loss, dpt[f"loss{step}"], DOUBLE)
        close_sample([p.grad for p in net.parameters()], dpt[f"grad{step}"])
        sgd.step()
        close_sample(net.parameters(), dpt[f"params{step}"])
    norms = torch7.norms(net)
    close(torch.cat([n.running_mean for n in norms]), dpt["bn_running_mean_gpu1"], DOUBLE)
    close(torch.cat([n.running_var for n in norms]), dpt["bn_running_var_gpu1"], DOUBLE)
    input, _ = torch7.batch((batch, 3, 32, 32), 10, 1)
    close(net.eval()(input), dpt["out_eval_gpu1"], DOUBLE)


def close_sample(tensors, theirs):
    ours = torch7.flat(tensors)[::75]  # the file has every 15th, of which every 5th was kept
    close(torch.from_numpy(ours), theirs, DOUBLE)


def randomise(net):
    """Batch norms that differ from fresh ones in everything."""
    for norm in torch7.norms(net):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.3, 0.3)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
    return net


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("sizes", [[3, 3], [3, 2, 1], [1, 1, 2, 2], [2, 2, 1, 1]])
def test_slices_are_copies_of_the_net(sizes):
    """Independent restatement: a copy of the net for each slice, gradients summed."""
    torch.manual_seed(1)
    net = randomise(preresnet(8, 5, "cifar", "B").double()).train()
    copies = [copy.deepcopy(net) for _ in sizes]
    for one, size in zip(copies, sizes):
        set_slices(one, [size])
    input, target = torch7.fill((6, 3, 16, 16), 3, 0, 1.7), torch7.targets(6, 4, 5)
    expected = [net(x) for net, x in zip(copies, input.split(sizes))]
    F.cross_entropy(torch.cat(expected), target).backward()
    set_slices(net, sizes)
    output = net(input)
    F.cross_entropy(output, target).backward()
    close(output, torch.cat(expected).detach(), DOUBLE)
    for parameters in zip(net.parameters(), *[net.parameters() for net in copies]):
        ours, *theirs = [parameter.grad for parameter in parameters]
        close(ours, sum(theirs), DOUBLE)
    for name, value in net.state_dict().items():
        close(value, copies[0].state_dict()[name], DOUBLE)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 4e-6), ("float16", 2**-10), ("bfloat16", 2**-7)]
)
def test_slices_round_as_their_precision_does(dtype, tolerance):
    """Against float64: output and gradients, of maps whose mean is far from 0."""

    def run(dtype):
        torch.manual_seed(3)
        norm = randomise(nn.Sequential(nn.BatchNorm2d(5)))
        x = (torch.randn(8, 5, 9, 7) + 3).to(memory_format=torch.channels_last)
        grad = torch.randn_like(x)
        if dtype == torch.float64:
            norm.double()
        x = rounded(x).to(dtype).requires_grad_()
        set_slices(norm.train(), [3, 3, 2])
        y = norm(x)
        y.backward(rounded(grad).to(dtype))
        return y, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()

    def rounded(x):
        return x.to(getattr(torch, dtype))

    for ours, exact in zip(run(getattr(torch, dtype)), run(torch.float64)):
        assert (ours - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.usefixtures("together")
def test_slices_that_do_not_make_up_the_batch_are_refused():
    norm = nn.BatchNorm2d(3)
    set_slices(norm, [2, 2])
    with pytest.raises(RuntimeError):
        norm(torch.randn(5, 3, 4, 4))


def test_slices_leave_evaluation_alone():
    net = randomise(resnet(8, 5, "cifar", "A")).eval()
    input = torch.randn(4, 3, 16, 16)
    expected, names = net(input), list(net.state_dict())
    set_slices(net, [2, 2])
    assert torch.equal(net(input), expected) and list(net.state_dict()) == names
    set_slices(net, None)
    assert {type(norm) for norm in torch7.norms(net)} == {nn.BatchNorm2d}


KINDS = {
    "usual": {},
    "momentum 0": {"momentum": 0.0},
    "no momentum": {"momentum": None},
    "no parameters": {"affine": False},
    "no statistics": {"track_running_stats": False},
}


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("sizes", [[6], [3, 3], [4, 2], [2, 1, 1, 2]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_one_plain_batch_norm_for_each_slice(kind, layout, sizes):
    """In float32: output, gradients, running statistics and number of batches."""
    torch.manual_seed(4)
    plain = nn.BatchNorm2d(3, **KINDS[kind])
    for parameter in plain.parameters():
        parameter.data.uniform_(0.5, 1.5)
    sliced = copy.deepcopy(plain)
    counters = set_slices(sliced, sizes)
    for _ in range(2):
        x, grad = (maps.to(memory_format=layout) for maps in torch.randn(2, 6, 3, 5, 4))
        norms = [plain, *(copy.deepcopy(plain) for _ in sizes[1:])]
        inputs = [part.clone().requires_grad_() for part in x.split(sizes)]
        # one sample is normalised by the running statistics
        expected = torch.cat([norm.train(len(x) > 1)(x) for norm, x in zip(norms, inputs)])
        expected.backward(grad)
        found = sliced(x.requires_grad_())
        found.backward(grad)
        for counter in counters:
            counter += 1
        close(found, expected, SINGLE)
        close(x.grad, torch.cat([part.grad for part in inputs]), SINGLE)
        for parameter, *others in zip(*(norm.parameters() for norm in (sliced, *norms))):
            close(parameter.grad, sum(other.grad for other in others), SINGLE)
        for norm in (sliced, plain):
            norm.zero_grad()
        for ours, theirs in zip(sliced.buffers(), plain.buffers(), strict=True):
            close(ours, theirs, SINGLE)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("sizes", [None, [2, 2], [3, 1]])
def test_channels_last_passes_through(sizes):
    net = resnext(11, 2, 8, 5, "cifar", "A").to(memory_format=torch.channels_last).train()
    set_slices(net, sizes)
    maps = net.maps(torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)


RECOMPUTED = [
    lambda: resnext(20, 2, 4, 5, "cifar", "B", "resnext_C"),
    lambda: resnext(11, 2, 4, 5, "cifar", "C", "resnext_A", preactivation=True),
    lambda: resnet(14, 5, "cifar", "A"),
]


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("sizes", [None, [3, 3], [3, 2, 1]])
@pytest.mark.parametrize("make", RECOMPUTED)
def test_recomputation_changes_no_bit(make, sizes):
    torch.manual_seed(2)
    plain = randomise(make().double()).train()
    thrifty = copy.deepcopy(plain)
    set_recompute(thrifty)
    input, target = torch7.fill((6, 3, 16, 16), 5, 0, 1.7), torch7.targets(6, 6, 5)
    for net in (plain, thrifty):
        set_slices(net, sizes)
        sgd = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=True)
        for _ in range(2):
            sgd.zero_grad()
            F.cross_entropy(net(input), target).backward()
            sgd.step()
    for (name, ours), theirs in zip(thrifty.state_dict().items(), plain.state_dict().values()):
        assert torch.equal(ours, theirs), name
    for ours, theirs in zip(thrifty.parameters(), plain.parameters()):
        assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(thrifty.eval()(input), plain.eval()(input))


def test_recomputation_keeps_less():
    def kept(net):
        tensors = {}

        def note(tensor):
            tensors[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net(torch.randn(8, 3, 32, 32))
        return sum(tensor.nbytes for tensor in tensors.values())

    net = resnext(29, 2, 8, 10, "cifar").train()
    everything = kept(net)
    set_recompute(net)
    assert kept(net) < everything / 2


@pytest.mark.usefixtures("together")
def test_the_forward_pass_compiles_into_one_graph():
    # the eager backend runs what was captured, so that equal bits mean that nothing was missed
    torch.manual_seed(7)
    net = randomise(resnet(8, 5, "cifar", "A")).train()
    plain = copy.deepcopy(net)
    input = torch.randn(6, 3, 16, 16)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for sizes in (None, [2, 2, 1, 1], None):  # as the last batch of an epoch differs
        for each in (net, plain):
            set_slices(each, sizes)
        assert torch.equal(compiled(input), plain(input))
        for ours, theirs in zip(net.state_dict().values(), plain.state_dict().values()):
            assert torch.equal(ours, theirs)
