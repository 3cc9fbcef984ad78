from typer.testing import CliRunner

from hnm.cli import app


def test_a_manifest_of_one_folder_a_class(tmp_path):
    for name in ("x/a.svs", "x/b.svs", "y/c.svs"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).touch()
    out = tmp_path / "d" / "slides.csv"
    result = CliRunner().invoke(
        app, ["cohort", "directory", str(tmp_path / "d"), "--positive", "x", "--out", str(out)]
    )
    assert (
        result.output
        == f"{out}: 3 slides, 2 of them positive; set cohort.manifest to it in params.yaml\n"
    )
    assert (
        out.read_text()
        == "slide_id,path,label,patient_id\na,x/a.svs,1,a\nb,x/b.svs,1,b\nc,y/c.svs,0,c\n"
    )


def test_tcga_needs_one_source_of_labels(tmp_path):
    result = CliRunner().invoke(app, ["cohort", "tcga", str(tmp_path), "sheet.tsv"])
    assert result.exit_code == 1
    assert (
        result.output
        == "error: name either --labels or --positive, which say where the labels come from\n"
    )


def test_notes_are_shown(tmp_path):
    for name in ("normal_001", "normal_086", "tumor_001"):
        (tmp_path / f"{name}.tif").touch()
    result = CliRunner().invoke(
        app, ["cohort", "camelyon16", str(tmp_path), "--out", str(tmp_path / "slides.csv")]
    )
    assert result.output.splitlines() == [
        f"note: tumor_001 has no annotation: there is no tumor_001.xml under {tmp_path}",
        "1 left out, it holds a metastasis; its makers gave it out again as tumor_111: normal_086",
        (
            f"{tmp_path / 'slides.csv'}: 2 slides, 1 of them positive, 1 left out; set"
            " cohort.manifest to it in params.yaml"
        ),
    ]


def test_only_a_cohort_of_which_nothing_is_left_fails(tmp_path):
    for name in ("x/._a.svs", "x/a.isyntax", "y/b.jpg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).touch()
    command = [
        "cohort",
        "directory",
        str(tmp_path / "d"),
        "--positive",
        "x",
        "--out",
        str(tmp_path / "slides.csv"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and not (tmp_path / "slides.csv").exists()
    assert (
        "1 left out, files that macOS leaves beside others (AppleDouble)" in result.output
        and "suffix .isyntax" in result.output
    )
    (tmp_path / "d" / "x" / "c.svs").touch()
    result = CliRunner().invoke(app, command)
    assert (
        result.exit_code == 0
        and result.output.splitlines()[0]
        == "note: all slides have label 1, but a cohort needs both"
    )
    assert "1 slides, 1 of them positive, 3 left out" in result.output.splitlines()[-1]


def test_normal_tissue_has_three_ways(tmp_path):
    result = CliRunner().invoke(
        app,
        ["cohort", "tcga", str(tmp_path), "sheet.tsv", "--positive", "a", "--normal", "positive"],
    )
    assert result.exit_code == 1 and result.output.startswith(
        "error: --normal 'positive' is none of leave-out, negative, keep; name one"
    )
