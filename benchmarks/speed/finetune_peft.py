"""The peer of finetune_cpu: peft and transformers, in a process of their own.

    python -m benchmarks.speed.finetune_peft FOLDER lora

trains the model in FOLDER, all of it (`full`) or an adapter (`lora`), whenever
a line comes in. Needs the extra `parity`.
"""

import os
import sys

import peft
import torch
import transformers

from benchmarks.speed import turns

# As adapter.paths="*/attention/[qkvo]", "*/mlp/*".
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
_TARGETS += ["gate_proj", "up_proj", "down_proj"]


def main(folder: str, kind: str) -> None:
  """Trains when asked."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  transformers.utils.logging.disable_progress_bar()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  if kind == "lora":
    adapter = peft.LoraConfig(
      r=turns.RANK, lora_alpha=16, target_modules=_TARGETS
    )
    model = peft.get_peft_model(model, adapter)
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(
    trained, lr=turns.LR, weight_decay=0.0, fused=True
  )
  ids = torch.tensor(turns.ids(model.config.vocab_size)).long()
  tokens, targets = ids[:, :-1], ids[:, 1:]

  def train() -> float:
    logits = model(input_ids=tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.flatten(0, 1).float(), targets.flatten()
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, turns.CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  turns.work(train)


if __name__ == "__main__":
  main(*sys.argv[1:])
