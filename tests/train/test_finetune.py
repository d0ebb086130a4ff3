"""A base and records in, a model that answers out."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from configs import door
from data import store as stores
from data import tokenizer as tokenizers
from data.chat import encoder
from models import (
  arrays,
  base,
  checkpoint,
  decode,
  families,
  manifest,
  sampling,
)
from train import finetune, pretrain
from train.core import conflicts
from train.objectives import lm

ONE = [{"instruction": "cat?", "output": "no dog"}]
MANY = [{"instruction": f"say {i}", "output": f"it is {i}"} for i in range(60)]


def rows(folder, records):
  path = folder / "rows.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return str(path)


@pytest.fixture(scope="module")
def begun(page, tmp_path_factory):
  """A base of four steps."""
  workdir = epath.Path(tmp_path_factory.mktemp("base"))
  pretrain.main(page(train={"steps": 4}), workdir)
  return checkpoint.find(workdir)


@pytest.fixture
def settings(begun, page, tmp_path):
  """Builds the config of a run on records; keywords change sections' keys."""

  def build(records, **changes):
    made = page().to_dict() | {"model": {}, "base": {"path": str(begun)}}
    del made["tokenizer"]
    made["data"] |= {
      "sources": (rows(tmp_path, records),),
      "formats": ("instruction",),
      "chat": {"template": "zephyr"},
    }
    made["batch"] |= {"packing": "whole", "length": 64}
    for section, values in changes.items():
      old = {} if "name" in values else made.get(section, {})
      made[section] = {**old, **values}
    filled, _ = base.fill(made, [])
    return door.build(filled, finetune.SECTIONS)

  return build


def test_overfitting_one_sample_makes_the_model_stop(settings, tmp_path):
  """F8: greedily it says the answer, ends, and has its template with it."""
  config = settings(
    ONE,
    data={"heldout_fraction": 0.0},
    train={"steps": 40},
    eval={"final": ()},
  )
  workdir = epath.Path(tmp_path) / "run"
  assert finetune.main(config, workdir) == 0
  path = checkpoint.find(workdir)
  model, params = checkpoint.load(path)
  tokenizer = tokenizers.load(path)
  talk = encoder.Encoder(encoder.Config(), tokenizer)
  prompt = talk.text(
    [{"role": "user", "content": "cat?"}], add_generation_prompt=True
  ).ids
  (said,) = decode.generate(
    model,
    params,
    [prompt],
    sampling.Config(temperature=0.0, max_tokens=20),
    end_ids=tokenizer.end_ids,
  )
  assert tokenizer.decode(said) == "no dog"
  assert len(said) <= len("no dog") + 1  # EOS and nothing behind it


def test_the_best_is_kept_and_the_run_stops_early(settings, begun, tmp_path):
  """With packing, NEFTune and a metric that soon gets no better."""
  config = settings(
    MANY,
    objective={"neftune_alpha": 5.0},
    optim={"lr": 0.3},
    train={
      "steps": 40,
      "eval_every_steps": 2,
      "stop_early": {"metric": "heldout_loss", "patience": 2},
    },
    checkpoint={"every_steps": 2, "keep_best": {"metric": "heldout_loss"}},
    eval={"during": ("perplexity",)},
  )
  workdir = epath.Path(tmp_path) / "run"
  finetune.main(config, workdir)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  losses = {x["step"]: x["heldout_loss"] for x in found if "heldout_loss" in x}
  assert max(losses) < 40
  best = min(losses, key=losses.get)
  assert max(losses) == best + 4  # two evaluations in vain
  assert best in checkpoint.steps(workdir)
  card = json.loads((checkpoint.find(workdir) / "card.json").read_text())
  assert card["parent_sha256"] == manifest.digest(begun)


def test_the_rest_is_frozen_to_the_bit(settings, begun, tmp_path):
  config = settings(MANY, base={"trained": ("norm/*", "stack/*/mlp/*")})
  workdir = epath.Path(tmp_path) / "run"
  finetune.main(config, workdir)
  was = dict(arrays.read(begun / "params"))
  now = dict(arrays.read(checkpoint.find(workdir) / "params"))
  changed = {name for name in was if (was[name] != now[name]).any()}
  assert changed == {n for n in was if "/mlp/" in n or n.startswith("norm/")}


def test_old_text_is_mixed_in_at_its_share(settings, corpus, tmp_path):
  """Half of the tokens are of plain text, all of which is learnt."""
  path = rows(tmp_path, MANY)
  config = settings(
    MANY,
    data={
      "sources": (path, f"{corpus}/*.txt"),
      "formats": ("instruction", "text"),
      "weights": (0.5, 0.5),
    },
  )
  workdir = epath.Path(tmp_path) / "run"
  finetune.main(config, workdir)
  store = stores.Store(workdir / "store")
  assert [c.form for c in store.train] == ["instruction", "text"]
  assert checkpoint.steps(workdir)


def test_noise_is_uniform_and_of_training_alone(tiny, ragged_batch):
  """NEFTune: at most alpha / sqrt(T D); none where nothing is learnt."""
  from_jax = jax.tree.map(jnp.asarray, ragged_batch)
  noisy = lm.make(lm.Config(neftune_alpha=5.0, chunk_tokens=16), tiny)
  plain = lm.make(lm.Config(chunk_tokens=16), tiny)

  params = families.init(tiny, jax.random.key(0))
  losses = [f(params, from_jax, None)[0] for f in (noisy, plain)]
  assert losses[0] == losses[1]
  key = jax.random.key(1)
  assert noisy(params, from_jax, key)[0] != plain(params, from_jax, key)[0]
  with lm.noise(5.0, key):
    module = families.build(tiny)
    zero = jnp.zeros((4, 16, tiny.d_model))
    found = module.apply(
      {"params": params},
      zero,
      jnp.zeros((4, 16), jnp.int32),
      True,
      method="enter",
    )
  most = 5.0 / np.sqrt(16 * tiny.d_model)
  assert 0.98 * most < np.abs(found).max() <= most
  np.testing.assert_allclose(found.std(), most / np.sqrt(3), rtol=0.03)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"batch": {"packing": "segments"}}, "parts them at the ends of rows"),
    ({"data": {"formats": ("labels",)}}, "give objective.name=labels"),
    ({"data": {"chat": {"labels": ("a", "b")}}}, "names classes, and nothing"),
    ({"objective": {"name": "labels"}}, "asks the head 'texts'"),
  ],
)
def test_settings_that_do_not_fit_are_told(settings, changes, told):
  if "objective" in changes:
    changes = changes | {"eval": {"during": (), "final": ()}}
  with pytest.raises(ValueError, match=told):
    config = settings(MANY, **changes)
    conflicts.check(config)
