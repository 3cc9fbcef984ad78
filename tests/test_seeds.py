"""Seeds: the same everywhere, different for each purpose."""

from hnm.seeds import seed_of


def test_seeds_are_the_same_in_every_process_and_differ_by_purpose() -> None:
    assert seed_of(0, "views", "slide_1", 2) == 8961078342053580270
    assert (
        len(
            {
                seed_of(0, "views", 1, 2),
                seed_of(0, "views", 12),
                seed_of(0, "views", 2, 1),
                seed_of(1, "views", 1, 2),
            }
        )
        == 4
    )
    assert all(0 <= seed_of(i, "range") < 2**63 for i in range(100))
