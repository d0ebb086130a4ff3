"""Word vectors of the words in the standard library's source.

    python -m train.embed --config=configs/word2vec.py --workdir=runs/words

Runs on a laptop: 2 CPU cores, 7 minutes (80 s an epoch of 1.2 M words, beside
other work).
Arguments: `--config=configs/word2vec.py:preset=cbow` or fasttext; `epochs=1`
stops earlier; `preset=glove,epochs=25`, for GloVe learns slowly. word2vec: arXiv 1310.4546. fastText: 1607.04606.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, preset="skipgram", epochs=5)
  config = common.base()
  family = "glove" if arg.preset == "glove" else "word2vec"
  config.model = common.preset(family, arg.preset)
  if arg.preset == "fasttext":
    config.model["subwords"] = dict(n_buckets=100_000)
  config.data = dict(sources=("stdlib",), max_words=20_000)
  config.train = dict(epochs=arg.epochs, lr=0.05)
  return config
