"""Llama 2, 7 B parameters, on 2 T tokens.

arXiv 2307.09288, section 2.2.
256 v5e, fully sharded. Not run on hardware.

    python -m train.pretrain --config=configs/llama2_7b.py:source=web/ \\
      --workdir=runs/llama2_7b

Arguments: `source` is a folder of text or JSONL, `steps` how many updates.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(arg, source="web/", steps=476_837)  # 2 T tokens
  config = common.base()
  config.model = common.preset("llama", "llama2_7b", remat="full")
  config.tokenizer = dict(
    kind="sentencepiece_bpe", vocab_size=32_000, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-6)
  config.batch = dict(size=1024, length=4096)  # 4 M tokens
  config.objective = dict(chunk_tokens=1024)
  config.optim = dict(
    name="adamw", lr=3e-4, eps=1e-5, weight_decay=0.1, clip=1.0
  )
  config.schedule = dict(name="cosine", warmup_steps=2000, floor=0.1)
  config.mesh = dict(data=1, fsdp=-1, rules="fsdp")
  config.train = dict(steps=arg.steps, n_micro=4, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=1000)
  return config
