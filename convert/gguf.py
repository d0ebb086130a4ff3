"""Checkpoints of llama.cpp, in.

    python -m convert.gguf import --src=model.gguf --out=runs/ours

Reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K, the
tokenizer and the chat template; of Llama and its kin.

  --dtype  float32, bfloat16 or float16, of the numbers on the disk; float32 is
           what quantized ones stand for, exactly
"""

from etils import epath

from convert import bundle, catalogue, container, gguf_vocabulary, shards, verbs
from convert import tensors as tensors_lib
from convert.names import gguf
from convert.settings import Settings
from models import families


def take(
  src: epath.Path, out: epath.Path, dtype: str = "float32"
) -> families.Config:
  """Makes a checkpoint of a file.

  Args:
    src: the file.
    out: the checkpoint; must not be there.
    dtype: of the numbers on the disk.

  Returns:
    The config of the model.

  Raises:
    ValueError: something of it is not known here, missing, or damaged.
  """
  if not src.exists():
    raise ValueError(f"there is no file {src}.")
  said, listed = container.read(src)
  if "token_embd.weight" not in listed:
    raise ValueError(f"{src} has no token_embd.weight: it is no whole model.")
  config = catalogue.read(Settings(gguf.settings(said, listed), str(src)))
  there = {gguf.theirs(name): tensor for name, tensor in listed.items()}
  rows = catalogue.in_files(config)
  found = bundle.match(config, [tensors_lib.pieces(config, rows)], there)
  surplus = {name: there[name] for name in there if name not in found}
  bundle.check_surplus(
    surplus, {name: there[name] for name in found}, config.vocab_size
  )

  def turn(name, x):
    if said["general.architecture"] != "llama":
      return x
    return gguf.unpermuted(name, x, config.n_heads, config.n_kv_heads)

  source = {
    "format": "gguf",
    "model_type": said["general.architecture"],
    "files": {src.name: shards.digest(src)},
  }
  return bundle.write(
    out,
    config,
    found,
    there,
    dtype=dtype,
    tokenizer=gguf_vocabulary.read(said),
    source=source,
    turn=turn,
  )


def _import() -> None:
  src, out = (
    epath.Path(verbs.given(verbs.SRC)),
    epath.Path(verbs.given(verbs.OUT)),
  )
  config = take(src, out, verbs.DTYPE.value or "float32")
  print(f"{out}: {families.name(config)}, computing in {config.dtype}")


if __name__ == "__main__":
  verbs.run({"import": _import}, __doc__)
