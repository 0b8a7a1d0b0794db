"""Where centres start: rows of the data, drawn as the methods say, the same for one seed."""

import numpy as np
import pytest
import torch

from soho_fast.cluster import KMeans, seeding
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import MemoryRows, uniform
from soho_fast.cluster.seeding import Nearer, Seeding, squared_distances


def seeded(init, rows, num_clusters, seed=0, weight=None):
    return Seeding(MemoryRows(rows, weight), Processes(False), seed).centers(init, num_clusters)


def test_no_number_is_1(monkeypatch):
    monkeypatch.setattr("soho_fast.cluster.rows.mix64", torch.zeros_like)
    monkeypatch.setattr("soho_fast.cluster.rows.shifted", lambda z, _: torch.full_like(z, 2**53 - 1))
    assert float(uniform(0, 0, torch.arange(1))) < 1


def test_numbers_are_uniform_and_of_their_position():
    numbers = uniform(3, 0, torch.arange(200_000))
    assert numbers.min() > 0 and numbers.max() < 1
    counts = torch.histc(numbers, 50, 0, 1)
    assert ((counts - 4000).square() / 4000).sum() < 49 + 5 * (2 * 49) ** 0.5  # chi-square, five deviations
    assert abs(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]) < 5 / 200_000**0.5
    assert torch.equal(uniform(3, 0, torch.arange(500, 600)), numbers[500:600])
    assert not torch.equal(uniform(3, 1, torch.arange(10)), numbers[:10])
    assert not torch.equal(uniform(4, 0, torch.arange(10)), numbers[:10])


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_centres_are_different_rows(init, make_features):
    rows = make_features(300)
    centers = seeded(init, rows, 40)
    places = [np.flatnonzero((rows == center.numpy()).all(1)) for center in centers]
    assert all(len(place) == 1 for place in places) and len({int(place[0]) for place in places}) == 40
    assert torch.equal(centers, seeded(init, rows, 40)) and not torch.equal(centers, seeded(init, rows, 40, seed=1))


@pytest.mark.parametrize("init", ["mini-batch", "k-means++"])
def test_every_one_of_far_groups_gets_a_centre(init):
    """30 groups of unlike size, far apart: random rows miss some, these methods do not."""
    random = np.random.default_rng(0)
    sizes = random.integers(5, 200, size=30)
    group = np.repeat(np.arange(30), sizes)
    rows = (random.normal(size=(30, 6)) * 100)[group] + random.normal(size=(len(group), 6)) * 0.01
    for seed in range(5):
        label = KMeans(30, init=init, max_iter=1, random_state=seed).fit_predict(rows.astype(np.float32))
        assert len({(g, k) for g, k in zip(group, label, strict=True)}) == 30
        missed = seeded("random", rows, 30, seed)
        nearest = ((rows[:, None] - missed.numpy()[None]) ** 2).sum(-1).argmin(1)
        assert len(set(nearest[np.cumsum(sizes) - 1])) < 30


def test_plus_plus_draws_by_squared_distance():
    """The second of two centres: of places at 0 (9 rows), 1 and 3, drawn once, those with 1 : 9."""
    rows = np.array([[0.0]] * 90 + [[1.0]] + [[3.0]], dtype=np.float32)
    source, seconds = MemoryRows(rows), []
    for seed in range(400):
        found = Seeding(source, Processes(False), seed)._plus_plus(source.memory, 2, num_trials=1)[:, 0]
        if found[0] == 0:
            seconds.append(float(found[1]))
    share = np.mean(np.array(seconds) == 3)
    assert set(seconds) == {1.0, 3.0} and abs(share - 0.9) < 5 * (0.09 / len(seconds)) ** 0.5


def test_trials_drawn_together_are_drawn_by_the_distances_of_their_step(monkeypatch):
    """Of places at 0, 1, 6 and 7, with 0 and 7 taken, 1 and 6 are as likely; by distances to 0 they are 1 : 36."""
    monkeypatch.setattr(seeding, "_STEPS_TOGETHER", 100)
    rows = np.array([[0.0]] * 100 + [[1.0], [6.0], [7.0]], dtype=np.float32)
    source, thirds = MemoryRows(rows), []
    for seed in range(1200):
        found = Seeding(source, Processes(False), seed)._plus_plus(source.memory, 3, num_trials=1)[:, 0].tolist()
        if found[:2] == [0, 7]:
            thirds.append(found[2])
    share = np.mean(np.array(thirds) == 1)
    assert set(thirds) == {1.0, 6.0} and abs(share - 0.5) < 5 * (0.25 / len(thirds)) ** 0.5


@pytest.mark.parametrize("products", [1 << 19, 5000], ids=["one block", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 1e4), (1, 1e6), (1e17, 0), (1e-17, 0), (0, 3)])
def test_no_row_that_a_trial_is_nearer_to_is_missed(scale, offset, dtype, products, monkeypatch, make_features):
    monkeypatch.setattr(seeding, "_PRODUCTS", products)
    monkeypatch.setattr(seeding, "_KEPT", 1 << 25 if products == 5000 else 0)
    rows = torch.from_numpy(make_features(900, 40) * np.float32(scale)).to(dtype)
    rows[::2] += offset  # far from their mean, rows are near one another
    trials = rows[10::100].float()
    closest = torch.stack([squared_distances(rows, center) for center in rows[50:800:25].float()]).amin(0)
    starts, row_P, squared_P = Nearer(rows).pairs(trials, closest)
    assert len(starts) == len(trials) + 1 and starts[-1] == len(row_P)
    for trial, first, end in zip(trials, starts, starts[1:], strict=False):
        squared = squared_distances(rows, trial)
        wanted = (squared < closest).nonzero()[:, 0]
        assert torch.equal(row_P[first:end], row_P[first:end].sort().values)
        assert torch.isin(wanted, row_P[first:end]).all()
        assert torch.equal(squared_P[first:end], squared[row_P[first:end]])
    if scale in (1, 1e17) and offset == 0:  # few more than are nearer
        assert len(row_P) <= 1.1 * sum(int((squared_distances(rows, t) < closest).sum()) for t in trials)


def test_random_draws_by_weight():
    rows = np.arange(4, dtype=np.float32)[:, None]
    weight = np.array([0.0, 1.0, 2.0, 5.0])
    first = [float(seeded("random", rows, 1, seed, weight)[0, 0]) for seed in range(1000)]
    shares = np.bincount(np.array(first, dtype=int), minlength=4) / 1000
    assert shares[0] == 0
    assert np.abs(shares - weight / 8).max() < 5 * (0.25 / 1000) ** 0.5


@pytest.mark.parametrize("init", ["mini-batch", "k-means++", "random"])
def test_rows_without_weight_do_not_seed(init, make_features):
    rows = make_features(300)
    rows[::2] += 1000
    weight = np.ones(300)
    weight[::2] = 0
    assert seeded(init, rows, 40, weight=weight).max() < 500


def test_mini_batches_find_as_many_groups_as_there_are_clusters():
    """Of 40 groups k-means++ misses some in each start, which Lloyd's steps never mend."""
    random = np.random.default_rng(0)
    places = random.normal(size=(40, 16)) * 1.5
    rows = (places[random.integers(40, size=6000)] + 0.5 * random.normal(size=(6000, 16))).astype(np.float32)
    found = [KMeans(40, random_state=seed).fit(rows) for seed in range(5)]
    best = min(model.inertia_ for model in found)
    assert all(model.inertia_ < 1.001 * best and model.n_iter_ < 5 for model in found)
    plus_plus = [KMeans(40, init="k-means++", random_state=seed).fit(rows).inertia_ for seed in range(5)]
    assert best < 1.001 * min(plus_plus) and np.mean(plus_plus) > 1.01 * best


def test_few_batches_are_gone_through_more_often():
    """With 12 rows a cluster, four passes are 12 batches, and end 11 % higher."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(256, 16))[random.integers(256, size=3072)] + 0.2 * random.normal(size=(3072, 16))
    auto, plus_plus = (KMeans(256, init=init, random_state=0).fit(rows).inertia_ for init in ("auto", "k-means++"))
    assert auto < 0.95 * plus_plus


def test_few_clusters_or_few_rows_for_each_start_by_k_means_plus_plus(make_features):
    rows = make_features(500)
    for number, init in ((15, "k-means++"), (16, "mini-batch"), (42, "k-means++")):
        default, named = KMeans(number, random_state=0), KMeans(number, init=init, random_state=0)
        np.testing.assert_array_equal(default.fit(rows).cluster_centers_, named.fit(rows).cluster_centers_)


@pytest.mark.parametrize("clusters", [5, 20])
def test_a_sample_finds_what_all_rows_find(clusters):
    """60,000 rows are more than each sample; the last is far away, in none, and still has its centre."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60_000, 4, generator=generator).exp()
    rows[-1] = 3e3
    fitted, plain = (KMeans(clusters, init=init, random_state=0).fit(rows) for init in ("auto", "k-means++"))
    assert fitted.inertia_ < 1.02 * plain.inertia_ and torch.bincount(fitted.labels_).min() == 1
    assert fitted.n_iter_ < plain.n_iter_ or clusters == 20


def test_squared_distances(make_features):
    rows = torch.from_numpy(make_features(2000, 40))
    exact = (rows.double() - rows[3].double()).square().sum(1)
    torch.testing.assert_close(squared_distances(rows, rows[3]).double(), exact, rtol=1e-6, atol=0)
    assert len(squared_distances(rows[:0], rows[3])) == 0


STATES = {
    "int": lambda: 7, "numpy int": lambda: np.int64(7), "RandomState": lambda: np.random.RandomState(7),
    "default_rng": lambda: np.random.default_rng(7), "torch": lambda: torch.Generator().manual_seed(7),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
def test_random_states(kind, make_features):
    """Each that starts alike draws alike; a generator that was drawn from draws anew, as where none is given."""
    model, rows = KMeans(30, init="random", n_init=1, max_iter=1), make_features(300)
    first, second = (model.set_params(random_state=STATES[kind]()).fit(rows).cluster_centers_ for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.array_equal(model.fit(rows).cluster_centers_, first) == kind.endswith("int")
    first, second = (model.set_params(random_state=None).fit(rows).cluster_centers_ for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("init", ["mini-batch", "k-means++"])
def test_neither_autocast_nor_the_allowed_precision_of_products_decides_the_seeds(init):
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(5, 64, generator=generator) * 100
    clusters = (groups[:, None] + torch.randn(5, 20, 64, generator=generator)).flatten(0, 1)
    rows = clusters.repeat_interleave(20, 0) + torch.randn(2000, 64, generator=generator) * 0.01
    fits = [KMeans(100, init=init, random_state=0, max_iter=1).fit(rows)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fits.append(KMeans(100, init=init, random_state=0, max_iter=1).fit(rows))
    torch.set_float32_matmul_precision("medium")
    try:
        fits.append(KMeans(100, init=init, random_state=0, max_iter=1).fit(rows))
    finally:
        torch.set_float32_matmul_precision("highest")
    for fitted in fits[1:]:
        assert torch.equal(fitted.cluster_centers_, fits[0].cluster_centers_)
