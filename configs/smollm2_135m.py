"""SmolLM2, 135 M parameters, on 2 T tokens.

arXiv 2502.02737; batch, rate and decay as the authors' published settings of
SmolLM 135M: a constant rate that falls over the last fifth. 64 H100, data
parallel. Not run on hardware.

    python -m train.pretrain --config=configs/smollm2_135m.py:source=web/ \\
      --workdir=runs/smollm2_135m

Arguments: `source` is a folder of text or JSONL, `steps` how many updates.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(arg, source="web/", steps=2_000_000)  # 2 T tokens
  config = common.base()
  config.model = common.preset("llama", "smollm2_135m")
  config.tokenizer = dict(
    kind="tokenizers_bpe", vocab_size=49_152, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-5)
  config.batch = dict(size=512, length=2048)  # 1 M tokens
  config.optim = dict(name="adamw", lr=3e-3, weight_decay=0.01, clip=1.0)
  config.schedule = dict(name="wsd", warmup_steps=2000, decay_fraction=0.2)
  config.mesh = dict(data=-1, rules="dp")
  config.train = dict(steps=arg.steps, eval_every_steps=5000)
  config.checkpoint = dict(every_steps=1000)
  return config
