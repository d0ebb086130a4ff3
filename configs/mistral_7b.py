"""Mistral, 7 B parameters, with a window of 4,096 tokens.

arXiv 2310.06825. Its training is not published: rate and batch are those of
Llama 2. 64 v5p, fully sharded. Not run on hardware.

    python -m train.pretrain --config=configs/mistral_7b.py:source=web/ \\
      --workdir=runs/mistral_7b

Arguments: `source` is a folder of text or JSONL, `steps` how many updates.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(arg, source="web/", steps=238_418)  # 1 T tokens
  config = common.base()
  config.model = common.preset("llama", "mistral_7b", remat="full")
  config.tokenizer = dict(
    kind="sentencepiece_bpe", vocab_size=32_000, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-6)
  config.batch = dict(size=512, length=8192)  # 4 M tokens
  config.optim = dict(name="adamw", lr=3e-4, weight_decay=0.1, clip=1.0)
  config.schedule = dict(name="cosine", warmup_steps=2000, floor=0.1)
  config.mesh = dict(data=1, fsdp=-1, rules="fsdp")
  config.train = dict(steps=arg.steps, n_micro=8, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=1000)
  return config
