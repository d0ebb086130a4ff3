"""What is frozen: the step, the optimizer and the checkpoints of its kind.

F3, C5, C11.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp
from jax.extend import core as jexc

from configs import door
from models import arrays, base, checkpoint, manifest
from models.layers import stack
from train import finetune, pretrain
from train.core import conflicts, parts
from train.objectives import lm

SECTIONS = {**pretrain.SECTIONS, "base": parts.Config}
LAST = ("stack/layers/*/mlp/*", "norm/*")


def _digests(path) -> dict[str, bytes]:
  return {name: x.tobytes() for name, x in arrays.read(path / "params")}


@pytest.fixture(scope="module")
def begun(page, tmp_path_factory):
  """A base of four steps, and the settings of a run that goes on from it."""
  workdir = epath.Path(tmp_path_factory.mktemp("base"))
  pretrain.main(page(train={"steps": 4}), workdir)
  path = checkpoint.find(workdir)

  def settings(trained=None, **changes):
    made = page(**changes).to_dict()
    made["model"].pop("name"), made.pop("tokenizer")
    made = {
      **made,
      "model": {},
      "base": {"path": str(workdir), "trained": trained},
    }
    return door.build(*_filled(made))

  return path, settings


def _filled(page):
  filled, overrides = base.fill(page, [])
  return filled, SECTIONS, overrides


@pytest.fixture(scope="module")
def finetuned(begun, tmp_path_factory):
  """Six steps of some paths in one go, a checkpoint every two."""
  _, settings = begun
  config = settings(LAST, checkpoint={"every_steps": 2}, optim={"ema": 0.9})
  workdir = epath.Path(tmp_path_factory.mktemp("finetuned"))
  finetune.main(config, workdir)
  return config, workdir


def test_the_base_fills_the_page(begun):
  path, settings = begun
  config = settings()
  assert config.base.path == str(path)
  assert config.model == checkpoint.config(path)
  assert (config.tokenizer.kind, config.tokenizer.path) == ("saved", str(path))


def test_what_the_page_says_of_the_model_goes_before(begun):
  path, _ = begun
  page = {"model": {"dtype": "bfloat16"}, "base": {"path": "elsewhere"}}
  filled, rest = base.fill(page, ["optim.lr=1", f"base.path={path}"])
  assert filled["model"]["dtype"] == "bfloat16"
  assert filled["model"]["d_ff"] == 64
  assert rest == ["optim.lr=1"]


def test_frozen_leaves_are_the_bases_to_the_bit(begun, finetuned):
  path, _ = begun
  was, now = _digests(path), _digests(checkpoint.find(finetuned[1]))
  assert was.keys() == now.keys()  # a whole checkpoint
  changed = {name for name in was if was[name] != now[name]}
  trained = {n for n in was if "/mlp/" in n or n.startswith("norm/")}
  assert changed == trained


def test_the_optimizer_keeps_nothing_of_what_is_frozen(finetuned):
  state = arrays.describe(checkpoint.find(finetuned[1]) / "state")
  kept = [name for name in state if "opt_state" in name and state[name].shape]
  assert kept and all("mlp" in n or n.endswith("norm/scale") for n in kept)
  assert not [name for name in kept if "attention" in name]


def test_the_card_names_the_base_by_its_manifest(begun, finetuned):
  path, _ = begun
  card = json.loads((checkpoint.find(finetuned[1]) / "card.json").read_text())
  assert card["parent"] == str(path)
  assert card["parent_sha256"] == manifest.digest(path)


def test_resumed_equals_never_interrupted_without_the_base(
  begun, finetuned, tmp_path
):
  """From the second checkpoint, though the base is gone."""
  config, expected = finetuned
  workdir = epath.Path(tmp_path)
  _copy(expected / "checkpoints" / "4", workdir / "checkpoints" / "4")
  gone = dataclasses.replace(config.base, path=f"{tmp_path}/gone")
  sections = {**config.sections, "base": gone}
  finetune.main(dataclasses.replace(config, sections=sections), workdir)
  ours, theirs = (checkpoint.find(w) for w in (workdir, expected))
  assert _digests(ours) == _digests(theirs)
  for name, x in arrays.read(ours / "state"):
    _, same = next(arrays.read(theirs / "state", [name]))
    np.testing.assert_array_equal(x, same)
  card = json.loads((ours / "card.json").read_text())
  assert card["parent"] == config.base.path


def test_a_changed_base_is_refused(begun, finetuned, tmp_path):
  path, _ = begun
  other = epath.Path(tmp_path) / "other"
  _copy(path, other)
  (other / "card.json").write_text("{}")
  (other / manifest.NAME).unlink()
  manifest.seal(other)
  with pytest.raises(ValueError, match="began from .* with the manifest"):
    base.parent(str(other), finetuned[1])


def test_no_gradient_of_a_frozen_head_is_computed(begun, ragged_batch):
  """The products with the vocabulary: one forward, one back, not two."""
  _, settings = begun
  n_words = settings().model.vocab_size

  def n_products(config):
    split = parts.make(config)
    objective = lm.make(config.objective, config.model)
    trained, frozen = split.shapes, split.frozen_shapes
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, ragged_batch))

    def loss(params, frozen, batch):
      whole = split.join(params, frozen, None)
      return objective(whole, batch, jax.random.key(0))[0]

    jaxpr = jax.make_jaxpr(jax.grad(loss))(trained, frozen, batch)
    return _count(jaxpr.jaxpr, n_words)

  assert n_products(settings()) == 3
  assert n_products(settings(LAST)) == 2


def _count(jaxpr, size) -> int:
  """Products one of whose arrays is as wide as the vocabulary."""
  n = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      n += any(size in v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    n += sum(_count(inner, size) for inner in jexc.jaxprs_in_params(eqn.params))
  return n


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"mesh": {"stage": 2, "data": 4}}, "mesh.stage=2 would compute"),
    ({"train": {"diloco": {"round_steps": 2}}}, "train.diloco would copy"),
    ({"optim": {"mup_width": 8}}, "optim.mup_width=8 scales"),
  ],
)
def test_what_does_not_go_with_frozen_parts_is_told(begun, changes, told):
  _, settings = begun
  with pytest.raises(ValueError, match=told):
    conflicts.check(settings(LAST, **changes))


def test_a_pattern_that_matches_nothing_is_told(begun):
  _, settings = begun
  with pytest.raises(ValueError, match="base.trained: 'attn' matches no param"):
    conflicts.check(settings(("attn",)))


def test_the_last_layer_alone_where_layers_are_kept_apart(begun, tmp_path):
  """A base of stacked layers is taken apart; the others keep their bits."""
  path, settings = begun
  config = settings(("stack/layer_1/*",), model={"scanned": False})
  sections = {
    **config.sections,
    "model": dataclasses.replace(config.model, scanned=False),
  }
  config = dataclasses.replace(config, sections=sections)
  finetune.main(config, epath.Path(tmp_path))
  _, params = checkpoint.load(epath.Path(tmp_path))
  _, was = checkpoint.load(path)
  was = {**was, "stack": stack.unstack(was["stack"])}
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, was)
  flat = arrays.by_path(changed)
  assert {n for n in flat if flat[n]} == {n for n in flat if "layer_1" in n}


def _copy(src, dst):
  dst.mkdir(parents=True)
  for path in src.iterdir():
    if path.is_dir():
      _copy(path, dst / path.name)
    else:
      (dst / path.name).write_bytes(path.read_bytes())
