"""Package definition of tolktrain."""

from setuptools import find_packages, setup

KERNELS = ["tolktrain_kernels", *(f"tolktrain_kernels.{name}" for name in find_packages("kernels"))]

setup(
    name="tolktrain",
    version="0.1.0",
    packages=[*find_packages(include=["tolktrain", "tolktrain.*"]), *KERNELS],
    package_dir={"tolktrain_kernels": "kernels"},
    python_requires=">=3.10",
)
