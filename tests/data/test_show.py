"""What is shown is what is packed, and nothing in it steers the terminal."""

import re

import numpy as np
import pytest

from configs import door
from data import packing, pipeline, show

STYLE = re.compile("\033\\[[0-9;]*m")


@pytest.fixture
def batch(store):
  config = pipeline.Config(size=4, length=200)
  return next(pipeline.train_batches(config, store.train, (), range(4), 0))


def shown(batch, store, colored, width=60, row=0):
  return list(show.lines(batch, row, store.tokenizer, width, colored))


def test_plain_lines_hold_the_tokens_in_their_order(batch, store):
  lines = shown(batch, store, colored=False, width=10_000)
  text = "".join(line[show.MARGIN :] for line in lines)
  cells = [cell for cell in re.split(r"\||(?<=\u23ce)", text) if cell]
  expected = []
  for token, target in zip(batch.tokens[0], batch.targets[0], strict=True):
    cell = "<s>" if token == 1 else store.tokenizer.decode([token])
    cell = show.VISIBLE.get(cell, cell) + ("</s>" if target == 2 else "")
    expected += [c for c in re.split(r"(?<=\u23ce)", cell) if c]
  assert "|" not in expected and cells == expected


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_terminal(batch, store, width):
  for colored in (False, True):
    for line in shown(batch, store, colored, width):
      assert len(STYLE.sub("", line)) < width


def test_colors_change_with_each_token_and_document(batch, store):
  lines = shown(batch, store, colored=True)
  assert all(line.endswith("\033[0m") for line in lines)
  used = set(re.findall(r"48;5;(\d+)m", "".join(lines)))
  n_segments = int(batch.segment_ids[0].max())
  hues = {str(shade) for hue in show.HUES[:n_segments] for shade in hue}
  assert n_segments > 1 and used == hues


def test_tokens_without_a_loss_are_grey(batch, store):
  batch = batch.replace(weights=np.zeros_like(batch.weights))
  used = set(re.findall(r"48;5;(\d+)m", "".join(shown(batch, store, True))))
  assert used == {str(shade) for shade in show.GREY}
  assert "|" not in "".join(shown(batch, store, False))
  assert "~" in "".join(shown(batch, store, False))


def test_the_margin_says_segment_and_position(batch, store):
  margins = [line[: show.MARGIN] for line in shown(batch, store, False)]
  places = {
    f"{s}:{p}"
    for s, p in zip(batch.segment_ids[0], batch.positions[0], strict=True)
  }
  assert margins[0].strip() == "1:0"
  assert {margin.strip() for margin in margins} <= places


def test_padding_is_not_shown(store):
  batch = packing.blank(1, 8)
  assert shown(batch, store, colored=False) == []


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x07\x00\x9b1m", "\u202eab"])
def test_text_cannot_steer_the_terminal(text, store):
  ids = store.tokenizer.encode(text)
  batch = packing.blank(1, len(ids))
  batch.tokens[0], batch.weights[0] = ids, 1
  batch.segment_ids[0] = 1
  for colored in (True, False):
    line = STYLE.sub("", "".join(shown(batch, store, colored)))
    assert not [c for c in line if ord(c) < 32 or 127 <= ord(c) < 160]
    assert "\u202e" not in line


def test_the_summary_counts(store):
  batch = packing.blank(2, 10)
  batch.segment_ids[0] = [1] * 4 + [2] * 6
  batch.weights[0, :5] = 1
  line = show.summary(pipeline.Config(size=2, length=10), [batch])
  assert "50.0 % of the places used, 25.0 % with a loss" in line
  assert "1.00 segments a row" in line


def test_the_entrypoint_prints_rows(corpus, tmp_path, capsys):
  page = {
    "data": {"sources": [str(corpus)]},
    "tokenizer": {"kind": "bytes", "vocab_size": 259},
    "batch": {"size": 3, "length": 50},
  }
  show.main(door.build(page, show.SECTIONS), show.epath.Path(tmp_path))
  said = capsys.readouterr().out
  assert said.startswith("3 rows of 50, 16 batches: 100.0 % of the places used")
  assert [f"row {i}" in said for i in range(4)] == [True] * 3 + [False]
  assert "<s>" in said and "\033" not in said
