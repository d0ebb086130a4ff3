"""LoRA: SmolLM2 learns to answer with a function, and with nothing else.

    python -m data.functions --file=runs/functions.jsonl \\
      --heldout=runs/functions_heldout.jsonl
    python -m train.lora --config=configs/lora_smollm2.py \\
      --workdir=runs/smollm2_lora

`make smollm2-lora` is the whole way, with what it wrote before and after. Made
for a laptop: 3.5 minutes on 2 CPU cores (330 s of processor time), of which the
adapter takes 101 s and 4.7 GB. Of 24 functions of modules
that it never saw, 22 answers are the function asked for and nothing else, none
before; their loss falls from 1.90 to 1.41 (configs/tasks/functions.py).
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
