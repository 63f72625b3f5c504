"""Package definition of tolktrain."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# src/ holds a link for each import name, so that an editable install is one entry of sys.path. Where packages are
# mapped one by one, setuptools installs a finder instead, which Python asks after sys.path: in the folder that holds a
# clone it would take the clone itself, whose name is the package's, for a namespace package.
# kernels/ is imported as tolktrain_kernels, because transformers imports a Hugging Face library named `kernels`. It has
# no __init__.py: with one, it would hide that library from every script that starts in this folder.
SOURCE = "src"
KERNELS = "tolktrain_kernels"
README = HERE / "README.md"

setup(
    name="tolktrain",
    version="0.1.0",
    description="Training of text-speech language models (SmolTolk) at cluster scale",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[
        *find_packages(str(HERE / SOURCE)),
        KERNELS,
        *(f"{KERNELS}.{name}" for name in find_packages(str(HERE / SOURCE / KERNELS))),
    ],
    package_dir={"": SOURCE},
    package_data={"tolktrain": ["py.typed", "report/*.html", "demo/page.*", "demo/chat.js"]},
    python_requires=">=3.10",
    install_requires=[
        "annotated-types>=0.7",
        "azure-core>=1.23",
        "azure-identity>=1.13",
        "azure-storage-blob>=12.19",
        "boto3>=1.36",
        "botocore>=1.36",
        "brotli>=1.1",
        "deepspeed>=0.19.8,<0.20",
        "filelock>=3.13",
        "google-auth>=2.0",
        "google-cloud-storage>=2.9",
        "huggingface-hub>=0.26",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.8",
        "megatron-core>=0.16.1,<0.17",
        "mosaicml-streaming>=0.13,<0.14",
        "numpy>=1.26",
        "pydantic>=2.10",
        "pydantic-core>=2.27",
        "python-snappy>=0.7",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.5",
        "scipy>=1.11",
        "tensorboard>=2.16",
        "tokenizers>=0.21",
        "torch>=2.10",
        "typing-extensions>=4.6",
        "zstd>=1.5",
    ],
    extras_require={
        # flash-attn exists as source only: it needs CUDA's compiler and a long build.
        # Triton comes with torch where torch is built for GPUs, in the one version that fits.
        "gpu": ["flash-attn>=2.7; sys_platform == 'linux'", "triton>=3.6; sys_platform == 'linux'"],
        # Preparing recordings, and sound from units.
        "audio": [
            "librosa>=0.10.2",
            "num2words>=0.5.14",
            "scikit-learn>=1.4",
            "soundfile>=0.12",
            "soxr>=0.3",
            "threadpoolctl>=3.2",
            "transformers>=4.57",
        ],
        "demo": ["aiohttp>=3.10"],
        # Preparing text of Parquet and .zst files.
        "text": ["pyarrow>=14"],
        # Text tasks of lm-evaluation-harness. Older releases have another interface.
        "eval": ["lm-eval>=0.4.13,<0.5"],
        "dev": [
            "flask>=3.0",  # with flask-cors, what moto's server needs of its long list
            "flask-cors>=5.0",
            "hypothesis>=6.100",
            "lhotse>=1.30",
            "moto[s3]>=5.2",
            "mypy>=1.10",
            "pytest>=9.0",
            "pytest-xdist>=3.7",
            "ruff>=0.6",
        ],
    },
    entry_points={"console_scripts": ["tolktrain = tolktrain.cli:program"]},
)
