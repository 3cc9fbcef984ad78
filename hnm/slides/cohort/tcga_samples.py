"""Samples of TCGA: what a row of the GDC's sheet and the barcode of its file say of patient and
tissue, and whether they agree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hnm.names import is_id, quoted
from hnm.rows import is_unknown

TUMOUR = "tumour"
NORMAL = "normal tissue"
CONTROL = "control"
OTHER = "neither tumour nor normal tissue"
BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-(\d{2})[A-Z]-\d{2}-[A-Z]{2}[A-Z0-9]*")
"""Of a slide: patient, and the two digits of the sample's type."""
_SAMPLE_ID = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-(\d{2})[A-Z]?")
SAMPLE_TYPES = {
    "primary tumor": 1,
    "primary solid tumor": 1,
    "recurrent tumor": 2,
    "recurrent solid tumor": 2,
    "additional - new primary": 5,
    "metastatic": 6,
    "additional metastatic": 7,
    "blood derived normal": 10,
    "solid tissue normal": 11,
    "buccal cell normal": 12,
    "ebv immortalized normal": 13,
    "bone marrow normal": 14,
    "control analyte": 20,
}
"""The GDC's names of sample types, in small letters, and the digits that barcodes have for them."""


@dataclass(frozen=True)
class Sample:
    """What is known of the sample of one slide."""

    slide_name: str
    """Its barcode, or else the name of its file without suffix."""
    patient_id: str | None
    """None where nobody knows."""
    kind: str | None
    """`TUMOUR`, `NORMAL`, `CONTROL`, `OTHER`; None where nothing says."""
    code: int | None
    """The sample's type, as in the barcode; None where nothing says."""
    vial: str
    """The sample in the barcode, such as 01Z; "" without one."""
    fault: str | None
    """Why the slide cannot be taken: what is said of it contradicts itself."""


def kind_of_code(code: int) -> str:
    """What kind of tissue a sample type is: 01 to 09 are tumours, 10 to 19 normal, 20 to 29
    controls.
    """
    return {0: TUMOUR, 1: NORMAL, 2: CONTROL}.get(code // 10, OTHER)


def sample_of(row: Mapping[str, str]) -> Sample:
    """The sample of one row of a sheet, with the columns File Name and Case ID, and Sample ID,
    Sample Type and Tissue Type where there are.
    """
    name = row["File Name"]
    barcode = BARCODE.match(name)
    said = _codes_said(row) | ({"the barcode": int(barcode[2])} if barcode else {})
    kinds = {where: kind_of_code(code) for where, code in said.items()}
    kinds |= {
        where: kind
        for where in ("Sample Type", "Tissue Type")
        for kind in _kinds_in_words(row.get(where, ""))
    }
    cases = sorted({case.strip() for case in row["Case ID"].split(",") if not is_unknown(case)})
    patient = barcode[1] if barcode else cases[0] if cases else None
    fault = None
    if len(set(said.values())) > 1 or len(set(kinds.values())) > 1:
        fault = "what its barcode and the sheet say of its tissue contradict each other"
    elif len(cases) > 1 or (barcode and cases and cases != [barcode[1]]):
        fault = "what its barcode and the sheet say of its patient contradict each other"
    elif patient is not None and not is_id(patient):
        fault = f"its Case ID {quoted(patient)} is no id"
    code = next(iter(said.values()), None)
    kind = next(iter(kinds.values()), None)
    vial = barcode[0].split("-")[3] if barcode else ""
    return Sample(barcode[0] if barcode else Path(name).stem, patient, kind, code, vial, fault)


def _codes_said(row: Mapping[str, str]) -> dict[str, int]:
    """Where a sheet names a sample type -> its digits; a cell may hold several names."""
    said = {}
    for number, name in enumerate(row.get("Sample Type", "").split(",")):
        if (code := SAMPLE_TYPES.get(" ".join(name.split()).casefold())) is not None:
            said[f"Sample Type {number}"] = code
    for number, name in enumerate(row.get("Sample ID", "").split(",")):
        if match := _SAMPLE_ID.match(name.strip()):
            said[f"Sample ID {number}"] = int(match[1])
    return said


def _kinds_in_words(cell: str) -> list[str]:
    """The kinds of tissue that words speak of: normal, a control, or a tumour of whatever name;
    none where they say nothing.
    """
    kinds = set()
    for words in cell.casefold().split(","):
        if "normal" in words:
            kinds.add(NORMAL)
        elif "control" in words:
            kinds.add(CONTROL)
        elif "cell line" in words or "xenograft" in words:
            kinds.add(OTHER)
        elif any(
            stem in words
            for stem in ("tumor", "tumour", "cancer", "metasta", "primary", "recurren")
        ):
            kinds.add(TUMOUR)
    return sorted(kinds)
