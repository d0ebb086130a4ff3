"""LoRA beside the model of the quickstart, on functions of the same library.

    python -m train.lora --config=configs/lora.py --workdir=runs/lora
    python -m train.evaluate --workdir=runs/lora
    python -m convert.merge --checkpoint=runs/lora --out=runs/merged

Made for a laptop: 2 CPU cores, some 3 minutes. The base is the run of `make
demo`; any other is `--config.base.path=runs/smollm2`, and QLoRA is
`--config.base.weights=nf4`. Expected: a held-out loss no higher than the base's.
Arguments: `--config=configs/lora.py:steps=50` stops earlier.
LoRA: 2106.09685; on all matrices, as in QLoRA, 2305.14314.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, steps=100)
  config = common.base()
  config.base = dict(path="runs/demo")
  config.adapter = dict(
    name="lora", paths=("*/attention/[qkvo]", "*/mlp/*"), rank=8, dropout=0.05
  )
  config.data = dict(sources=("stdlib",), heldout_fraction=0.05)
  config.batch = dict(size=8, length=256, n_interleaved=16)
  config.optim = dict(name="adamw", lr=1e-3, weight_decay=0.0)
  config.schedule = dict(name="cosine", warmup_steps=arg.steps // 20)
  config.train = dict(steps=arg.steps, log_every_steps=25)
  config.eval = dict(prompts=("def ", "class "))
  config.generate = dict(max_tokens=128, temperature=0.7, top_p=0.95)
  return config
