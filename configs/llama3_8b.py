"""Llama 3, 8 B parameters, on 15 T tokens.

arXiv 2407.21783, table 3; schedule and first batch as its 405 B (section 3.4.1).
256 v5p or others, fully sharded. Not run on hardware.

    python -m train.pretrain --config=configs/llama3_8b.py:source=web/ \\
      --workdir=runs/llama3_8b

Arguments: `source` is a folder of text or JSONL, `steps` how many updates,
`chip` v5e, v5p, v6e or tpu7x: plans of all are in benchmarks/speed/PLANS.md.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(
    arg, source="web/", chip="v5p", steps=3_576_279
  )  # 15 T tokens
  n_micro = common.of_chip(arg.chip, v5e=2, v5p=1, v6e=1, tpu7x=1)
  config = common.base()
  config.model = common.preset("llama", "llama3_8b", remat="full")
  config.tokenizer = dict(
    kind="tokenizers_bpe", vocab_size=128_256, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-6)
  config.batch = dict(size=512, length=8192)  # 4 M tokens
  config.objective = dict(chunk_tokens=1024)
  config.optim = dict(name="adamw", lr=3e-4, weight_decay=0.1, clip=1.0)
  config.schedule = dict(name="cosine", warmup_steps=8000, floor=0.01)
  config.mesh = dict(data=1, fsdp=-1, rules="fsdp")
  config.train = dict(steps=arg.steps, n_micro=n_micro, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=1000)
  return config
