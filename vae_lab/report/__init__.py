"""Many runs compared: one page, tables, data frames, statistics; all from the runs' own files.

    df = vae_lab.report.frame("outputs/", "data=digits d=8")
    rows = vae_lab.report.collect("outputs/").rows
    vae_lab.report.compare(rows, "test/elbo", "objective.V", 1, 10)  # paired, over common seeds

Needs the extra `report`; torch is imported where the linear oracle is asked for.
"""

from vae_lab.report.frame import frame
from vae_lab.report.rows import Row, Rows, collect
from vae_lab.report.statistics import Mean, Paired, compare, means, paired

__all__ = ["Mean", "Paired", "Row", "Rows", "collect", "compare", "frame", "means", "paired"]
