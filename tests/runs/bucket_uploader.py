"""Copies a checkpoint to a bucket, to be killed meanwhile.

Usage: bucket_uploader.py ADDRESS FOLDER.
"""

import sys
from pathlib import Path

from tolktrain.runs.uploads import Uploads
from tolktrain.storage.open import open_storage

if __name__ == "__main__":
    uploads = Uploads(open_storage(sys.argv[1]))
    uploads.submit(Path(sys.argv[2]))
    uploads.close()
