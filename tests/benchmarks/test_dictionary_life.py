"""The probe of a dictionary's life: what it reads, what it counts, and that it tells death from life."""

import pytest
import torch

from benchmarks.model.dictionary_life import Life, main
from soho_fast.model.backbones import build_backbone


def test_used_codes_are_those_of_the_phase_and_the_error_is_in_units_of_the_variance():
    life = Life(8, 4, {})
    life.dictionary.codebook.copy_(torch.arange(8.0).unsqueeze(1).expand(8, 4) * 100)
    feat_NC = torch.tensor([[0.0] * 4, [100.0] * 4, [101.0] * 4])
    mean_C = feat_NC.mean(0)
    assert life.step(feat_NC) == pytest.approx(float(4 / (feat_NC - mean_C).square().sum()))
    assert life.figures(0.0).split()[:2] == ["2", "2"]
    life.step(feat_NC + 300)
    assert life.figures(0.0).split()[:2] == ["2", "4"]


def test_random_codes_die_and_codes_from_the_data_live(tmp_path, capsys):
    from tiny_corpus import write_images

    write_images(tmp_path / "pictures")
    torch.manual_seed(0)
    torch.save(build_backbone("resnet10").state_dict(), tmp_path / "weights.pt")
    sizes = "--images 4 --shorter-edge 64 --longer-edge 96 --codes 32 --channels 16 --tokens 20 --still 8 --moving 8"
    files = {"pictures": "pictures", "weights": "weights.pt", "maps": "maps.pt"}
    paths = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    cases = ["--case", "{}", "--case", "{dictionary_init: data}"]
    main([*paths, *cases, *sizes.split(), "--backbone", "resnet10", "--smallest-edge", "1"])
    *_, random, data = capsys.readouterr().out.splitlines()
    assert random.startswith("{} ") and data.startswith("{dictionary_init: data} ")
    used = [int(line.split("}")[1].split()[0]) for line in (random, data)]
    assert used[0] < 12 and used[1] > 18
    assert len(torch.load(tmp_path / "maps.pt")) == 8
