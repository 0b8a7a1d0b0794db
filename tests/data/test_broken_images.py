import pytest

from soho_fast.data.broken_images import BrokenImageLimit, TooManyBrokenImagesError


def test_stops_above_the_share_and_lists_what_was_broken():
    limit = BrokenImageLimit(0.01, min_seen=100)
    limit.update(["a.jpg: truncated"] * 3, 50)
    limit.update([], 250)
    with pytest.raises(
        TooManyBrokenImagesError, match=r"4 of 301 images seen were broken, more than the limit of 1\.0%"
    ) as error:
        limit.update(["b.jpg: no image"], 1)
    assert "a.jpg: truncated\n  b.jpg: no image" in str(error.value)


def test_no_verdict_before_enough_was_seen():
    limit = BrokenImageLimit(0.01, min_seen=1000)
    limit.update([str(number) for number in range(30)], 999)
    with pytest.raises(TooManyBrokenImagesError, match=r"and 10 more"):
        limit.update([], 1)


def test_the_limit_itself_is_tolerated():
    BrokenImageLimit(0.5, min_seen=1).update(["x"], 2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        BrokenImageLimit(1.5)
