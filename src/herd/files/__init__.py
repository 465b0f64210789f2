"""Reading files that nobody vouches for, writing files that are either whole or absent, and where our own files live."""

from herd.files.folders import home, models_folder
from herd.files.json import read_json
from herd.files.mapped import MappedFile
from herd.files.reader import BoundedReader
from herd.files.text import read_text
from herd.files.writing import atomic_write, file_lock, replacing, take_lock

__all__ = [
    "BoundedReader",
    "MappedFile",
    "atomic_write",
    "file_lock",
    "home",
    "models_folder",
    "read_json",
    "read_text",
    "replacing",
    "take_lock",
]
