"""Labels of texts and tokens, and numbers: beside numpy, and learnt."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from configs import door
from convert import merge
from models import arrays, base, bert, checkpoint, families
from models.layers import heads
from sharding import mesh
from train import finetune, lora, pretrain
from train.core import conflicts
from train.evaluators import labels as evaluators
from train.evaluators import subject, task
from train.objectives import labels

TINY = dict(
  vocab_size=264,
  d_model=32,
  n_layers=2,
  n_heads=4,
  d_ff=64,
  max_length=64,
  dtype="float32",
)


def model_of(kinds, n_labels):
  return bert.Config(**TINY, heads=heads.Config(kinds=kinds, n_labels=n_labels))


@pytest.mark.parametrize(
  ("of", "n_labels"), [("texts", 3), ("tokens", 5), ("measure", 1)]
)
def test_the_loss_is_numpys(of, n_labels, ragged_batch):
  model = model_of(("tokens",) if of == "tokens" else ("texts",), n_labels)
  config = labels.Config(of=of)
  rng = np.random.default_rng(0)
  shape, weights = ragged_batch.tokens.shape, ragged_batch.weights
  wanted = rng.normal(size=shape).astype(np.float32)
  targets = rng.integers(0, n_labels, shape).astype(np.int32)
  if of == "measure":
    targets = wanted.view(np.int32)
  # What nobody asks for is garbage, and must not matter.
  targets = np.where(weights > 0, targets, -(1 << 22))
  batch = jax.tree.map(jnp.asarray, ragged_batch.replace(targets=targets))
  params = families.init(model, jax.random.key(0))
  loss, weight, metrics = labels.make(config, model)(params, batch, None)
  hidden, _ = families.build(model).apply(
    {"params": params}, batch.tokens, batch.positions, batch.segment_ids
  )
  scores = np.float64(families.asked(model, params, config.head, hidden))
  asked = weights > 0
  if of == "measure":
    expected = ((scores[..., 0] - wanted)[asked] ** 2).sum()
  else:
    log_z = np.log(np.exp(scores).sum(-1))
    picked = np.take_along_axis(scores, np.maximum(targets, 0)[..., None], -1)
    expected = (log_z - picked[..., 0])[asked].sum()
    hits = (scores.argmax(-1) == targets)[asked].sum()
    assert float(metrics["accuracy"][0]) == hits
  np.testing.assert_allclose(loss, expected, rtol=2e-6)
  assert float(weight) == asked.sum()


WORDS = ("good", "fine", "bad", "poor")
RECORDS = {
  "labels": [
    {"text": f"it is {w} {i}", "label": "no" if w in WORDS[2:] else "yes"}
    for i in range(60)
    for w in WORDS
  ],
  "tokens": [
    {
      "words": [WORDS[i % 4], "or", WORDS[i // 4 % 4]],
      "labels": [
        ("yes", "no")[i % 4 > 1], "yes", ("yes", "no")[i // 4 % 4 > 1],
      ],
    }
    for i in range(240)
  ],
  "measure": [
    {"text": f"it is {w} {i}", "label": 0.5 - (w in WORDS[2:])}
    for i in range(60)
    for w in WORDS
  ],
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(page, tmp_path_factory):
  """A BERT of four steps, which knows no labels."""
  workdir = epath.Path(tmp_path_factory.mktemp("bert"))
  made = page().to_dict()
  made["model"] = {"name": "bert", **TINY}
  made["objective"] = {"name": "mlm", "mask_id": 260, "chunk_tokens": 16}
  made["eval"] = {"during": (), "final": ("objective",)}
  made["train"] |= {"steps": 4}
  pretrain.main(door.build(made, pretrain.SECTIONS), workdir)
  return checkpoint.find(workdir)


@pytest.fixture(scope="module")
def decoder(page, tmp_path_factory):
  """A Llama of four steps with a head of words of its own."""
  workdir = epath.Path(tmp_path_factory.mktemp("llama"))
  pretrain.main(page(train={"steps": 4}), workdir)
  return checkpoint.find(workdir)


def config_of(page, encoder, tmp_path, of, sections=None):
  path = tmp_path / "rows.jsonl"
  form = "tokens" if of == "tokens" else "labels"
  rows = RECORDS[{"texts": "labels"}.get(of, of)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  made = page().to_dict()
  del made["tokenizer"]
  names = () if of == "measure" else ("yes", "no")
  head = "tokens" if of == "tokens" else "texts"
  n_labels = len(names) or 1
  made["model"] = {"heads": {"kinds": (head,), "n_labels": n_labels}}
  made["base"] = {"path": str(encoder)}
  made["objective"] = {"name": "labels", "of": of}
  made["data"] |= {
    "sources": (str(path),),
    "formats": (form,),
    "chat": {"labels": names},
  }
  made["batch"] |= {"packing": "whole", "length": 64}
  made["optim"] |= {"lr": 3e-3}
  made["train"] |= {"steps": 80, "eval_every_steps": 80}
  made["eval"] = {"during": ("objective",), "final": ("objective",)}
  sections = sections or finetune.SECTIONS
  if "adapter" in sections:
    made["adapter"] = {"paths": ("*/attention/[qv]", "*/mlp/*"), "rank": 8}
  return door.build(base.fill(made, [])[0], sections)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["texts", "tokens", "measure"])
def test_what_can_be_told_is_learnt(of, page, encoder, tmp_path):
  """Over 95 % of held-out texts, packed among others, with a head drawn anew."""
  config = config_of(page, encoder, tmp_path, of)
  conflicts.check(config)
  workdir = epath.Path(tmp_path) / "run"
  finetune.main(config, workdir)
  assert_learnt(workdir, of)


def assert_learnt(workdir, of):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = {k: v for line in lines for k, v in json.loads(line).items()}
  if of == "measure":
    assert found["heldout_loss"] < 0.0125  # 0.25 says nothing
  else:
    assert found["heldout_accuracy"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("of", ["texts", "measure"])
def test_a_decoder_learns_them_too(of, page, decoder, tmp_path, capsys):
  config = config_of(page, decoder, tmp_path, of)
  workdir = epath.Path(tmp_path) / "run"
  finetune.main(config, workdir)
  assert_learnt(workdir, of)
  said = capsys.readouterr().out
  assert "does not have, drawn anew: heads/texts/w" in said
  assert "are left out: head/table" in said


@pytest.mark.slow
def test_an_adapter_brings_its_heads_with_it(page, decoder, tmp_path, capsys):
  """A LoRA, resumed to the bit, asked by a task, merged; the base stays."""
  config = config_of(page, decoder, tmp_path, "texts", lora.SECTIONS)
  conflicts.check(config)
  workdir = epath.Path(tmp_path) / "run"
  train = dataclasses.replace(config.train, steps=40, eval_every_steps=40)
  kept = dataclasses.replace(config.checkpoint, every_steps=30)
  sections = {**config.sections, "train": train, "checkpoint": kept}
  config = dataclasses.replace(config, sections=sections)
  lora.main(config, workdir)
  assert_learnt(workdir, "texts")
  own = dict(arrays.read(checkpoint.find(workdir) / "params"))
  assert {n for n in own if not n.endswith(("/a", "/b"))} == {
    "heads/texts/w/whole"
  }
  again = epath.Path(tmp_path) / "again"
  shutil.copytree(workdir / "checkpoints/30", again / "checkpoints/30")
  lora.main(config, again)
  for name, x in arrays.read(checkpoint.find(again) / "params"):
    np.testing.assert_array_equal(x, own[name], err_msg=name)

  merge.merge(workdir, epath.Path(tmp_path) / "merged")
  rows = epath.Path(tmp_path) / "asked.jsonl"
  lines = [{"sentence": f"it is {w} 3", "label": int(w in WORDS[:2])}
           for w in WORDS]  # fmt: skip
  rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
  said = []
  for path in (workdir, epath.Path(tmp_path) / "merged"):
    who = subject.load(path, mesh.Config(data=1, fsdp=8))
    one = task.load(f"configs/tasks/sst2.py:rows={rows}")
    found = evaluators.ask(who, one, lambda batches, do: map(do, batches))
    said.append([record["logits"] for record in found])
    # data.chat.labels are yes and no, the task's against and for.
    assert [r["said"] for r in found] == [0, 0, 1, 1]
  np.testing.assert_allclose(*said, rtol=0, atol=1e-5)


def test_padding_and_neighbours_say_nothing_of_a_text(tiny):
  """Packed, padded on either side or in another order, a text is the same."""
  config = dataclasses.replace(
    tiny, heads=heads.Labels(kinds=("texts",), n_labels=3)
  )
  params = families.init(config, jax.random.key(0))
  text = np.arange(40, 47)

  def ask(tokens, positions, segments):
    rows = [
      jnp.asarray(x, jnp.int32)[None] for x in (tokens, positions, segments)
    ]
    hidden, _ = families.build(config).apply({"params": params}, *rows)
    return families.of_texts(config, params, hidden, *rows[1:])[0]

  places, zeros, ones = np.arange(7), np.zeros(5), np.ones(7)
  alone = ask(text, places, ones)
  assert np.abs(np.diff(alone, axis=0)).max() == 0  # each of its tokens has it
  right = ask([*text, *zeros], [*places, *zeros], [*ones, *zeros])
  left = ask([*zeros, *text], [*zeros, *places], [*zeros, *ones])
  packed = ask(
    [*(text[:5] + 9), *text], [*range(5), *places], [*(zeros + 1), *(ones + 1)]
  )
  for found in (right[0], left[5], packed[5]):
    np.testing.assert_allclose(found, alone[0], rtol=0, atol=1e-6)
  assert np.abs(packed[0] - alone[0]).max() > 1e-3
  order = np.random.default_rng(0).permutation(12)
  shuffled = [np.array(x)[order] for x in (
    [*(text[:5] + 9), *text], [*range(5), *places], [*(zeros + 1), *(ones + 1)]
  )]  # fmt: skip
  last = heads.last(jnp.asarray(packed)[None][:, order], *(
    jnp.asarray(x, jnp.int32)[None] for x in shuffled[1:]
  ))  # fmt: skip
  np.testing.assert_array_equal(last[0], packed[order])


def test_labels_that_do_not_fit_the_head_are_told(page, encoder, tmp_path):
  config = config_of(page, encoder, tmp_path, "texts")
  for section, changes, told in [
    (
      "model",
      {"heads": heads.Config(kinds=("tokens",))},
      "asks the head 'texts'",
    ),
    (
      "model",
      {"heads": heads.Config(kinds=("texts",), n_labels=3)},
      "are 2 classes",
    ),
    ("objective", {"of": "measure"}, "a number is one score"),
    ("data", {"formats": ("tokens",)}, r"data.formats=\('labels',\)"),
  ]:
    old = config.sections[section]
    new = dataclasses.replace(old, **changes)
    sections = {**config.sections, section: new}
    with pytest.raises(ValueError, match=told):
      conflicts.check(dataclasses.replace(config, sections=sections))
