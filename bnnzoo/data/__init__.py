"""Data: known sets by name, your own from arrays, frames and files, splits and standardization."""

from bnnzoo.data import toys
from bnnzoo.data.dataset import Dataset, Split
from bnnzoo.data.ingest import as_dataset
from bnnzoo.data.loading import load
from bnnzoo.data.registry import Entry, info, names
from bnnzoo.data.standardization import Standardization
from bnnzoo.data.tables import from_csv, from_frame

__all__ = [
    "Dataset",
    "Entry",
    "Split",
    "Standardization",
    "as_dataset",
    "from_csv",
    "from_frame",
    "info",
    "load",
    "names",
    "toys",
]
