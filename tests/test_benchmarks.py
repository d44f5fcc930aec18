"""The benchmarks compare like with like, and come to an end."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import prunus
from benchmarks import contenders, scaling, surrogates
from tests.conftest import small_net


def test_everyone_prunes_the_same_weights_and_can_do_it_again() -> None:
    model = small_net()
    wanted = contenders.by_prunus(model, 0.3)
    by_sorting = contenders.by_sorting(model, 0.3)
    assert all(map(torch.equal, wanted.values(), by_sorting))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        contenders.by_torch(model, 0.3)
        assert all(
            torch.equal(mask, model.get_buffer(f"{name}_mask").bool()) for name, mask in wanted.items()
        )
        contenders.tidy(contenders.by_torch, model)()
        assert {name: value.tolist() for name, value in model.state_dict().items()} == {
            name: value.tolist() for name, value in before.items()
        }
    contenders.for_good_by_prunus(model, 0.3)
    assert all(torch.equal(mask, model.get_parameter(name) != 0) for name, mask in wanted.items())
    assert len(contenders.read(nn.Sequential(nn.Linear(2, 2)))) == 1


def test_the_picture_is_drawn_from_what_was_measured(tmp_path: Path) -> None:
    point = {"weights": 10**5, "bytes": 10**5, "seconds": {"call": 0.02, "read": 0.001}}
    scaling.draw({name: [point] for name in scaling.CONTENDERS}, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_is_masked_as_its_images_one_by_one() -> None:
    model = surrogates.chain().double()
    images, labels = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 1])
    found = surrogates.batch(prunus.MUP(model, surrogates.FRACTION), images, labels)
    torch.testing.assert_close(found, surrogates.one_by_one(model, images, labels))
