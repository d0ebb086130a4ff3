"""A recurrent language model, 3 M parameters, on the standard library's source.

    python -m train.pretrain --config=configs/lstm.py --workdir=runs/lstm

Runs on a laptop: 2 CPU cores, 5 minutes, of which a step takes 0.26 s. 100 steps
at lr=0.004 came to 2.47 held-out bits per byte.
Two LSTM layers on what configs/quickstart.py gives to a Llama of that size.
Arguments: `--config=configs/lstm.py:cell=gru` or elman; `steps=50` stops
earlier. Dropout on what goes up, as in arXiv 1409.2329, is `model.dropout`.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, cell="lstm", steps=600)
  config = common.base()
  config.model = common.preset("rnn", "3m", cell=arg.cell, dtype="float32")
  config.tokenizer = dict(kind="sentencepiece_bpe", vocab_size=4096)
  config.data = dict(sources=("stdlib",), heldout_fraction=0.05)
  # Files are long and the batch is small: its rows take turns among 16 files.
  config.batch = dict(size=8, length=256, n_interleaved=16)
  config.optim = dict(name="adamw", lr=0.006, weight_decay=0.1, clip=1.0)
  config.schedule = dict(name="cosine", warmup_steps=arg.steps // 20)
  config.train = dict(steps=arg.steps, log_every_steps=25)
  config.checkpoint = dict(every_steps=300)
  config.eval = dict(prompts=("def ", "class "), final=("perplexity",))
  config.generate = dict(max_tokens=128, temperature=0.7, top_p=0.95)
  return config
