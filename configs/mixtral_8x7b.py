"""Mixtral, 8 experts of 7 B, two of them active.

arXiv 2401.04088. Its data, batch and schedule are not published: those of Llama
3 8B stand here. 256 v5p or others: 32 shards of 8 groups of experts. Not run on hardware.

    python -m train.pretrain --config=configs/mixtral_8x7b.py:source=web/ \\
      --workdir=runs/mixtral_8x7b

Arguments: `source` is a folder of text or JSONL, `steps` how many updates,
`chip` v5e, v5p, v6e or tpu7x: plans of all are in benchmarks/speed/PLANS.md.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(
    arg, source="web/", chip="v5p", steps=1_000_000
  )  # 4 T tokens
  n_micro = common.of_chip(arg.chip, v5e=4, v5p=1, v6e=2, tpu7x=1)
  config = common.base()
  config.model = common.preset("mixtral", "mixtral_8x7b", remat="full")
  config.model.experts = dict(capacity_factor=1.25)  # None: dropless
  config.tokenizer = dict(
    kind="sentencepiece_bpe", vocab_size=32_000, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-6)
  config.batch = dict(size=1024, length=4096)  # 4 M tokens
  config.objective = dict(chunk_tokens=1024)
  config.optim = dict(name="adamw", lr=3e-4, weight_decay=0.1, clip=1.0)
  config.schedule = dict(name="cosine", warmup_steps=8000, floor=0.01)
  config.mesh = dict(data=1, fsdp=-1, expert=8, rules="expert")
  config.train = dict(steps=arg.steps, n_micro=n_micro, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=1000)
  return config
