"""Two processes that train together: the loss and the gradients of one, the same weights in both,
and what is refused.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hnm import params
from hnm.errors import EncoderError, FinetuneError
from hnm.learning.compute import CPU, joined
from hnm.learning.training.trainer import shares_of
from hnm.loop import launch
from tests.support import processes as tiny_processes
from tests.support.stages import Launcher


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher
) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    running = [
        launcher.start(
            "tests.support.processes",
            [str(folder)],
            cwd=folder,
            env={**shared, "RANK": str(rank)},
            log=str(folder / "log"),
        )
        for rank in range(2)
    ]
    for process in running:
        assert launcher.wait(process) == 0, (folder / f"log.{process}.err").read_text()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_give_one_process_s_loss_and_gradients(
    two: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    alone = tiny_processes.step(CPU)
    assert {
        "loss",
        "positive_loss",
        "spread",
        "1.weight",
        "0.backbone.layer1.0.conv1.weight",
    } <= set(alone)
    for one in two:
        assert set(one["step"]) == set(alone)
        for name, value in alone.items():
            assert torch.allclose(one["step"][name], value, rtol=1e-4, atol=1e-5), name


def test_both_end_with_the_same_weights_and_statistics(
    two: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    first, second = (one["trained"] for one in two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = tiny_processes.model()[0].backbone.state_dict()
    for stage, moves in (("finetune", False), ("simclr", True)):
        statistics = next(name for name in before if name.endswith("running_mean"))
        assert torch.equal(first[f"{stage} {statistics}"], before[statistics]) is not moves
        assert not torch.equal(
            first[f"{stage} layer1.0.conv1.weight"], before["layer1.0.conv1.weight"]
        )


def test_running_statistics_are_the_mean_of_the_processes(
    two: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    """Each process sees half of the tiles: a variance is near that of one process that sees all,
    and their sum near twice it.
    """
    alone, both = tiny_processes.trained(CPU), two[0]["trained"]
    names = [name for name in alone if name.startswith("simclr") and name.endswith("running_var")]
    ratios = torch.stack([(both[name] / alone[name]).median() for name in names])
    assert len(names) > 10 and ((ratios > 0.6) & (ratios < 1.4)).all(), ratios


def test_shares_are_even_or_refused() -> None:
    assert [share.tolist() for share in shares_of(np.array([4, 2, 7, 1]), 2, "simclr")] == [
        [4, 7],
        [2, 1],
    ]
    with pytest.raises(
        FinetuneError,
        match=(
            r"a step of 4 tiles cannot be shared evenly by compute.processes=3; make"
            r" simclr.batch_tiles a multiple of it"
        ),
    ):
        shares_of(np.arange(4), 3, "simclr")


def test_another_number_of_processes_than_asked_for_is_refused() -> None:
    with (
        pytest.raises(
            EncoderError,
            match=(
                r"compute.processes=2, but 1 train here; .* torchrun --nproc-per-node=2, or set"
                r" compute.processes to 1"
            ),
        ),
        joined(CPU, 2),
    ):
        pass


class TestLaunch:
    @pytest.fixture
    def commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        commands: list[list[str]] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("os.execv", lambda program, arguments: commands.append(arguments))
        monkeypatch.setattr(launch, "die_with_parent", lambda: None)
        monkeypatch.setattr("sys.argv", ["finetune.py", "--round", "1"])
        return commands

    @pytest.mark.parametrize(("processes", "count"), [(1, 0), (3, 1)])
    def test_torchrun_takes_the_place_of_a_stage_that_asks_for_several(
        self, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, processes: int, count: int
    ) -> None:
        compute = params.Compute(processes=processes)
        monkeypatch.setattr(
            launch, "load_params", lambda path: type("Params", (), {"compute": compute})
        )
        launch.share_among_processes("pipelines.finetune")
        expected = [
            sys.executable,
            "-m",
            "hnm.loop.launch",
            "--standalone",
            "--nproc-per-node=3",
            "-m",
            "pipelines.finetune",
            "--round",
            "1",
        ]
        assert commands == [expected] * count

    def test_params_that_cannot_be_read_are_left_to_the_stage(
        self, commands: list[list[str]]
    ) -> None:
        launch.share_among_processes("pipelines.finetune")
        assert commands == []

    @pytest.mark.parametrize(("rank", "tracking"), [("0", "on"), ("1", "off")])
    def test_only_the_first_process_is_tracked(
        self, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, rank: str, tracking: str
    ) -> None:
        for name, value in {"WORLD_SIZE": "2", "RANK": rank, "HNM_TRACKING": "on"}.items():
            monkeypatch.setenv(name, value)
        launch.share_among_processes("pipelines.finetune")
        assert os.environ["HNM_TRACKING"] == tracking and commands == []

    @pytest.mark.parametrize(
        ("ends", "code", "said"),
        [
            (
                "sys.exit('error: it is wrong') if rank else time.sleep(60)",
                1,
                "error: it is wrong\n",
            ),
            (
                "os.kill(os.getpid(), 9) if rank else time.sleep(60)",
                1,
                (
                    "error: process 1 of the training was killed (SIGKILL), most often for want of"
                    " memory;"
                ),
            ),
        ],
    )
    def test_a_process_that_ends_badly_ends_all_with_one_line(
        self, tmp_path: Path, ends: str, code: int, said: str
    ) -> None:
        (tmp_path / "own.py").write_text(
            f"import os, sys, time\nrank = int(os.environ['RANK'])\n{ends}\n"
        )
        command = [
            sys.executable,
            "-m",
            "hnm.loop.launch",
            "--standalone",
            "--nproc-per-node=2",
            str(tmp_path / "own.py"),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "OMP_NUM_THREADS": "1",
        }
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert (
            ended.returncode == code
            and ended.stderr.startswith(said)
            and len(ended.stderr.splitlines()) == 1
        )
