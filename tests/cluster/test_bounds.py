"""Bounds: true bounds, whatever the numbers, and labels that never differ from the lookup's."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.cluster import KMeans, lloyd
from soho_fast.cluster.bounds import Bounds, Groups, others_lower, own_upper, upper_root
from soho_fast.cluster.lloyd import Labeller


def squared(row, code):
    """Without any rounding."""
    return sum((Fraction(float(x)) - Fraction(float(d))) ** 2 for x, d in zip(row, code, strict=True))


def hard(kind):
    """Rows and centres on which a bound that forgets a rounding would err."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 7, generator=generator)
    codes = torch.randn(23, 7, generator=generator)
    if kind == "offset":
        return rows + 4096, codes + 4096
    if kind == "near ties":  # codes one unit in the last place apart
        codes[1::2] = torch.nextafter(codes[:-1:2], torch.full_like(codes[:-1:2], 9.0))
        return rows, codes
    if kind == "on the codes":
        return codes.repeat(3, 1)[:60].clone(), codes
    if kind == "uneven":  # products whose sum float64 has to round
        scale = torch.tensor([1e-3, 1.0, 1e3, 3e4, 1e5, 7e2, 2e-2])
        return rows * 1e-2 * scale + scale, codes * 1e-2 * scale + scale
    if kind == "tiny":
        return rows * 1e-30, codes * 1e-30
    if kind == "huge":
        return rows * 1e18, codes * 1e18
    return rows, codes


KINDS = ("easy", "offset", "near ties", "on the codes", "uneven", "tiny", "huge")


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_without_rounding(kind):
    rows, codes = hard(kind)
    label, distance = ops.codebook_lookup(rows, codes, return_distance=True)
    every = torch.arange(len(rows))
    lower = others_lower(rows, codes, every, label, Groups(codes)).amin(1)
    uppers = (upper_root(distance, 7), own_upper(rows, codes, every, label))
    for n in range(len(rows)):
        exact = [squared(rows[n], code) for code in codes]
        own = exact.pop(int(label[n]))
        assert all(Fraction(float(upper[n])) ** 2 >= own for upper in uppers if math.isfinite(upper[n]))
        assert Fraction(float(lower[n])) ** 2 <= min(exact)


def test_lower_bounds_are_tight():
    """A bound of zero would hold as well, and be of no use."""
    rows, codes = hard("easy")
    label = ops.codebook_lookup(rows, codes)
    lower = others_lower(rows, codes, torch.arange(len(rows)), label, Groups(codes)).amin(1)
    second = torch.cdist(rows.double(), codes.double()).topk(2, largest=False).values[:, 1]
    torch.testing.assert_close(lower, second, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_codes", [1, 2, 3, 9, 50, 200])
def test_every_other_centre_is_looked_at(num_codes):
    generator = torch.Generator().manual_seed(1)
    rows, codes = torch.randn(400, 3, generator=generator), torch.randn(num_codes, 3, generator=generator)
    label = ops.codebook_lookup(rows, codes)
    some = torch.arange(0, 400, 3)
    groups = Groups(codes)
    lower = others_lower(rows, codes, some, label, groups)
    distance = torch.cdist(rows.double(), codes.double()).scatter(1, label[:, None], math.inf)[some]
    assert torch.equal(torch.cat(groups.members).sort().values, torch.arange(num_codes))
    assert len(groups.members) == max(1, num_codes // 64)
    for group, members in enumerate(groups.members):
        torch.testing.assert_close(lower[:, group], distance[:, members].amin(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_after_the_centres_moved(kind):
    rows, codes = hard(kind)
    label, distance = ops.codebook_lookup(rows, codes, return_distance=True)
    bounds = Bounds.measure(rows, codes, label, distance)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        moved = codes * (1 + 1e-3 * torch.randn(codes.shape, generator=generator))
        bounds.follow(label, codes, moved)
        codes = moved
    lower = bounds.lower_NG.amin(1)
    for n in range(0, len(rows), 3):
        exact = [squared(rows[n], code) for code in codes]
        own = exact.pop(int(label[n]))
        assert not math.isfinite(bounds.upper_N[n]) or Fraction(float(bounds.upper_N[n])) ** 2 >= own
        assert lower[n] < 0 or Fraction(float(lower[n])) ** 2 <= min(exact)


def test_a_tie_is_never_left_alone():
    """Own centre and another are equally far: the other may have the lower index."""
    rows = torch.zeros(4, 2)
    codes = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-5.0, 0.0]])
    label = ops.codebook_lookup(rows, codes)
    bounds = Bounds.measure(rows, codes, label, torch.ones(4))
    moved = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-5.0, 0.0]])
    bounds.follow(label, codes, moved)
    assert bounds.open_pairs().all()
    five = torch.full((4,), 5.0).double()
    assert Bounds(five, five[:, None], Groups(codes), 2).open_pairs().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1e-7, 1e-4, 1e-2, 0.3])
def test_labels_are_those_of_the_lookup(kind, step):
    rows, codes = hard(kind)
    labeller = Labeller(rows, "bounds")
    generator = torch.Generator().manual_seed(3)
    for _ in range(8):
        assert torch.equal(labeller.labels(codes), ops.codebook_lookup(rows, codes))
        codes = codes * (1 + step * torch.randn(codes.shape, generator=generator))


def test_not_a_number_stays_open():
    upper, lower = torch.tensor([math.nan, 1.0, 1.0]).double(), torch.tensor([9.0, math.nan, 9.0]).double()
    assert Bounds(upper, lower[:, None], Groups(torch.zeros(1, 4)), 4).open_pairs()[:, 0].tolist() == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("kind", ["plain", "copies", "grid"])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 0.2])
def test_labels_and_bounds_with_groups(kind, step):
    """200 centres in 3 groups; copies of each other, and rows on a grid that tie all the time."""
    generator = torch.Generator().manual_seed(5)
    rows, codes = torch.randn(500, 5, generator=generator), torch.randn(200, 5, generator=generator)
    if kind == "copies":
        codes[100:] = codes[:100]
    if kind == "grid":
        rows, codes = rows.round(), codes.round()
    labeller = Labeller(rows, "bounds")
    for turn in range(10):
        assert torch.equal(labeller.labels(codes), ops.codebook_lookup(rows, codes))
        distance = torch.cdist(rows.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
        own = distance.gather(1, labeller.before.label_N[:, None])[:, 0]
        distance.scatter_(1, labeller.before.label_N[:, None], math.inf)
        bounds = labeller.bounds
        assert (bounds.upper_N >= own * (1 - 1e-12)).all()
        for group, members in enumerate(bounds.groups.members):
            assert (bounds.lower_NG[:, group] <= distance[:, members].amin(1) * (1 + 1e-12)).all()
        moving = torch.rand(200, 1, generator=generator) < 0.2  # most centres stay
        moves = torch.randn(codes.shape, generator=generator) * step
        codes = codes + moving * (moves if kind != "grid" or turn % 2 else moves.sign())


def test_rows_are_left_alone_where_that_pays(make_features):
    """Clusters that lie apart: nearly all rows are decided by their bounds."""
    rows = torch.from_numpy(make_features(4000, 8, groups=64, seed=4))
    centers = KMeans(64, random_state=0, tol=0).fit(rows).cluster_centers_
    labeller = Labeller(rows, "bounds")
    labeller.labels(centers)
    looked_up = labeller.num_looked_up
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        centers = centers + 1e-3 * torch.randn(centers.shape, generator=generator)
        assert torch.equal(labeller.labels(centers), ops.codebook_lookup(rows, centers))
    assert looked_up == 4000 and labeller.num_looked_up < 1.1 * looked_up


def steps_with(algorithm, rows, num_clusters, num_steps=40, clock=lambda: 0.0):
    """Labeller after Lloyd's steps from the first rows."""
    labeller, centers = Labeller(rows, algorithm, clock), rows[:num_clusters].clone()
    for _ in range(num_steps):
        label = labeller.labels(centers)
        assert torch.equal(label, ops.codebook_lookup(rows, centers))
        counts, sums = ops.codebook_stats(rows, label, num_clusters)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None], centers)
    return labeller


@pytest.fixture
def small_work(monkeypatch):
    """Bounds may be tried on small problems too."""
    monkeypatch.setattr(lloyd, "_LEAST_WORK", 0)


def test_a_trial_finds_where_bounds_pay(make_features, small_work):
    rows = torch.from_numpy(make_features(4000, 8, groups=40, seed=4))
    auto = steps_with("auto", rows, 40)
    assert auto.bounds is not None
    assert auto.num_looked_up < 0.7 * steps_with("lloyd", rows, 40).num_looked_up


def test_a_trial_finds_where_bounds_do_not_pay(small_work):
    """Noise in many channels: all centres are about equally far, and bounds never decide."""
    rows = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    auto = steps_with("auto", rows, 64, num_steps=8)
    assert auto.bounds is None and auto.num_looked_up == 8 * 3000


def test_bounds_that_take_longer_than_the_lookup_are_given_up(make_features, small_work):
    """A clock that runs faster the more often it is asked: every step takes longer than the lookups before."""
    rows = torch.from_numpy(make_features(4000, 8, groups=40, seed=4))
    asked = itertools.count()
    auto = steps_with("auto", rows, 40, clock=lambda: float(next(asked)) ** 2)
    assert auto.bounds is None and auto.wait > 2
    assert auto.num_looked_up > 0.9 * 40 * 4000


@pytest.mark.parametrize("with_directions", [1.0, 3.0])
def test_the_clock_decides_on_directions(with_directions, monkeypatch):
    """A lookup without directions takes two seconds: they are left after one that takes longer, and kept otherwise."""
    rows = torch.randn(600, 128, generator=torch.Generator().manual_seed(0))
    given, now = [], [0.0]

    def lookup(*arguments, basis, **named):
        given.append((basis is not None, named["guess"] is not None))
        now[0] += 2.0 if basis is None else with_directions
        return real(*arguments, basis=basis, **named)

    real, labeller, centers = ops.codebook_lookup, Labeller(rows, "lloyd", lambda: now[0]), rows[:300].clone()
    monkeypatch.setattr(lloyd.ops, "codebook_lookup", lookup)
    for _ in range(5):
        assert torch.equal(labeller.labels(centers), real(rows, centers))
        centers += 0.1
    kept = with_directions < 2
    assert given == [(False, False), (True, True), *[(kept, True)] * 3]


def test_small_problems_are_looked_up(make_features):
    rows = torch.from_numpy(make_features(4000, 8, groups=40, seed=4))
    assert steps_with("auto", rows, 40).num_looked_up == 40 * 4000


def test_bounds_are_for_any_count_of_channels():
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32))
    found = [KMeans(33, init=rows[:33], tol=0, algorithm=name).fit(rows) for name in ("lloyd", "bounds")]
    assert torch.equal(found[0].cluster_centers_, found[1].cluster_centers_)
