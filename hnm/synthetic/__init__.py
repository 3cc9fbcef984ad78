"""The demo cohort, drawn without any data: slides, their manifest and their truth, the same on
every machine.
"""

from hnm.synthetic.cohort import make_demo_cohort

__all__ = ["make_demo_cohort"]
