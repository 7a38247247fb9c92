"""Randomness: splitmix64 as published, one image like a batch, and the distributions."""

import numpy as np
import pytest

from datasets import draws
from datasets.draws import Draws, held_out, permutation, table


def test_the_hash_is_splitmix64():
    # the first outputs for seed 1234567, as in the lists of test vectors of the generator
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(draws._mix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    array = draws._mix(np.array([state], dtype=np.uint64))
    assert int(array[0]) == outputs[-1]


@pytest.mark.parametrize("seed, epoch", [(0, 1), (7, 300), (2**62, 5)])
def test_a_table_holds_what_single_draws_give(seed, epoch):
    indices = np.array([0, 1, 5, 49999, 1281166])
    expected = []
    for index in indices:
        single = Draws(seed, epoch, int(index))
        expected.append([single.uniform() for _ in range(4)])
    assert np.array_equal(table(seed, epoch, indices, 4), expected)


def test_seeds_epochs_and_images_have_streams_of_their_own():
    first = {
        Draws(seed, epoch, index).uniform()
        for seed in range(8)
        for epoch in range(1, 9)
        for index in range(50)
    }
    assert len(first) == 8 * 8 * 50


@pytest.mark.parametrize("size", [1, 2, 21, 50000])
def test_an_epoch_visits_every_image_once(size):
    orders = [permutation(3, epoch, size) for epoch in (1, 2, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(size)) for order in orders)
    assert np.array_equal(orders[0], orders[2])
    if size > 20:
        assert not np.array_equal(orders[0], orders[1])


def test_distributions():
    uniforms = table(1, 1, np.arange(100_000), 2)
    assert uniforms.min() >= 0 and uniforms.max() < 1
    # six standard deviations of the mean of 100,000 uniforms, and of their product
    assert np.abs(uniforms.mean(0) - 1 / 2).max() < 6 * np.sqrt(1 / 12 / 1e5)
    assert abs((uniforms[:, 0] * uniforms[:, 1]).mean() - 1 / 4) < 6 * np.sqrt(7 / 144 / 1e5)
    one = Draws(2, 3, 4)
    integers = np.array([one.random(-1, 2) for _ in range(4000)])
    assert np.bincount(integers + 1).min() > 4000 / 4 - 6 * np.sqrt(4000 * 3 / 16)
    normals = np.array([one.normal(5, 2) for _ in range(4000)])
    assert abs(normals.mean() - 5) < 6 * 2 / np.sqrt(4000)
    assert normals.std() == pytest.approx(2, rel=6 / np.sqrt(2 * 4000))
    orders = [tuple(one.randperm(3)) for _ in range(6000)]
    assert min(orders.count(order) for order in set(orders)) > 1000 - 6 * np.sqrt(6000 * 5 / 36)
    assert len(set(orders)) == 6


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_a_share_of_each_class_is_held_out(share):
    counts = [1, 2, 3, 10, 500, 0, 77]
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(7), counts))
    held = held_out(targets, share, "", 3)
    for number, count in enumerate(counts):
        wanted = min(max(1, round(share * count)), count - 1) if count else 0
        assert (held & (targets == number)).sum() == wanted
    assert (held == held_out(targets, share, "", 3)).all()
    assert (held != held_out(targets, share, "", 4)).any()


def test_the_held_out_images_are_a_random_part_of_their_class():
    targets = np.zeros(1000, np.int64)
    times = sum(held_out(targets, 0.2, "", seed).astype(int) for seed in range(400))
    assert abs(times.mean() - 80) < 1e-9 and abs(times.std() - 8) < 1  # binomial: sqrt(400 * .16)


@pytest.mark.parametrize("parts", [2, 3, 5, 10])
def test_folds_hold_each_image_out_once(parts):
    targets = np.random.default_rng(1).integers(0, 6, 137)
    folds = np.array([held_out(targets, 0, f"{k}/{parts}", 0) for k in range(1, parts + 1)])
    assert (folds.sum(0) == 1).all() and np.ptp(folds.sum(1)) <= 1
    for number in range(6):
        assert np.ptp(folds[:, targets == number].sum(1)) <= 1
