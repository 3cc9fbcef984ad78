"""Device and precision: what `auto` means, and what is refused."""

import pytest
import torch

from hnm import params
from hnm.errors import EncoderError
from hnm.learning import compute
from hnm.learning.compute import CPU, Machine, pick_device, pick_precision

GPU = torch.device("cuda")


@pytest.mark.parametrize("available", [True, False])
def test_a_gpu_that_is_left_idle_is_told_once(
    available: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    compute._warn_of_an_idle_gpu.cache_clear()
    section = params.Compute(device="cpu", threads=torch.get_num_threads())
    assert compute.set_up_torch(section) == compute.set_up_torch(section) == CPU
    assert [record.getMessage() for record in caplog.records] == [
        "compute.device=cpu leaves this machine's GPU idle; set it to auto to use it"
    ] * available


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(EncoderError, match=r"compute.device=cuda, but torch sees no GPU"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("asked", "capability", "precision"),
    [
        ("auto", (9, 0), "bfloat16"),
        ("auto", (8, 0), "bfloat16"),
        ("auto", (7, 5), "float32"),
        ("float32", (9, 0), "float32"),
        ("bfloat16", (8, 6), "bfloat16"),
    ],
)
def test_auto_is_bfloat16_on_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert pick_precision(asked, GPU) == precision


def test_a_gpu_without_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    with pytest.raises(
        EncoderError,
        match=(
            r"compute.precision=bfloat16, but Tesla T4 has no bfloat16; set compute.precision to"
            r" auto or float32"
        ),
    ):
        pick_precision("bfloat16", GPU)


def test_on_a_cpu_auto_is_float32_and_bfloat16_must_be_asked_for() -> None:
    assert [pick_precision(asked, CPU.device) for asked in ("auto", "float32", "bfloat16")] == [
        "float32",
        "float32",
        "bfloat16",
    ]


def test_autocast_computes_products_in_the_machine_s_precision() -> None:
    rows = torch.ones(2, 2)
    for machine, dtype in ((CPU, torch.float32), (Machine(CPU.device, "bfloat16"), torch.bfloat16)):
        with machine.autocast():
            assert (rows @ rows).dtype == dtype
