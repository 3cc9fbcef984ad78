"""Heads: the published equations in loops, invariances, and files."""

import math
from pathlib import Path

import pytest
import torch

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import load_head, make_head, save_head

SECTION = params.Head(query_features=4)


def features(tiles: int, width: int = 6, seed: int = 3) -> torch.Tensor:
    return torch.randn(tiles, width, generator=torch.Generator().manual_seed(seed))


def test_dsmil_is_the_published_equations_in_loops() -> None:
    head = make_head(6, SECTION).eval()
    rows = features(5)
    head.standardise(torch.arange(6) / 10, torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5, 1.0]))
    state = {name: tensor.tolist() for name, tensor in head.state_dict().items()}
    scale = [0.5, 1.0, 2.0, 1.0, 1.5, 1.0]  # the constant feature stays as it is
    h = [[(row[j] - j / 10) / scale[j] for j in range(6)] for row in rows.tolist()]

    def linear(name: str, x: list[float]) -> list[float]:
        return [sum(w * v for w, v in zip(weights, x, strict=True)) + b for weights, b in zip(state[f"{name}.weight"], state[f"{name}.bias"], strict=True)]

    tile_logits = [linear("tile_stream", x)[0] for x in h]
    critical = max(range(5), key=lambda i: tile_logits[i])
    queries = [[math.tanh(v) for v in linear("query.2", [max(0.0, u) for u in linear("query.0", x)])] for x in h]
    raw = [math.exp(sum(a * b for a, b in zip(q, queries[critical], strict=True)) / math.sqrt(4)) for q in queries]
    attention = [r / sum(raw) for r in raw]
    values = [linear("value", x) for x in h]
    pooled = [sum(attention[i] * values[i][j] for i in range(5)) for j in range(6)]

    output = head(rows)
    assert output.tile_logits.tolist() == pytest.approx(tile_logits, abs=1e-5)
    assert output.attention.tolist() == pytest.approx(attention, abs=1e-5)
    assert output.slide_logit.item() == pytest.approx(linear("slide_stream", pooled)[0], abs=1e-5)


def test_a_head_does_not_depend_on_the_order_of_tiles() -> None:
    head = make_head(6, SECTION).eval()
    rows, order = features(7), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    straight, turned = head(rows), head(rows[order])
    assert turned.slide_logit.item() == pytest.approx(straight.slide_logit.item(), abs=1e-6)
    assert torch.allclose(turned.tile_logits, straight.tile_logits[order], atol=1e-6)
    assert torch.allclose(turned.attention, straight.attention[order], atol=1e-6)


def test_a_slide_of_one_tile_has_an_answer() -> None:
    output = make_head(6, SECTION).eval()(features(1))
    assert output.attention.tolist() == [1.0] and math.isfinite(output.slide_logit.item())


def test_the_seed_draws_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (make_head(6, params.Head(seed=seed)).state_dict()["query.0.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_head_comes_back_from_its_files_bit_by_bit(tmp_path: Path) -> None:
    head = make_head(6, SECTION).eval()
    head.standardise(torch.arange(6.0), torch.ones(6) * 2)
    save_head(head, SECTION, tmp_path / "a")
    save_head(load_head(tmp_path / "a"), SECTION, tmp_path / "b")
    assert torch.equal(load_head(tmp_path / "b")(features(4)).tile_logits, head(features(4)).tile_logits)
    for name in ("head.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_missing_or_foreign_head_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"head\.json does not exist; run the stage"):
        load_head(tmp_path)
    save_head(make_head(6, SECTION), SECTION, tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(HeadError, match="holds no head that can be read"):
        load_head(tmp_path)
