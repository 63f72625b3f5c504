"""The only import of mosaicml-streaming.

All packages import the library through this module, because importing it imports its text, vision and multimodal data
sets, and with them transformers, torchvision and scikit-learn: 3 s and 280 MB that training does not need. Private and
undocumented names that are used are listed here too.
"""

from tolktrain.libraries.imports import deferred

with deferred("streaming.multimodal", "streaming.text", "streaming.vision", "transformers"):
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base import dataset
    from streaming.base.compression import is_compression
    from streaming.base.constant import EPOCH_DATA, LOCALS, SHM_TO_CLEAN
    from streaming.base.dataset import _Iterator, _ShardState
    from streaming.base.format.base.reader import FileInfo
    from streaming.base.format.mds.encodings import NDArray, Str
    from streaming.base.format.mds.reader import MDSReader
    from streaming.base.hashing import get_hash, get_hashes
    from streaming.base.shared import SharedMemory, array
    from streaming.base.shared.prefix import _get_path, _pack_locals, _unpack_locals
    from streaming.base.storage import CloudDownloader
    from streaming.base.util import bytes_to_int
    from streaming.base.world import World

__all__ = [
    "CloudDownloader",
    "EPOCH_DATA",
    "FileInfo",
    "LOCALS",
    "MDSReader",
    "MDSWriter",
    "NDArray",
    "SHM_TO_CLEAN",
    "SharedMemory",
    "Str",
    "Stream",
    "StreamingDataset",
    "World",
    "_Iterator",
    "_ShardState",
    "_get_path",
    "_pack_locals",
    "_unpack_locals",
    "array",
    "bytes_to_int",
    "dataset",
    "get_hash",
    "get_hashes",
    "is_compression",
]
