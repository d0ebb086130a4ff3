"""LoRA: SmolLM2 learns to answer with a function, and with nothing else.

    python -m data.functions --file=runs/functions.jsonl \\
      --heldout=runs/functions_heldout.jsonl
    python -m train.lora --config=configs/lora_smollm2.py \\
      --workdir=runs/smollm2_lora

`make smollm2-lora` is the whole way, with what it wrote before and after. Made
for a laptop: 2 CPU cores, some 5 minutes. Expected: a lower loss and more
answers that are the function and nothing else (configs/tasks/functions.py), on
functions of modules that it never saw.
Arguments: `--config=configs/lora_smollm2.py:steps=100` goes on for longer;
`source=own.jsonl` has other rows of instruction and output.
LoRA: 2106.09685; SmolLM2: 2502.02737.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, steps=30, source="runs/functions.jsonl")
  config = common.base()
  config.base = dict(path="runs/smollm2")
  config.adapter = dict(
    name="lora", paths=("*/attention/[qkvo]", "*/mlp/*"), rank=8
  )
  config.data = dict(
    sources=(arg.source,), formats=("instruction",), heldout_fraction=0.02
  )
  config.batch = dict(size=4, length=256, packing="whole")
  config.optim = dict(name="adamw", lr=1e-3, weight_decay=0.0)
  config.schedule = dict(name="cosine", warmup_steps=arg.steps // 20)
  config.train = dict(steps=arg.steps, log_every_steps=10)
  config.eval = dict(during=("perplexity",), final=("perplexity",))
  return config
