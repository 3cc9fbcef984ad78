"""What only a GPU can show: that it computes what the CPU does, the same way each time, and what
its memory does not hold in parts.
"""

import copy

import numpy as np
import pytest
import torch

from hnm import params
from hnm.learning.compute import CPU, Machine, set_up_torch
from hnm.learning.embed import embed_tiles
from hnm.learning.encoder import TileEncoder, make_encoder
from hnm.learning.training.fit_encoder import NEGATIVE, POSITIVE, fit_encoder, role_losses
from hnm.learning.training.fit_simclr import fit_simclr
from hnm.learning.training.losses import nt_xent_loss
from hnm.learning.training.views import random_views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

TILES = (
    np.random.default_rng(0)
    .integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    .repeat(8, axis=1)
    .repeat(8, axis=2)
)
ROLES = np.array([NEGATIVE, POSITIVE] * 24)


@pytest.fixture(params=["resnet18_instance_norm", "test_resnet", "tf_efficientnet_lite0"])
def encoder(request: pytest.FixtureRequest) -> TileEncoder:
    return make_encoder(params.Encoder(name=request.param, weights="random"))


def machine(precision: str = "float32") -> Machine:
    return set_up_torch(
        params.Compute.model_validate(
            {"device": "auto", "precision": precision, "threads": torch.get_num_threads()}
        )
    )


def features_of(
    encoder: TileEncoder, machine: Machine, batch_tiles: int = 16, compiled: bool = False
) -> np.ndarray:
    features = embed_tiles(
        encoder,
        [30, 18],
        lambda slide, first, end: TILES[30 * slide :][first:end],
        batch_tiles=batch_tiles,
        machine=machine,
        compiled=compiled,
    )
    return np.concatenate(list(features))


def test_auto_is_the_gpu_in_bfloat16_where_it_has_it() -> None:
    chosen = machine("auto")
    assert chosen.device.type == "cuda"
    assert chosen.precision == (
        "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    )


@pytest.mark.parametrize(("precision", "share"), [("float32", 5e-3), ("auto", 5e-2)])
def test_features_are_the_cpu_s_to_the_precision(
    encoder: TileEncoder, precision: str, share: float
) -> None:
    """`float32` convolutions on a GPU are of TF32, which keeps ten bits."""
    on_cpu = features_of(encoder, CPU)
    on_gpu = features_of(encoder, machine(precision))
    assert np.linalg.norm(on_gpu - on_cpu) < share * np.linalg.norm(on_cpu)
    assert np.array_equal(on_gpu, features_of(encoder, machine(precision)))


def test_a_batch_that_the_gpu_s_memory_does_not_hold_is_taken_in_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = make_encoder(params.Encoder(name="resnet18_instance_norm", weights="random"))
    whole = features_of(encoder, machine())
    tiles = TILES.repeat(40, axis=0)
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(
            0.6e9 / torch.cuda.get_device_properties(0).total_memory
        )
        (parts,) = embed_tiles(
            encoder,
            [len(tiles)],
            lambda slide, first, end: tiles[first:end],
            batch_tiles=len(tiles),
            machine=machine(),
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: the encoder now takes " in capsys.readouterr().out
    assert parts[::40] == pytest.approx(whole, abs=5e-3 * float(np.abs(whole).max()))


def test_a_compiled_encoder_gives_the_same_features() -> None:
    encoder = make_encoder(params.Encoder(name="test_resnet", weights="random"))
    plain, compiled = (
        features_of(encoder, machine(), compiled=compiled) for compiled in (False, True)
    )
    assert np.linalg.norm(compiled - plain) < 5e-3 * np.linalg.norm(plain)


def test_losses_and_their_gradients_are_the_cpu_s() -> None:
    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    roles, tiles = torch.arange(32) % 2, torch.arange(32) % 16
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        features = rows.detach().to(device, dtype).requires_grad_()
        loss = role_losses(features, roles.to(device), temperature=0.07).sum() + nt_xent_loss(
            features, tiles.to(device), temperature=0.5
        )
        loss.backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        results.append((loss.item(), features.grad.cpu().double()))
    (value, gradient), (other_value, other_gradient) = results
    assert other_value == pytest.approx(value, rel=1e-5)
    assert (other_gradient - gradient).norm() < 1e-3 * gradient.norm()


def test_views_are_drawn_the_same_each_time_and_disturb_no_other_draw() -> None:
    tiles = torch.from_numpy(TILES).permute(0, 3, 1, 2).float().div(255).cuda()
    torch.manual_seed(7)
    before = torch.cuda.get_rng_state()
    views = [random_views(tiles, params.Finetune().views, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert views[0].min() >= 0 and views[0].max() <= 1


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_training_gives_the_same_weights_each_time(encoder: TileEncoder, precision: str) -> None:
    def trained(kind: str) -> tuple[TileEncoder, list[dict[str, float]]]:
        network = copy.deepcopy(encoder)
        if kind == "simclr":
            section = params.Simclr(epochs=2, batch_tiles=16)
            return network, fit_simclr(
                network,
                lambda rows: TILES[rows],
                len(TILES),
                section,
                machine(precision),
                lambda epoch, metrics: None,
            )
        finetune = params.Finetune(epochs=2, batch_tiles=16, freeze_layers=0)
        return network, fit_encoder(
            network,
            lambda rows: TILES[rows],
            ROLES,
            finetune,
            machine(precision),
            lambda epoch, metrics: None,
        )

    for kind in ("simclr", "finetune"):
        (one, history), (other, again) = trained(kind), trained(kind)
        assert history == again and np.isfinite(history[-1]["loss"])
        moved = 0
        for (name, weight), repeated, start in zip(
            one.named_parameters(), other.parameters(), encoder.parameters(), strict=True
        ):
            assert weight.device.type == "cpu" and torch.equal(weight, repeated), name
            moved += not torch.equal(weight, start)
        assert moved
