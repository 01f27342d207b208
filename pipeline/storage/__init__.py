"""Data files in and out: bounded reads of input partitions, atomic publishing of one Parquet file per partition.

The only package that writes data files. Must not import pandas and must not know what the columns mean.
"""

from pipeline.storage.inputs import Inputs
from pipeline.storage.isolation import Footer, ReadLimits
from pipeline.storage.parquet import ROW_GROUP
from pipeline.storage.staged import Staged
from pipeline.storage.store import Storage
from pipeline.storage.targets import Current, Published, Target

__all__ = ["ROW_GROUP", "Current", "Footer", "Inputs", "Published", "ReadLimits", "Staged", "Storage", "Target"]
