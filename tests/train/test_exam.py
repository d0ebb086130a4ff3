"""A task from its page to its report; killed in the middle, and again."""

import dataclasses
import json
import os
import pathlib

import jax
import pytest
from absl.testing import flagsaver
from etils import epath

from configs import door
from models import families, manifest
from tests.train.test_likelihood import MESHES, make_subject
from train import compare, evaluate, pretrain
from train.evaluators import exam, likelihood, pairs, subject, table, task

ROOT = pathlib.Path(__file__).parent.parent.parent
ROWS = [
  {
    "goal": f"{word} the {i}",
    "sol1": "the cat " * (1 + i % 3),
    "sol2": "a dog sees",
    "label": i % 2,
  }
  for i, word in enumerate("find see hear like meet call leave".split())
]


@pytest.fixture
def spec(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return f"{ROOT}/configs/tasks/piqa.py:rows={path}"


@pytest.fixture(scope="module")
def who(tiny):
  return make_subject(tiny, families.init(tiny, jax.random.key(3)), "alone", 64)


@pytest.fixture
def checkpoint(tmp_path):
  folder = epath.Path(tmp_path) / "checkpoint"
  folder.mkdir()
  (folder / manifest.NAME).write_text("{}")
  return folder


def files(out):
  return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}


class Killed(BaseException):
  """No `except Exception` sees it."""


def kill_after(n, monkeypatch):
  whole = likelihood._padded
  left = [n]

  def padded(*args):
    if not left[0]:
      raise Killed
    left[0] -= 1
    return whole(*args)

  monkeypatch.setattr(likelihood, "_padded", padded)
  return left


def test_a_task_that_is_killed_ends_at_the_same_bytes(
  who, spec, checkpoint, tmp_path, monkeypatch
):
  """E8: killed after any batch, any number of times; nothing is asked twice."""
  asked = task.load(spec)
  whole, parts = epath.Path(tmp_path) / "whole", epath.Path(tmp_path) / "parts"
  exam.sit(who, asked, whole, checkpoint)
  names = {"piqa_texts.json", "piqa_texts.items.jsonl"}
  assert set(files(whole)) == names
  n_lives = 0
  for n in (0, 1, 2, 1, 99):
    with monkeypatch.context() as patch:
      left = kill_after(n, patch)
      try:
        exam.sit(who, asked, parts, checkpoint)
      except Killed:
        left_behind = {".piqa_texts.journal"}
        assert set(files(parts)) == left_behind
        n_lives += 1
  n_batches = len(
    subject.by_length(
      who,
      [
        len(likelihood.continuation(who, p, f" {o}").ids) - 1
        for p, i in zip(asked.prompts, asked.items, strict=True)
        for o in i.options
      ],
    )
  )
  assert n_lives == 4 and n_batches > 4
  assert 99 - left[0] == n_batches - 4
  assert files(parts) == files(whole)
  # Done is done: no batch is asked again.
  left = kill_after(0, monkeypatch)
  assert exam.sit(who, asked, parts, checkpoint)["n_items"] == len(ROWS)


def test_a_figure_that_there_is_not_is_told_ahead(
  who, spec, checkpoint, tmp_path, monkeypatch
):
  """Before anything is asked."""
  asked = task.load(spec)
  config = dataclasses.replace(asked.config, metrics=("acc", "pass_at_1"))
  asked = dataclasses.replace(asked, config=config)
  kill_after(0, monkeypatch)
  with pytest.raises(
    ValueError, match="'pass_at_1' is not known.*there are acc"
  ):
    exam.sit(who, asked, epath.Path(tmp_path) / "out", checkpoint)


def test_other_rows_or_weights_are_asked_anew(
  who, spec, checkpoint, tmp_path, monkeypatch
):
  """E8: what was kept of something else is not gone on with."""
  out = epath.Path(tmp_path) / "out"
  with monkeypatch.context() as patch:
    kill_after(2, patch)
    with pytest.raises(Killed):
      exam.sit(who, task.load(spec), out, checkpoint)
  limited = task.load(f"{spec},limit=3")
  assert limited.title == "piqa_texts"
  assert exam.sit(who, limited, out, checkpoint)["n_items"] == 3
  (checkpoint / manifest.NAME).write_text("{ }")
  kill_after(0, monkeypatch)
  with pytest.raises(Killed):
    exam.sit(who, limited, out, checkpoint)


@pytest.mark.parametrize("where", ["data", "tensor", "zigzag"])
def test_figures_are_the_same_on_every_mesh(where, who, spec):
  """E4: records of items, to 1e-6."""
  params = jax.device_get(who.params)
  other = make_subject(who.model, params, where, 512)
  asked = task.load(spec)
  (here, mine), (there, theirs) = exam.ask(who, asked), exam.ask(other, asked)
  assert len(MESHES[where][0].sizes()) == 7
  assert here == there
  for a, b in zip(mine, theirs, strict=True):
    assert a["log_p"] == pytest.approx(b["log_p"], rel=1e-6)


@pytest.fixture(scope="module")
def run(page, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("run"))
  config = page(
    train={"steps": 2},
    schedule={"warmup_steps": 0},
    checkpoint={"every_steps": 1, "keep_last": 2},
  )
  pretrain.main(config, workdir)
  return config, workdir


def measure(config, workdir, out, specs):
  with flagsaver.flagsaver((evaluate._TASK, specs), (evaluate._RESULTS, out)):
    evaluate.main(config, workdir)


def test_a_run_is_measured_and_told(run, spec, tmp_path, capsys):
  config, workdir = run
  texts = tmp_path / "texts.csv"
  texts.write_text('text\n"the cat sees the dog"\n"red, green"\n')
  text = f"{ROOT}/configs/tasks/text.py:rows={texts}"
  measure(config, workdir, "", [spec, f"{spec},asked=letters", text])
  said = capsys.readouterr().out
  assert "piqa_texts" in said and "piqa_letters" in said
  out = workdir / "evaluation"
  report = (out / "report.md").read_text()
  results = exam.read(out)
  assert list(results) == ["piqa_letters", "piqa_texts", "text"]
  for title, (result, records) in results.items():
    for name, figure in result["metrics"].items():
      assert f"| {name} | {figure['value']:.4f} |" in report
    assert f"## {title}" in report and len(records) == result["n_items"]
  assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
  nll = sum(-r["log_p"] for r in results["text"][1])
  bits = results["text"][0]["metrics"]["bits_per_byte"]["value"]
  assert bits == pytest.approx(nll / (20 + 10) / 0.6931471805599453)
  assert manifest.verify(workdir / "checkpoints" / "2") is None


def test_two_checkpoints_are_compared_on_the_same_items(
  run, spec, tmp_path, capsys
):
  config, workdir = run
  folders = [epath.Path(tmp_path) / name for name in "ab"]
  for step, out in zip((1, 2), folders, strict=True):
    measure(config, workdir / "checkpoints" / str(step), str(out), [spec])
  capsys.readouterr()
  assert compare.main(["tasks", *map(str, folders)]) == 0
  said = capsys.readouterr().out
  assert "piqa_texts" in said and "McNemar" in said
  (row,) = [r for r in pairs.rows(*folders) if r[1] == "acc_norm"]
  results = [exam.read(out)["piqa_texts"][0] for out in folders]
  values = [r["metrics"]["acc_norm"]["value"] for r in results]
  assert row[2:5] == (*values, values[1] - values[0])
  other = epath.Path(tmp_path) / "c"
  measure(config, workdir, str(other), [f"{spec},limit=3"])
  with pytest.raises(ValueError, match="piqa_texts .* not the same items"):
    pairs.rows(folders[0], other)


def test_a_checkpoint_stays_as_it_is(run, spec):
  config, workdir = run
  path = workdir / "checkpoints" / "2"
  with pytest.raises(ValueError, match="--results=DIR"):
    measure(config, path, "", [spec])
  with pytest.raises(ValueError, match="not all different"):
    measure(config, workdir, "", [spec, spec])
  with pytest.raises(ValueError, match="give a task"):
    measure(config, workdir, "somewhere", [])
  with pytest.raises(ValueError, match="holds no results"):
    exam.read(workdir)


def test_a_report_of_one_item_has_no_error(tmp_path):
  result = {
    "n_items": 1,
    "n_cut_tokens": 0,
    "task_digest": "0" * 64,
    "settings": {"rows": "-", "shots": {"n": 0, "draw": "first", "seed": 0}},
    "metrics": {"bleu": {"value": 1.0, "stderr": None, "signature": "v1"}},
  }
  table.write({"one": result}, epath.Path(tmp_path), "name")
  text = (tmp_path / "report.md").read_text()
  assert "| bleu | 1.0000 |  |" in text and "* bleu: `v1`" in text
  assert os.path.getsize(tmp_path / "report.png") > 1000


def test_sections_hold_the_size_of_a_batch(page):
  changed = page(eval={"batch_tokens": 64})
  assert changed.eval.batch_tokens == 64
  with pytest.raises(ValueError, match="batch_tokens=0"):
    page(eval={"batch_tokens": 0})
  assert door.build(changed.to_dict(), evaluate.SECTIONS).eval == changed.eval
