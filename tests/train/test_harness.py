"""lm-evaluation-harness asks a checkpoint, and finds what our tasks find."""

import sys

import jax
import pytest

from benchmarks.parity import prompts
from models import families
from tests.train.test_likelihood import make_subject
from tests.train.test_tasks import load
from train.evaluators import exam, harness


@pytest.fixture(scope="module")
def who(tiny):
  model = tiny.__class__(**{**vars(tiny), "max_length": 512})
  params = families.init(model, jax.random.key(3))
  params["embed"]["table"] *= 30
  return make_subject(model, params, batch_tokens=1024)


# Theirs -> ours.
NAMES = {
  "acc,none": "acc",
  "acc_bytes,none": "acc_norm",
  "bits_per_byte,none": "bits_per_byte",
}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["piqa", "text"])
def test_lm_eval_finds_the_figures_of_our_tasks(name, who, tmp_path):
  """E1, E4: both tokenize, cut, score and count by themselves."""
  lm_eval = pytest.importorskip("lm_eval")
  from lm_eval import tasks

  prompts._write(tmp_path, name)
  manager = tasks.TaskManager(
    include_path=str(tmp_path), include_defaults=False
  )
  theirs = lm_eval.simple_evaluate(
    model=harness.make(who),
    tasks=[f"golden_{name}"],
    task_manager=manager,
    bootstrap_iters=0,
  )["results"][f"golden_{name}"]
  result, _ = exam.ask(who, load(name, "0", tmp_path))
  ours = result["metrics"]
  common = {k: v for k, v in NAMES.items() if k in theirs}
  assert common
  for key, metric in common.items():
    assert theirs[key] == pytest.approx(ours[metric]["value"], rel=1e-6)


def test_settings_of_theirs_are_ours_or_refused():
  found = harness.settings(
    {"until": "\n", "max_gen_toks": 9, "temperature": 0.0, "do_sample": False}
  )
  assert (found.stop, found.max_tokens, found.temperature) == (("\n",), 9, 0.0)
  warm = harness.settings({"do_sample": True, "temperature": 0.5})
  assert warm.temperature == 0.5
  assert harness.settings({"temperature": 0.5}).temperature == 0.0
  with pytest.raises(ValueError, match="'num_beams'.* are not known"):
    harness.settings({"num_beams": 2})


def test_lm_eval_that_is_missing_is_named(monkeypatch, who):
  monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
  with pytest.raises(ValueError, match="lm-eval is not installed"):
    harness.make(who)
