"""DeepSeek-V3, 671 B parameters, 37 B of them active.

arXiv 2412.19437, section 4.2: its sizes, batch, schedule and weights of losses;
its data is not published. Deviations: the batch does not grow, no group of
experts is tied to a node, and an expert has a room (the paper drops no token).
1024 v5p or 512 chips of v7x: 32 shards of 32 groups of experts.
Not run on hardware.

    python -m train.pretrain --config=configs/deepseek_v3.py:source=web/ \\
      --workdir=runs/deepseek_v3

Arguments: `source` is a folder of text or JSONL, `steps` how many updates,
`chip` v5e, v5p, v6e or tpu7x: plans of all are in benchmarks/speed/PLANS.md.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(
    arg, source="web/", chip="v5p", steps=235_000
  )  # 14.8 T tokens
  n_micro = common.of_chip(arg.chip, v5e=60, v5p=5, v6e=60, tpu7x=5)
  config = common.base()
  config.model = common.preset(
    "deepseek", "deepseek_v3", remat="full", ahead=True
  )
  config.model.rope_scaling = None  # the length is only stretched afterwards
  config.model.attention = dict(mscale=0.0)
  config.model.experts = dict(capacity_factor=1.25)  # None: dropless
  config.model.max_length = 4096
  config.tokenizer = dict(
    kind="tokenizers_bpe", vocab_size=128_000, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-6)
  config.batch = dict(size=15_360, length=4096)  # 63 M tokens
  config.objective = dict(ahead_weight=0.3, chunk_tokens=1024)
  config.optim = dict(
    name="adamw", lr=2.2e-4, weight_decay=0.1, clip=1.0, bias_speed=0.001
  )
  config.schedule = dict(
    name="wsd", warmup_steps=2000, decay_fraction=0.32, floor=0.1
  )
  config.mesh = dict(data=1, fsdp=-1, expert=32, rules="expert")
  config.train = dict(steps=arg.steps, n_micro=n_micro, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=500)
  return config
