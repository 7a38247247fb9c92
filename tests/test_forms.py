"""Forms A, B and C of a block are one function: output, gradient, and a step of training."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import torch7

from models.forms import convert
from models.preresnext import preresnext
from models.resnext import resnext

FORMS = ("resnext_A", "resnext_B", "resnext_C")
NETS = {"resnext": resnext, "preresnext": preresnext}
PAIRS = list(itertools.permutations(FORMS, 2))

# float64; only the order of summation differs. Seen over two steps: 1e-13 relative.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def small(name, form, cardinality):
    """Two blocks a stage, the stages with stride 1, 2 and 2; batch norm weights not all 1."""
    torch.manual_seed(0)
    net = NETS[name](20, cardinality, 4, 5, "cifar", "B", form).double()
    for norm in torch7.norms(net):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.3, 0.3)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
    return net


def twin(net, name, form, cardinality):
    other = small(name, form, cardinality)
    other.load_state_dict(convert(net.state_dict(), form, cardinality))  # strict: every name
    return other


def gradients(net):
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def momentum(net, sgd):
    return {n: sgd.state[p]["momentum_buffer"] for n, p in net.named_parameters()}


def step(net, sgd, input, target):
    sgd.zero_grad()
    output = net(input)
    loss = F.cross_entropy(output, target)
    loss.backward()
    sgd.step()
    return output, loss


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **CLOSE, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("name", NETS)
def test_the_forms_train_alike(name, cardinality):
    input, target = torch7.fill((4, 3, 16, 16), 1, 0, 1.7), torch7.targets(4, 2, 5)
    nets = {"resnext_C": small(name, "resnext_C", cardinality)}
    for form in ("resnext_A", "resnext_B"):
        nets[form] = twin(nets["resnext_C"], name, form, cardinality)
    sgds = {
        form: torch.optim.SGD(net.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
        for form, net in nets.items()
    }
    with torch.no_grad():
        outputs = [net.eval()(input) for net in nets.values()]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], **CLOSE)
    for _ in range(2):  # the second step also uses the first one's momentum
        results = [step(nets[form].train(), sgds[form], input, target) for form in nets]
        for output, loss in results[1:]:
            torch.testing.assert_close(output, results[0][0], **CLOSE)
            torch.testing.assert_close(loss, results[0][1], **CLOSE)
        for one, other in PAIRS:
            a, b = nets[one], nets[other]
            same(convert(gradients(a), other, cardinality), gradients(b))
            same(convert(a.state_dict(), other, cardinality), b.state_dict())
            converted = convert(momentum(a, sgds[one]), other, cardinality)
            same(converted, momentum(b, sgds[other]))


@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_round_trip_is_identical_and_leaves_its_input_alone(one, other, cardinality):
    state = small("preresnext", one, cardinality).state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    there = convert(state, other, cardinality)
    back = convert(there, one, cardinality)
    assert back.keys() == state.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)
    for tensor in there.values():
        tensor.zero_()
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_what_is_in_no_block_passes_through():
    state = {"fc.weight": torch.ones(2, 3), "module.conv1.weight": torch.ones(4, 3, 3, 3)}
    assert list(convert(state, "resnext_A", 4)) == list(state)


def test_a_prefix_of_the_names_is_kept():
    net = small("resnext", "resnext_C", 2)
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    names = convert(state, "resnext_B", 2)
    assert "module.layer1.0.paths.1.conv2.weight" in names
    assert len(names) == len(small("resnext", "resnext_B", 2).state_dict())
