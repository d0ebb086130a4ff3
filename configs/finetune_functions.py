"""Instructions, on top of the quickstart: say what it does, get the function.

    python -m data.functions --file=runs/functions.jsonl
    python -m train.finetune --config=configs/finetune_functions.py \\
      --workdir=runs/finetuned

Made for a laptop, behind configs/quickstart.py: 2 CPU cores, some 5 minutes.
The base is the run of `make demo`; any other is `--config.base.path=RUN`.
Arguments: `--config=configs/finetune_functions.py:steps=50` stops earlier;
`:source=own.jsonl` has other rows of instruction, input, output.
NEFTune: 2310.05914. Stanford Alpaca: https://github.com/tatsu-lab/stanford_alpaca
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, steps=200, source="runs/functions.jsonl")
  config = common.base()
  config.base = dict(path="runs/demo")
  config.data = dict(
    sources=(arg.source,),
    formats=("instruction",),
    chat=dict(template="alpaca"),
    heldout_fraction=0.1,
  )
  config.batch = dict(size=16, length=256, packing="whole")
  config.objective = dict(neftune_alpha=5.0)
  config.optim = dict(name="adamw", lr=1e-3, weight_decay=0.01)
  config.schedule = dict(name="cosine", warmup_steps=arg.steps // 20)
  config.train = dict(
    steps=arg.steps,
    log_every_steps=10,
    eval_every_steps=50,
    stop_early=dict(metric="heldout_loss", patience=2),
  )
  config.checkpoint = dict(
    every_steps=50, keep_best=dict(metric="heldout_loss")
  )
  config.eval = dict(during=("perplexity",), final=("perplexity",))
  return config
