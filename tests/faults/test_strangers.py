"""Files that somebody made in order to harm: none runs, none is believed further than its bounds,
each is one error that names it.
"""

import json
import os
import pickle
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from hnm.errors import HnmError
from hnm.files import read_bounded
from hnm.learning import features
from hnm.learning.encoder import load_encoder
from hnm.prediction.model import read_model
from hnm.slides.annotations import read_annotation
from hnm.slides.cohort.outlines import outlined
from hnm.slides.cutting.pack import Pack
from hnm.tables import LABELS, TILES
from tests.faults.fuzzing import READERS, make_seeds
from tests.support.model import make_model
from tests.support.slides import STROMA, aperio, painted


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.place),)


def refused(read: object, *arguments: object, seconds: float = 10.0) -> str:
    """The one error of a file; it comes in time."""
    begin = time.monotonic()
    with pytest.raises(HnmError) as error:
        read(*arguments)  # type: ignore[operator]
    assert time.monotonic() - begin < seconds
    assert len(str(error.value)) < 2_000
    return str(error.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "encoder.json"])
def test_hostile_pickles(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path)
    (model / "encoder" / name).write_bytes(pickle.dumps(Harm(tmp_path / "PWNED")))
    assert name in refused(read_model, model, "a")
    assert name in refused(load_encoder, model / "encoder")
    (model / "encoder" / "extra.pkl").write_bytes(pickle.dumps(Harm(tmp_path / "PWNED")))
    assert "extra.pkl" in refused(read_model, model, "a")
    for reader in (Pack, features.read, TILES.read, LABELS.read):
        for suffix in (".h5", ".parquet", ".csv"):
            path = tmp_path / f"a{suffix}"
            path.write_bytes(pickle.dumps(Harm(tmp_path / "PWNED")))
            try:
                reader(path)
            except HnmError:
                continue
            raise AssertionError(f"{reader} took a pickle")
    assert not (tmp_path / "PWNED").exists()


def test_hostile_npz(tmp_path: Path) -> None:
    """Nothing reads npz; under any name that is read it is none of ours."""
    np.savez(tmp_path / "a.npz", a=np.array([Harm(tmp_path / "PWNED")], dtype=object))
    for name, reader in (
        ("a.h5", Pack),
        ("b.h5", features.read),
        ("a.parquet", TILES.read),
        ("a.csv", LABELS.read),
        ("a.geojson", read_annotation),
    ):
        (tmp_path / name).write_bytes((tmp_path / "a.npz").read_bytes())
        assert name in refused(reader, tmp_path / name)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "yy"><!ENTITY x1 "&x;&x;&x;&x;&x;&x;&x;&x;&x;&x;">'
        + "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(2, 10))
        + "]><ASAP_Annotations><Annotations><Annotation"
        " PartOfGroup='&x9;'/></Annotations></ASAP_Annotations>",
        (
            "<!DOCTYPE a [<!ENTITY x SYSTEM"
            " 'file:///etc/passwd'>]><ASAP_Annotations>&x;</ASAP_Annotations>"
        ),
        "<a>" * 100_000,
        (
            "<ASAP_Annotations><Annotations><Annotation PartOfGroup='_0'><Coordinates><Coordinate"
            " X='NaN' Y='1'/><Coordinate X='2' Y='1e999'/><Coordinate X='2'"
            " Y='3'/></Coordinates></Annotation></Annotations></ASAP_Annotations>"
        ),
    ],
    ids=["a bomb", "a file of this machine", "a hundred thousand levels", "no numbers"],
)
def test_hostile_xml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tumor_001.xml"
    path.write_text(text)
    said = refused(outlined, path)
    assert "tumor_001.xml" in said and "root:" not in said


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5_000,
        "1e999",
        "NaN",
        '{"type": "FeatureCollection", "features": 7}',
        '{"type": []}',
        '"\\ud800"',
        "\ufeff",
        '[{"geometry": {"type": []}}]',
    ],
)
def test_hostile_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    assert "a.geojson" in refused(read_annotation, path)
    os.mkfifo(tmp_path / "pipe.geojson")
    assert "pipe.geojson" in refused(read_annotation, tmp_path / "pipe.geojson", seconds=2)


def test_a_ring_that_crosses_itself_a_thousand_times(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    ring = [list(point) for point in dice.random((1000, 2)) * 1e5]
    shape = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "properties": {"classification": {"name": "tumour"}},
    }
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(shape))
    begin = time.monotonic()
    try:
        read_annotation(path)
    except HnmError as error:
        assert "a.geojson" in str(error)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("how", ["external", "virtual", "link", "soft", "chunked", "huge", "text"])
def test_hostile_hdf5(tmp_path: Path, how: str) -> None:
    """Features that would read another file of this machine, or ask for more memory than there
    is.
    """
    path = tmp_path / "a.h5"
    (tmp_path / "secret").write_bytes(b"\x3c" * 4096)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.ones((4, 8), np.float16)
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((4, 2), np.int64)
        if how == "external":
            file.create_dataset(
                "features", shape=(4, 8), dtype="f2", external=[(str(tmp_path / "secret"), 0, 64)]
            )
        elif how == "virtual":
            layout = h5py.VirtualLayout((4, 8), "f2")
            layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (4, 8))
            file.create_virtual_dataset("features", layout)
        elif how == "link":
            file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")
        elif how == "soft":
            file["features"] = h5py.SoftLink("/coords")
        elif how == "chunked":
            file.create_dataset("features", shape=(4, 8), dtype="f2", chunks=(1, 8))
        elif how == "huge":
            file.create_dataset("features", shape=(2**33, 8), dtype="f2", chunks=(1024, 8))
        else:
            file.create_dataset(
                "features", data=np.array([["a"] * 8] * 4, dtype=h5py.string_dtype())
            )
    assert "a.h5" in refused(features.read, path)
    assert "a.h5" in refused(Pack, path)


@pytest.mark.parametrize(
    "how", ["postscript", "text bomb", "a large claim", "torn", "a folder", "apng"]
)
def test_hostile_png(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    """A mask costs its slide, whatever it is."""
    folder = tmp_path_factory.mktemp("png")
    make_seeds(folder / "seeds")
    (folder / "scratch").mkdir()
    path = folder / "mask.png"
    content = (folder / "seeds" / "mask.png").read_bytes()
    if how == "postscript":
        path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(PWNED) (w) file"
            b" closefile\nshowpage\n"
        )
    elif how == "text bomb":
        from tests.faults.mutations import png_chunk

        class Dice:
            def randrange(self, end: int) -> int:
                return 2

            def choice(self, values: list[object]) -> object:
                return b"zTXt" if b"zTXt" in values else values[0]

        path.write_bytes(png_chunk(content, Dice()))  # type: ignore[arg-type]
    elif how == "a large claim":
        Image.new("1", (20_000, 20_000)).save(path)
    elif how == "torn":
        path.write_bytes(content[:60])
    elif how == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content[:33] + b"\0\0\0\x01acTL\0" + b"\0" * 4 + content[33:])
    said = refused(READERS["mask"], path, folder)
    assert "mask.png" in said
    assert not list(Path.cwd().glob("PWNED")) and not list(folder.rglob("PWNED"))


def test_hostile_tiff(tmp_path: Path) -> None:
    """A small file that claims a huge slide is refused before memory is asked for."""
    import resource

    from tests.faults.test_slides import claim

    path = aperio(tmp_path / "a.svs", painted(256, 320, (50, 40, 180, 170, STROMA)))
    content = bytearray(path.read_bytes())
    claim(content, 2**31 - 1)
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        READERS["slide"](path, tmp_path)
    except HnmError as error:
        assert str(error)
    else:
        raise AssertionError("a slide of 2**31 px in 100 KB was cut")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom", "/proc/self/mem", "/"])
def test_devices_are_no_files(name: str) -> None:
    assert name in refused(lambda: read_bounded(Path(name), HnmError, what=name), seconds=2)
