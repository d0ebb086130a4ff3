"""Trains a tokenizer on the train split and leaves tokenizer.* in the workdir.

    python -m data.train_tokenizer --config=configs/quickstart.py \\
      --workdir=runs/tokenizer --config.tokenizer.vocab_size=8192

Use it with `--config.tokenizer.kind=saved --config.tokenizer.path=WORKDIR`.
(`data.prepare` and `train.pretrain` train one themselves when asked to.)
"""

import itertools
import time

from etils import epath

from configs import door
from data import prepare, sources, tokenizer

SECTIONS = {"data": prepare.Config, "tokenizer": tokenizer.Config}
CHECK_DOCUMENTS = 100  # on which the result is judged


def main(config: door.Config, workdir: epath.Path) -> None:
  """Trains, saves, and tells how the tokenizer cuts its own corpus."""
  settled = sorted(path.name for path in workdir.glob("tokenizer.*"))
  if settled:
    raise ValueError(
      f"{workdir} already holds {settled[0]}: choose another --workdir, or"
      " remove it."
    )
  started = time.monotonic()
  trained = tokenizer.train(
    config.tokenizer,
    prepare.sample(config.data, config.tokenizer.sample_bytes),
  )
  seconds = time.monotonic() - started
  trained.save(workdir)
  texts = [
    document.text
    for source in config.data.sources
    for document in itertools.islice(
      sources.documents(source, config.data.text_key), CHECK_DOCUMENTS
    )
  ]
  encoded = trained.encode_batch(texts)
  n_lossless = sum(
    trained.decode(ids) == text
    for ids, text in zip(encoded, texts, strict=True)
  )
  n_bytes = sum(len(text.encode()) for text in texts)
  longest = trained.token_bytes.argsort(kind="stable")[::-1][:12]
  print(
    f"{workdir / trained.filename}: {trained.vocab_size} ids in {seconds:.1f} s,"
    f" fingerprint {trained.fingerprint[:12]}\n"
    f"on {len(texts)} documents: {n_bytes / sum(map(len, encoded)):.2f} bytes a"
    f" token, {n_lossless} of {len(texts)} come back as they were\n"
    "longest pieces: " + " ".join(repr(trained.decode([i])) for i in longest)
  )


if __name__ == "__main__":
  door.run(main, SECTIONS)
