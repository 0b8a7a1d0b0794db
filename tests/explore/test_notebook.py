"""An explorer in a notebook: tiles of codes."""

import base64
import re

import numpy as np

from soho_fast.explore import Bundle, build_from_arrays


def test_a_bundle_shows_itself(tmp_path):
    index = np.zeros((3, 4, 8), int)
    index[1, 3, 7] = 1
    rest = {"labels": ["<b>sky", "sea", None], "window": 2, "title": "A & B", "say": lambda line: None}
    images = np.zeros((3, 8, 16, 3), np.uint8)
    folder = build_from_arrays(index=index, images=images, folder=tmp_path / "explorer", **rest)
    bundle = Bundle(folder)
    html = bundle._repr_html_()
    assert "A &amp; B: 3 codes" in html and "&lt;b>sky" not in html and "<b>" not in html
    assert re.findall(r"</svg>(\d+) (.*?)</div>", html) == [("0", "&lt;b&gt;sky"), ("1", "sea")], "unused ones are not"
    image, size = re.findall(r'base64,(.*?)" (width="\d+" height="\d+")', html)[1]
    assert base64.b64decode(image) == (folder / "images/0000/000001.jpg").read_bytes()
    assert size == 'width="8" height="4"', "the image is measured in patches"
    assert re.findall('viewBox="(.*?)"', html)[1] == "6 2 2 2", "the last patch of 4 x 8, two of them shown"
