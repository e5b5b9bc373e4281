"""Packaging of tfloss. `pyproject.toml` holds tool settings only."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithExamples(build_py):
    """The wheel has the examples and their configs, for `tfloss examples`."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in ("examples", "configs"):
                copy = Path(self.build_lib, "tfloss", "_examples", name)
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, copy, ignore=ignored, dirs_exist_ok=True)


# Both ends of every range were run on Python 3.11: the lower ends all together, and the newest
# releases, in the comments. On 3.12 and 3.13 the newest were installed and the tests of the data
# sets run. Widen a range only together with a run.
INSTALL_REQUIRES = [
    "tensorflow>=2.21,<2.22",  # 2.21.0; it has wheels for Python 3.11 to 3.13, not for 3.14
    "keras>=3.14,<3.16",  # 3.15.1; 3.13 still summed activity regularizers over the batch
    "tensorflow-datasets>=4.9.10",  # 4.9.10
    # tensorflow-datasets needs this for builders that live in a package, and doesn't declare it.
    "importlib_resources>=6",  # 7.1.0
    "tensorboard>=2.20",  # 2.21.0; no longer comes with TensorFlow
    "numpy>=1.26",  # 2.4.6, and 2.5.5 on 3.13
    "absl-py>=2.1",  # 2.5.1
    "etils[epath]>=1.10",  # 1.15.0
    "ml_collections>=1.1",  # 1.1.0
    "rich>=13",  # 15.0.0
]
DETECTION = [
    "pycocotools>=2.0.8",  # 2.0.11; average precision
    "pillow>=10",  # 13.0.0; boxes in pictures
]
EXAMPLES = [
    *DETECTION,
    "scikit-learn>=1.5",  # 1.9.1; the digits come in its wheel
    "palmerpenguins>=0.1.4",  # 0.1.6; so do the penguins
]
PLOT = ["matplotlib>=3.9"]  # 3.11.2; `tfloss compare`
TEST = [
    *EXAMPLES,
    *PLOT,
    "pytest>=8",  # 9.2.0
    "pytest-xdist>=3.6.1",  # 3.8.0
    "tf2onnx>=1.17",  # 1.17.0
    "onnxruntime>=1.20",  # 1.32.0
]
DOCS = [
    *PLOT,
    "mkdocs-material>=9.8,<10",  # 9.8.2, with MkDocs 1.6.1
    "mkdocstrings[python]>=1.0,<2",  # 1.0.8
]
# Only the newest releases were run with these.
PICTURES = [  # of docs/pictures.py
    *DETECTION,
    *PLOT,
    "selenium>=4.51",  # 4.51.0
    "pyte>=0.8.2",  # 0.8.2
    "nbconvert>=7.17",  # 7.17.2
    "ipykernel>=7.4",  # 7.4.0
    "scikit-learn>=1.5",
    "palmerpenguins>=0.1.4",
]
MLFLOW = ["mlflow>=3.17"]  # 3.17.2
WANDB = ["wandb>=0.31"]  # 0.31.0
DEV = [
    *TEST,
    *DOCS,
    # Formatters and checkers change their minds between releases, so these are exact.
    "ruff==0.17.6",
    "pyright[nodejs]==1.1.414",
]

setup(
    name="tfloss",
    version=runpy.run_path(str(ROOT / "tfloss" / "version.py"))["__version__"],
    description="Train TensorFlow models that own their losses.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tfloss", "tfloss.*"]),
    package_data={"tfloss": ["py.typed"]},
    cmdclass={"build_py": BuildWithExamples},
    python_requires=">=3.11,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "detection": DETECTION,
        "examples": EXAMPLES,
        "test": TEST,
        "docs": DOCS,
        "plot": PLOT,
        "pictures": PICTURES,
        "mlflow": MLFLOW,
        "wandb": WANDB,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["tfloss=tfloss.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
