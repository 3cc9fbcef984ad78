"""Embedding: the features of a slide do not depend on its neighbours."""

import numpy as np
import pytest
import torch

from hnm import params
from hnm.errors import EncoderError
from hnm.learning.compute import CPU, Machine
from hnm.learning.embed import embed_tiles
from hnm.learning.encoder import make_encoder, to_input

ENCODER = make_encoder(params.Encoder(name="test_resnet", weights="random"))
SLIDES = [
    np.random.default_rng(i).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    for i, count in enumerate((3, 11, 1, 6))
]


def features_of(
    slides: list[np.ndarray], batch_tiles: int = 4, machine: Machine = CPU
) -> list[np.ndarray]:
    return list(
        embed_tiles(
            ENCODER,
            [len(tiles) for tiles in slides],
            lambda slide, first, end: slides[slide][first:end],
            batch_tiles=batch_tiles,
            machine=machine,
        )
    )


def test_features_are_the_encoder_s_of_each_tile_in_order() -> None:
    with torch.inference_mode():
        for tiles, features in zip(SLIDES, features_of(SLIDES), strict=True):
            one_by_one = torch.cat(
                [
                    ENCODER(to_input(torch.from_numpy(tile[None]), torch.device("cpu")))
                    for tile in tiles
                ]
            )
            assert features == pytest.approx(one_by_one.numpy(), abs=1e-4)


def test_features_do_not_depend_on_the_slides_beside() -> None:
    """A tile has another place in its batch then, where another kernel may round its last bits
    otherwise.
    """
    together = features_of(SLIDES)
    for number, tiles in enumerate(SLIDES):
        assert features_of([tiles])[0] == pytest.approx(together[number], rel=1e-5, abs=1e-5)
    assert features_of(SLIDES[::-1])[0] == pytest.approx(together[-1], rel=1e-5, abs=1e-5)


def test_the_same_slides_give_the_same_bits() -> None:
    assert all(
        np.array_equal(one, same)
        for one, same in zip(features_of(SLIDES), features_of(SLIDES), strict=True)
    )


def test_no_slides_give_no_features() -> None:
    assert features_of([]) == []


def test_bfloat16_gives_the_same_features_to_its_precision() -> None:
    plain, brief = (
        np.concatenate(features_of(SLIDES, machine=machine))
        for machine in (CPU, Machine(CPU.device, "bfloat16"))
    )
    assert brief.dtype == np.float32 and not np.array_equal(plain, brief)
    assert brief == pytest.approx(plain, abs=0.03 * float(np.abs(plain).max()))


class Small(torch.nn.Module):
    """The encoder on a device that takes only so many tiles at once."""

    def __init__(self, takes: int) -> None:
        super().__init__()
        self.record, self.takes, self.asked = ENCODER.record, takes, []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(batch))
        if len(batch) > self.takes:
            raise torch.OutOfMemoryError("out of memory")
        return ENCODER(batch)


def embedded_by(encoder: Small, batch_tiles: int) -> np.ndarray:
    features = embed_tiles(
        encoder,
        [len(tiles) for tiles in SLIDES],
        lambda slide, first, end: SLIDES[slide][first:end],
        batch_tiles=batch_tiles,
        machine=CPU,
    )  # type: ignore[arg-type]
    return np.concatenate(list(features))


def test_a_batch_that_does_not_fit_is_taken_in_halves(capsys: pytest.CaptureFixture[str]) -> None:
    """Batches of 11 where 3 fit: 11, 6 and 5 fail and 3 does not, once and for all."""
    encoder = Small(takes=3)
    assert embedded_by(encoder, 11) == pytest.approx(np.concatenate(features_of(SLIDES)), abs=1e-4)
    assert encoder.asked == [11, 6, 3, 3, 3, 2, 3, 3, 3, 2]
    assert [line.split()[7] for line in capsys.readouterr().out.splitlines()] == ["6", "3"]


def test_a_tile_that_does_not_fit() -> None:
    with pytest.raises(
        EncoderError,
        match=(
            r"not even one tile of \(3, 32, 32\) fits into the memory of cpu; use a smaller encoder"
            r" or device: cpu"
        ),
    ):
        embedded_by(Small(takes=0), 4)


def test_a_compiled_encoder_gives_the_same_features_and_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda module: asked.append(module) or (lambda tiles: module(tiles))
    )
    compiled = list(
        embed_tiles(
            ENCODER,
            [len(tiles) for tiles in SLIDES],
            lambda slide, first, end: SLIDES[slide][first:end],
            batch_tiles=4,
            machine=CPU,
            compiled=True,
        )
    )
    assert asked == [ENCODER] and all(
        np.array_equal(a, b) for a, b in zip(compiled, features_of(SLIDES), strict=True)
    )


def test_an_encoder_that_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tiles: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.BackendCompilerFailed(len, RuntimeError("no compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda module: refuse)
    with pytest.raises(
        EncoderError,
        match=(
            r"embed.compile=true, but torch cannot compile the encoder here \(.*\); install a C\+\+"
            r" compiler, or set it to false"
        ),
    ):
        list(
            embed_tiles(
                ENCODER,
                [3],
                lambda slide, first, end: SLIDES[0][first:end],
                batch_tiles=4,
                machine=CPU,
                compiled=True,
            )
        )
