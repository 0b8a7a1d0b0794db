"""Problems that are hard for a lookup: ties, near ties, numbers of all sizes and none. (features, codebook) each."""

import torch


def random_pair(num_rows, num_codes, num_channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_rows, num_channels, generator=generator),
        torch.randn(num_codes, num_channels, generator=generator),
    )


def _duplicates():
    features, codebook = random_pair(50, 12, 20)
    return features, torch.cat([torch.zeros(300, 20), codebook, codebook.repeat(40, 1), -torch.zeros(200, 20)])


def _one_ulp():
    features, codebook = random_pair(60, 8, 24)
    near = codebook.repeat(20, 1)
    near[torch.arange(160), torch.arange(160) % 24] = torch.nextafter(
        near[torch.arange(160), torch.arange(160) % 24], torch.tensor(torch.inf)
    )
    return torch.cat([features, codebook]), torch.cat([near, codebook])


def _one_cluster():
    """More near ties than a survivor list holds."""
    features, codebook = random_pair(20, 700, 16)
    return features, torch.ones(700, 16) + codebook * 2.0**-22


def _ties(where, num_codes=900, num_channels=24):
    """Rows and codes of full precision: the codes where(K) says are as near to the first 20 rows as each other, and all
    but as near to the others, whose nearest is one of every seventh codes; the codes between are further off.

    The near codes differ in the sign of channels where a row is zero, or 1e-7 of the channels of its nearest code.
    """
    features, codebook = random_pair(20 + num_codes // 7, num_codes, num_channels)
    shared, tied = torch.arange(num_channels) < 12, where(torch.arange(num_codes))
    near = torch.where(shared, codebook[0], codebook[0] * codebook.sign())
    others = torch.zeros(20, num_channels), near[torch.arange(num_codes // 7) * 7] * 1e-7
    return torch.where(shared, features, torch.cat(others)), torch.where(
        tied[:, None], near, torch.where(shared, near + 9.0, codebook)
    )


def _two_places():
    """Rows that tie with the first half of the codes alternate with rows that tie with the second half, for which code
    0 rules the first half out."""
    features, codebook = _ties(lambda code: code >= 0)
    place = (torch.arange(24) < 12) * 50.0
    features[1::2] += place
    codebook[450:] += place
    codebook[0] += place * 1.02
    return features, codebook


def _rounded_one_way(least, largest, num_channels=64):
    """Channels that a screening type with the numbers least, least + 1, ..., largest rounds all by 0.49 in one
    direction: their sum, 0.04 for each, becomes -0.45. So the bound on what rounding loses has nothing to spare."""
    half = num_channels // 2
    channels = torch.cat([torch.full((half,), least + 0.49), torch.full((half,), -least + 0.49)])
    channels[half : half + int(0.45 * num_channels)] -= 1.0
    channels[0], channels[-1] = float(largest), -float(largest)
    return channels


def _rows_rounded_one_way(least, largest):
    scales = torch.tensor([1.0, -1.0, 0.25, -4.0])[:, None]
    codes = torch.ones(1, 64)
    return scales * _rounded_one_way(least, largest), torch.cat([codes, -codes])


def _codes_rounded_one_way(least, largest):
    scales = torch.tensor([1.0, -1.0, 0.25, -4.0])[:, None]
    code = _rounded_one_way(least, largest)[None]
    return scales * torch.ones(1, 64), torch.cat([code, -code])


def _many_rows_rounded_one_way(least, largest, scale, longer, num_channels=512):
    """As above of many channels, and more candidates than are worth no distance: those that screening prefers, all
    beside -1, come before those beside 1, one of which is the nearest. The other codes are too long to be near."""
    ones = torch.ones(17, num_channels)
    for filler in range(1, 17):
        ones[filler, [filler, num_channels // 2 + filler]] = 0.0
    others = random_pair(0, 150, num_channels)[1].sign() * longer
    features = torch.tensor([scale, -scale] * 40)[:, None] * _rounded_one_way(least, largest, num_channels)
    return features, torch.cat([-ones, ones, others, -others])


def _many_near_ties(features_type, num_channels=300, num_places=10):
    """40 codes around each row, which differ by less than int8 and bfloat16 tell apart."""
    features, codebook = random_pair(num_places, 40 * num_places, num_channels)
    features = features.to(features_type)
    codebook *= (0.1 + 1e-5 * random_pair(40 * num_places, 1, 1, seed=1)[0]) / codebook.norm(dim=1, keepdim=True)
    return features.repeat(14, 1), features.repeat_interleave(40, 0) + codebook


def _permuted(bits=None):
    """Codes that are permutations of one, for rows of equal channels: they differ by the rounding of float64 sums."""
    features, codebook = random_pair(60, 1, 40)
    if bits is not None:
        features, codebook = ((t * 2.0**bits).round() for t in (features, codebook))
    order = torch.rand(500, 40, generator=torch.Generator().manual_seed(1)).argsort(1)
    return features[:, :1].expand(60, 40).contiguous(), codebook[0][order]


def _improving():
    """Each code is closer than the one before: the worst order for a running threshold."""
    return torch.zeros(9, 10), torch.linspace(5, 1, 400)[:, None].expand(400, 10) * 1.0


def _offset(size):
    features, codebook = random_pair(60, 100, 33)
    return features + size, codebook + size


def _norms():
    features, codebook = random_pair(60, 100, 12)
    return (
        features * 10.0 ** torch.linspace(-15, 15, 60)[:, None],
        codebook * 10.0 ** torch.linspace(15, -15, 100)[:, None],
    )


def _far_rows():
    features, codebook = random_pair(40, 50, 12)
    return features * 10.0 ** torch.linspace(0, 37, 40)[:, None], codebook * 1e-6


def _many_far_rows(num_channels=300):
    """Rows whose float32 distance errs by more than screening does, in the direction of 20 codes that are near ties."""
    features, codebook = random_pair(140, 300, num_channels)
    codebook[:20] = codebook[0] + 1e-3 * codebook[:20]
    features = codebook[0] + 1e-3 * features
    return features * 10.0 ** torch.linspace(0, 8, 140)[:, None], codebook


def _dense_then_few():
    """Near ties in an order that rounding makes: a hundred at the beginning, and one in forty of the others."""
    features, codebook = random_pair(120, 2400, 72)
    near = (torch.arange(2400) < 100) | (torch.arange(2400) % 40 == 0)
    codebook[near] = codebook[0] + 2.0**-21 * codebook[near]
    return codebook[0] + 2.0**-21 * features, codebook


def _not_finite():
    features, codebook = random_pair(40, 60, 17)
    features[3, 5] = torch.nan
    features[4, 0] = torch.inf
    features[5, 16] = -torch.inf
    features[6, 1], features[6, 2] = torch.inf, torch.nan
    codebook[0, 3], codebook[7, 0], codebook[9, 9] = torch.nan, torch.inf, -torch.inf
    return features, codebook


ADVERSARIAL = {
    "duplicates by hundreds": _duplicates,
    "one ulp apart": _one_ulp,
    "one cluster of near ties": _one_cluster,
    "each code nearer": _improving,
    "ties everywhere": lambda: _ties(lambda code: code >= 0),
    "ties at the end": lambda: _ties(lambda code: code >= 650),
    "every third code ties": lambda: _ties(lambda code: code % 3 == 1),
    "every tenth code ties": lambda: _ties(lambda code: code % 10 == 7),
    "ties become dense": lambda: _ties(lambda code: (code % 10 == 7) | (code > 500)),
    "dense ties come and go": lambda: _ties(lambda code: code % 300 > 150),
    "dense near ties, then few": _dense_then_few,
    "rows tie in two places": _two_places,
    "few codes that all tie": lambda: _ties(lambda code: code >= 0, num_codes=35),
    "ties of 300 codes everywhere": lambda: _ties(lambda code: code >= 0, num_codes=300),
    "dense ties of long codes": lambda: _ties(lambda code: code % 300 > 150, num_channels=72),
    "dense ties of many long codes": lambda: _ties(lambda code: code % 300 > 150, num_codes=2100, num_channels=72),
    "signs for zeros": lambda: (torch.zeros(30, 12), random_pair(30, 600, 12)[1].sign()),
    "permutations of one code": _permuted,
    "permutations of large integers": lambda: _permuted(bits=25),  # their squares do not fit float64
    "rows int8 rounds one way": lambda: _rows_rounded_one_way(50, 127),
    "codes int8 rounds one way": lambda: _codes_rounded_one_way(50, 127),
    "rows bfloat16 rounds one way": lambda: _rows_rounded_one_way(150, 254),  # of 128 to 256, all whole numbers
    "codes bfloat16 rounds one way": lambda: _codes_rounded_one_way(150, 254),
    "many rows int8 rounds one way": lambda: _many_rows_rounded_one_way(50, 127, 2**-6, 127 / 106),
    "many rows bfloat16 rounds one way": lambda: _many_rows_rounded_one_way(150, 254, 2**-8, 19 / 16),
    "many near ties": lambda: _many_near_ties(torch.float32),
    "many near ties of float16 rows": lambda: _many_near_ties(torch.float16),
    "offset 1e2": lambda: _offset(1e2),
    "offset 1e4": lambda: _offset(1e4),
    "offset 1e7": lambda: _offset(1e7),
    "norms over 30 orders": _norms,
    "rows far from all codes": _far_rows,
    "many rows far from all codes": _many_far_rows,
    "not finite": _not_finite,
    "not finite, few codes": lambda: tuple(t[:k] for t, k in zip(_not_finite(), (12, 10), strict=True)),
    "NaN, then infinite": lambda: (_not_finite()[0][:12], _not_finite()[1][[0, 7]]),
    "no finite code": lambda: (random_pair(5, 4, 9)[0], torch.full((4, 9), torch.nan)),
    "zeros": lambda: (torch.zeros(9, 8), torch.zeros(20, 8)),
    "subnormal codes": lambda: tuple(t * 1e-42 for t in random_pair(20, 30, 9)),
    "subnormal and normal": lambda: (random_pair(20, 30, 9)[0] * 1e-42, random_pair(20, 30, 9)[1] * 1e-3),
    "largest floats": lambda: tuple(t.sign() * 3.4e38 for t in random_pair(20, 30, 9)),
    "squares overflow": lambda: tuple(t * 1e25 for t in random_pair(20, 30, 9)),
    "integers with ties": lambda: tuple(t.round() for t in random_pair(200, 60, 4)),
    "codes on a line": lambda: (torch.full((30, 1), 0.5), torch.arange(40.0)[:, None]),
}
