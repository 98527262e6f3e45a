"""Package metadata; README.md and WORKSPACE.md tell what is inside."""

import pathlib
import re

from setuptools import find_packages, setup

INIT = pathlib.Path(__file__).parent / "ss_gan_tf" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(), re.M).group(1)

# Both ends are tried before a release: the lowest versions named here on Python 3.10,
# the newest that exist on Python 3.13.
#
# TensorFlow is an extra, because two wheels provide the same module and requiring
# `tensorflow` would put the large one on top of `tensorflow-cpu`. A plain installation
# therefore has no TensorFlow, and `import ss_gan_tf` says which extra to add.
#
# 2.20 is the first TensorFlow that admits protobuf 6, which tensorflow-metadata
# (through tensorflow-datasets) needs.
TENSORFLOW = ">=2.20,<2.22"
HAS_CPU_WHEEL = "platform_machine in 'x86_64 AMD64' and platform_system != 'Darwin'"
CPU = [
    f"tensorflow-cpu{TENSORFLOW}; {HAS_CPU_WHEEL}",
    f"tensorflow{TENSORFLOW}; platform_system == 'Darwin'",
    f"tensorflow{TENSORFLOW}; platform_machine not in 'x86_64 AMD64'",
]
# experiments.demo: Flask brings Werkzeug, whose server it starts itself.
DEMO = ["flask>=3.1", "werkzeug>=3.1"]
TEST = [
    *DEMO,
    "dill>=0.3.8",  # tensorflow-datasets' own tests for builders
    "hypothesis>=6.115",
    "ipykernel>=6.29",  # docs/quickstart.ipynb
    "jax>=0.8; python_version >= '3.11'",  # written programs; there is none for 3.10
    "nbclient>=0.10",
    "nbformat>=5.10",
    "playwright>=1.45",  # the pages in a browser of the system's own
    "pytest>=8.3",
    "pytest-xdist>=3.6",  # make test runs two processes
]
ONNX = [
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "tf2onnx>=1.17",
]
PEERS = [*ONNX, "torch>=2.6"]

setup(
    name="ss_gan_tf",
    version=VERSION,
    description="SS-GAN: adversarial training for semantic segmentation",
    author="The ss_gan_tf authors",
    license="Apache-2.0",
    packages=find_packages(include=["ss_gan_tf*", "experiments*", "data_prep*"]),
    package_data={
        "data_prep": ["*/CITATIONS.bib", "*/README.md", "*/TAGS.txt"],
        "ss_gan_tf": ["templates/*"],
    },
    python_requires=">=3.10,<3.14",
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.5.1",  # the files behind random access to examples
        "h5py>=3.11",
        "importlib_resources>=6.4",  # tensorflow-datasets: undeclared for own builders
        "jinja2>=3.1",  # the page of experiments.report
        "keras>=3.10,<4",
        "matplotlib>=3.8",  # its curves
        "numpy>=1.26",
        "opencv-python-headless>=4.10",  # same module as opencv-python, without libGL
        "pillow>=10.4",
        "protobuf>=6.31.1",  # tensorflow-metadata: its generated code's own version
        "scipy>=1.12",  # the .mat files of SBD; nearest labelled pixels
        "tensorboard>=2.20",  # TensorFlow 2.21 no longer brings it
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "cpu": CPU,
        "gpu": [f"tensorflow[and-cuda]{TENSORFLOW}"],
        "test": TEST,
        "demo": DEMO,  # experiments.demo
        "onnx": ONNX,  # experiments.export --format=onnx
        # What experiments.benchmark compares with.
        "peers": PEERS,
        # What experiments.benchmark_programs and experiments.study_programs need; both
        # run without TensorFlow.
        "programs": ["jax>=0.8", "torch>=2.6"],
        # cityscapesscripts is the benchmark's own metric, which ours is held against.
        "dev": [*TEST, "cityscapesscripts>=2.3", "ruff==0.17.*"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
