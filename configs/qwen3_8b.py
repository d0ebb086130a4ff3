"""Qwen3, 8 B parameters, on 30 T tokens: the general stage.

arXiv 2505.09388, section 3.2. Rate and batch are not published: they are those
of Llama 2. 256 v5p, fully sharded. Not run on hardware.

    python -m train.pretrain --config=configs/qwen3_8b.py:source=web/ \\
      --workdir=runs/qwen3_8b

Arguments: `source` is a folder of text or JSONL, `steps` how many updates.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(arg, source="web/", steps=7_152_557)  # 30 T tokens
  config = common.base()
  config.model = common.preset("llama", "qwen3_8b", remat="full")
  config.tokenizer = dict(
    kind="tokenizers_bpe", vocab_size=151_643, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-6)
  config.batch = dict(size=1024, length=4096)  # 4 M tokens
  config.optim = dict(name="adamw", lr=3e-4, weight_decay=0.1, clip=1.0)
  config.schedule = dict(name="cosine", warmup_steps=2000, floor=0.1)
  config.mesh = dict(data=1, fsdp=-1, rules="fsdp")
  config.train = dict(steps=arg.steps, n_micro=2, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=1000)
  return config
