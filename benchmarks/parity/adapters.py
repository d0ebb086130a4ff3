"""Makes tests/golden/peft.npz: what `peft` and `bitsandbytes` give.

    python -m benchmarks.parity.adapters            writes it
    python -m benchmarks.parity.adapters --check    compares it with a new one
Stored are, of each kind of adapter on a tiny model, its two files as peft saves
them and the logits; and a weight in NF4 with double quantization. `make test`
then needs no torch.
"""

import json
import pathlib
import sys
import tempfile
import zlib

import bitsandbytes.functional as bnb
import numpy as np
import peft
import safetensors.numpy
import torch

from benchmarks.parity import cases, golden, hf
from tests.convert.test_peft import STORED

_EVERY = ["q_proj", "v_proj", "o_proj", "down_proj"]
ADAPTERS = {
  "lora": ("llama", peft.LoraConfig(r=3, lora_alpha=7, target_modules=_EVERY)),
  "tables": (
    "llama",
    peft.LoraConfig(
      r=2, lora_alpha=3, target_modules=["embed_tokens", "lm_head", "k_proj"]
    ),
  ),
  "rslora": (
    "llama",
    peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=_EVERY),
  ),
  "dora": (
    "llama",
    peft.LoraConfig(r=3, lora_alpha=7, use_dora=True, target_modules=_EVERY),
  ),
  "gpt2": (
    "gpt2",
    peft.LoraConfig(
      r=3, lora_alpha=7, fan_in_fan_out=True, target_modules=["c_fc", "c_proj"]
    ),
  ),
  "ia3": (
    "llama",
    peft.IA3Config(
      target_modules=["k_proj", "v_proj", "down_proj"],
      feedforward_modules=["down_proj"],
    ),
  ),
}


_OF_LLAMA = cases.CASES["llama"]
_KEPT = dict(
  token_dim=_OF_LLAMA.n_kv_heads * _OF_LLAMA.d_head,
  num_attention_heads=_OF_LLAMA.n_kv_heads,
)
BEFORE = {  # what every text begins with
  "prompt": peft.PromptTuningConfig(num_virtual_tokens=5),
  "ptuning": peft.PromptEncoderConfig(
    num_virtual_tokens=5, encoder_hidden_size=12
  ),
  "prefix": peft.PrefixTuningConfig(num_virtual_tokens=5, **_KEPT),
  "projected": peft.PrefixTuningConfig(
    num_virtual_tokens=5,
    prefix_projection=True,
    encoder_hidden_size=12,
    **_KEPT,
  ),
}


# Leaves that theirs begins with zeros, ones, or lengths of the base.
_KNOWN = ("lora_B", "lora_embedding_A", "lora_magnitude_vector", "ia3")


def build(kind: str) -> peft.PeftModel:
  """Their model with an adapter of a kind, every leaf of it moved by noise."""
  case, config = ADAPTERS.get(kind) or ("llama", BEFORE[kind])
  config.task_type = "CAUSAL_LM"
  model = peft.get_peft_model(hf.build(cases.CASES[case]), config).eval()
  for name, leaf in model.named_parameters():
    if leaf.requires_grad:
      rng = np.random.default_rng(zlib.crc32(name.encode()))
      if not any(known in name for known in _KNOWN):
        leaf.data.zero_()  # theirs is drawn in the order of a set
      leaf.data += torch.tensor(
        0.2 * rng.normal(size=leaf.shape), dtype=leaf.dtype
      )
  return model


def logits(model: torch.nn.Module, case: str) -> np.ndarray:
  """Of the two rows of `cases.batch`, each read as one text."""
  tokens = torch.tensor(cases.batch(cases.CASES[case]).tokens).long()
  with torch.no_grad():
    return model(tokens).logits.numpy()


def make() -> dict[str, np.ndarray]:
  """All that is stored, computed by the two."""
  arrays = {}
  for kind, (case, _) in ADAPTERS.items():
    model = build(kind)
    arrays[f"{kind}/logits"] = logits(model, case)
    arrays |= _files(kind, model, case)
  for kind in BEFORE:
    model = build(kind)
    n_read = cases.batch(_OF_LLAMA).tokens.shape[1]
    arrays[f"{kind}/logits"] = logits(model, "llama")[:, -n_read:]
    encoder = model.prompt_encoder["default"]
    for name, x in encoder.state_dict().items():
      arrays[f"{kind}/own/{name}"] = x.numpy()
    arrays |= _files(kind, model, "llama")
  return arrays | blocks()


def _files(
  kind: str, model: peft.PeftModel, case: str
) -> dict[str, np.ndarray]:
  """What they save of a kind: its config as text, and its tensors."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, save_embedding_layers=False)
    folder = pathlib.Path(folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    data = (folder / "adapter_model.safetensors").read_bytes()
  said["base_model_name_or_path"] = case
  said |= {k: sorted(v) for k, v in said.items() if isinstance(v, list)}
  tensors = safetensors.numpy.load(data)
  return {
    f"{kind}/config": np.array(json.dumps(said, sort_keys=True)),
    **{f"{kind}/tensors/{name}": x for name, x in tensors.items()},
  }


def blocks() -> dict[str, np.ndarray]:
  """A weight [32, 640] in NF4, with plain and with quantized scales."""
  rng = np.random.default_rng(0)
  w = np.float32(0.02 * rng.normal(size=(32, 640)))
  found = {"nf4/weight": np.float16(w)}
  w = torch.tensor(np.float32(found["nf4/weight"]))
  for name, double in (("plain", False), ("double", True)):
    packed, state = bnb.quantize_4bit(
      w, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    found[f"nf4/{name}"] = bnb.dequantize_4bit(packed, state).numpy()
    found["nf4/packed"] = packed.numpy()[:, 0]
    if double:
      found["nf4/scale_codes"] = state.absmax.numpy()
      found["nf4/scale_scales"] = state.state2.absmax.numpy()
      found["nf4/mean"] = np.float32(state.offset)
    else:
      found["nf4/scale"] = state.absmax.numpy()
  found["nf4/book"] = bnb.get_4bit_type("nf4", device="cpu").numpy()
  found["nf4/dynamic"] = bnb.create_dynamic_map().numpy()
  return found


def main() -> None:
  """Writes or checks; exit 1 when the check fails."""
  arrays = make()
  if sys.argv[1:] == ["--check"]:
    stored = dict(np.load(STORED))
    texts = {key for key in arrays if key.endswith("/config")}
    different = [key for key in texts if stored[key] != arrays[key]]
    different += golden.differences(
      *(
        {k: x for k, x in a.items() if k not in texts} for a in (stored, arrays)
      )
    )
    print(f"{len(arrays)} arrays,", *(different or ["all the same"]))
    sys.exit(bool(different))
  np.savez_compressed(STORED, **arrays)
  print(f"{STORED}: {len(arrays)} arrays, {STORED.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
