"""Our generate against transformers' generate: 110 M parameters, fp32, greedy.

    python -m benchmarks.speed.decode_cpu

Both continue the same prompts of 32 to 128 tokens by 128 tokens each, with the
same random weights and in turns; every token must agree. Prompts are read
within the time. The last line is JSON. Needs the extra `parity`.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from benchmarks.parity import hf
from convert import tensors
from models import decode, families, llama, sampling

N_NEW = 128  # tokens
TURNS = 5
CONFIG = dataclasses.replace(llama.PRESETS["110m"], dtype="float32")
GREEDY = sampling.Config(temperature=0.0, max_tokens=N_NEW)


def prompts(n_rows: int) -> list[list[int]]:
  """Texts of 32 to 128 tokens; 64 when there is one."""
  rng = np.random.default_rng(n_rows)
  lengths = np.linspace(32, 128, n_rows).astype(int) if n_rows > 1 else [64]
  return [rng.integers(3, CONFIG.vocab_size, n).tolist() for n in lengths]


def ours(params: families.Params) -> Callable:
  """Our generate."""
  config, params = decode.unrolled(CONFIG, params)
  return lambda texts: decode.generate(config, params, texts, GREEDY)


def theirs(params: families.Params) -> Callable:
  """Their generate with the same weights; prompts are padded on the left."""
  model = transformers.AutoModelForCausalLM.from_config(hf.their_config(CONFIG))
  weights = tensors.to_theirs(CONFIG, params)
  model.load_state_dict(
    {name: torch.tensor(x) for name, x in weights.items()}, strict=False
  )
  model.float().eval()

  def generate(texts):
    longest = max(map(len, texts))
    padding = [[0] * (longest - len(text)) for text in texts]
    ids = [[*p, *text] for p, text in zip(padding, texts, strict=True)]
    real = [
      [0] * len(p) + [1] * len(t) for p, t in zip(padding, texts, strict=True)
    ]
    with torch.inference_mode():
      out = model.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(real),
        do_sample=False,
        max_new_tokens=N_NEW,
        min_new_tokens=N_NEW,
        pad_token_id=0,
      )
    return out[:, longest:].tolist()

  return generate


def measure(writers: dict[str, Callable], n_rows: int) -> dict[str, float]:
  """Median tokens per second of either, after one turn to warm up.

  Raises:
    ValueError: they write different tokens.
  """
  texts = prompts(n_rows)
  written = [write(texts) for write in writers.values()]
  if written[0] != written[1]:
    raise ValueError(f"the tokens of {' and '.join(writers)} differ.")
  seconds = {name: [] for name in writers}
  for _ in range(TURNS):
    for name, write in writers.items():
      started = time.perf_counter()
      write(texts)
      seconds[name].append(time.perf_counter() - started)
  return {
    name: n_rows * N_NEW / statistics.median(taken)
    for name, taken in seconds.items()
  }


def main() -> None:
  """Measures both batch sizes."""
  params = jax.jit(families.init, static_argnums=0)(CONFIG, jax.random.key(0))
  writers = {"ours": ours(params), "transformers": theirs(params)}
  result = {"name": "decode_cpu"}
  for n_rows in (1, 8):
    speeds = measure(writers, n_rows)
    for name, speed in speeds.items():
      print(f"batch {n_rows} {name:12} {speed:7.1f} tokens/s")
      result[f"{name}_{n_rows}"] = round(speed, 1)
    ratio = speeds["ours"] / speeds["transformers"]
    result[f"ratio_{n_rows}"] = round(ratio, 3)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
