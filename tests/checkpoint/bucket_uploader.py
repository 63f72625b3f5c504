"""Copies a checkpoint to a bucket, to be killed meanwhile.

Usage: bucket_uploader.py ADDRESS FOLDER.
"""

import sys
from pathlib import Path

from tolktrain.checkpoint.bucket import Uploads
from tolktrain.data.storage import Storage

if __name__ == "__main__":
    uploads = Uploads(Storage(sys.argv[1]))
    uploads.submit(Path(sys.argv[2]))
    uploads.close()
