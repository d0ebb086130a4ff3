"""Pages of tasks, against what lm-evaluation-harness asked and counted.

The fixture is made by benchmarks/parity/prompts.py.
"""

import dataclasses
import json
import pathlib
import re

import pytest

from configs import door, fields
from train.evaluators import exam, metrics, options, task, writing

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "configs" / "tasks").glob("[a-z]*.py"))
GOLDEN = json.loads((ROOT / "tests" / "golden" / "prompts.json").read_text())
RUNS = [
  pytest.param(name, n, id=f"{name}-{n}")
  for name, found in GOLDEN.items()
  for n in found["runs"]
]
# Ours -> theirs.
NAMES = {
  "acc": "acc",
  "acc_norm": "acc_bytes",
  "mass": "acc",
  "exact_match_strict": "exact_match,strict-match",
  "exact_match_strict_cot": "exact_match,strict-match",
  "exact_match_flexible": "exact_match,flexible-extract",
}


def jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def load(name, n_shots, folder):
  """The task of a golden run; the pool is read where examples are asked."""
  golden = GOLDEN[name]
  page, _, arg = golden["page"].partition(":")
  rows = jsonl(folder / "rows.jsonl", golden["rows"])
  pool = jsonl(folder / "pool.jsonl", golden["pool"])
  words = [f"rows={rows}", *filter(None, [arg])]
  source = (ROOT / f"configs/tasks/{page}.py").read_text()
  if "n=" in source or "common.choices(" in source:  # takes examples
    is_own = arg == "item=cot"  # has the examples that are asked with
    has_pool = int(n_shots) > 0 and not is_own
    words += [f"n={n_shots}"] + [f"shots={pool}"] * has_pool
  return task.load(f"{ROOT}/configs/tasks/{page}.py:{','.join(words)}")


@pytest.mark.parametrize("name, n_shots", RUNS)
def test_prompts_are_those_of_lm_eval(name, n_shots, tmp_path):
  """E1: byte for byte, with and without examples."""
  asked = load(name, n_shots, tmp_path)
  theirs = GOLDEN[name]["runs"][n_shots]["requests"]
  if asked.config.kind == "choice":
    ours = [
      [prompt, asked.config.joint + option]
      for prompt, item in zip(asked.prompts, asked.items, strict=True)
      for option in item.options
    ]
    assert ours == [request[:2] for request in theirs]
  elif asked.config.kind == "text":
    assert list(asked.prompts) == [request[0] for request in theirs]
  else:
    assert list(asked.prompts) == [request[0] for request in theirs]
    stops = {tuple(request[1]["until"]) for request in theirs}
    assert stops == {asked.config.writing.stop}


# HumanEval's answers are programs, which tests/train/test_writing.py runs.
@pytest.mark.parametrize(
  "name, n_shots", [run for run in RUNS if run.values[0] != "humaneval"]
)
def test_figures_are_those_of_lm_eval(name, n_shots, tmp_path):
  """E3: of the same answers, whatever they are."""
  asked = load(name, n_shots, tmp_path)
  run = GOLDEN[name]["runs"][n_shots]
  answers = iter([request[-1] for request in run["requests"]])
  if asked.config.kind == "choice":
    records = [
      options.grade(item, [next(answers) for _ in item.options])
      for item in asked.items
    ]
  elif asked.config.kind == "writing":
    records = [
      writing.grade(asked, item, [next(answers)]) for item in asked.items
    ]
  else:
    assert asked.config.kind == "text"
    records = [
      {
        "log_p": next(answers),
        "n_bytes": len(text.encode()),
        # lm-eval counts the empty word behind the last newline, too.
        "n_words": len(re.split(r"\s+", text)),
        "n_tokens": 1,
        "scores": {},
      }
      for text in asked.prompts
    ]
  found = metrics.figures(asked.config.metrics, records)
  theirs = {
    key.removesuffix(",none"): value for key, value in run["figures"].items()
  }
  theirs.pop("acc_norm", None)  # by characters
  compared = 0
  for ours, figure in found.items():
    if (key := NAMES.get(ours, ours)) in theirs:
      assert figure.value == pytest.approx(theirs[key], rel=1e-12), ours
      compared += 1
  assert compared == len(theirs), theirs


def test_figures_of_the_fixture_are_not_all_alike():
  found = [
    value
    for golden in GOLDEN.values()
    for run in golden["runs"].values()
    for value in run["figures"].values()
  ]
  assert len({*found}) > 6 and any(0 < value < 1 for value in found)


def numbers(n_rows, **shots):
  config = task.Config(
    kind="choice", rows="-", metrics=("acc",), shots=task.Shots(**shots)
  )
  rows = [{"i": i} for i in range(n_rows)]
  return task.make("numbers", config, rows, _number), rows


def _number(row):
  return {"prompt": f"<{row['i']}>", "options": ("a", "b"), "right": (0,)}


@pytest.mark.parametrize("draw", ["random", "first"])
@pytest.mark.parametrize("n, n_shots", [(4, 3), (9, 3), (40, 5)])
def test_examples_never_hold_the_item_and_are_fixed(draw, n, n_shots):
  """E6: nor does a limit change them; another seed does."""
  asked, rows = numbers(n, n=n_shots, draw=draw)
  for i, prompt in enumerate(asked.prompts):
    *shown, own = re.findall(r"<(\d+)>", prompt)
    assert own == str(i) and own not in shown
    assert len({*shown}) == n_shots
  again, _ = numbers(n, n=n_shots, draw=draw)
  assert again.prompts == asked.prompts and again.digest == asked.digest
  limited = task.Config(
    kind="choice",
    rows="-",
    metrics=("acc",),
    limit=2,
    shots=task.Shots(n=n_shots, draw=draw),
  )
  few = task.make("numbers", limited, rows, _number)
  assert few.prompts == asked.prompts[:2]
  if draw == "random" and n == 40:
    other, _ = numbers(n, n=n_shots, seed=7)
    assert other.prompts != asked.prompts


def test_an_equal_row_of_the_pool_is_no_example(tmp_path):
  """E6: also where the examples are other rows, one of which was copied."""
  rows = [{"i": i} for i in range(5)]
  pool = jsonl(tmp_path / "pool.jsonl", [{"i": i} for i in (3, 9, 3, 8, 3, 7)])
  config = task.Config(
    kind="choice",
    rows="-",
    metrics=("acc",),
    shots=task.Shots(n=3, rows=str(pool)),
  )
  asked = task.make("numbers", config, rows, _number)
  assert re.findall(r"<(\d)>", asked.prompts[3])[:-1].count("3") == 0
  assert any("<3>" in p for i, p in enumerate(asked.prompts) if i != 3)


def test_too_few_examples_are_told():
  with pytest.raises(ValueError, match="shots.n=4, and - has 3 rows"):
    numbers(4, n=4)


def test_letters_and_texts_are_separate_tasks(tmp_path):
  """E3: under other names, and with other options."""
  path = jsonl(tmp_path / "rows.jsonl", GOLDEN["openbookqa"]["rows"])
  page = f"{ROOT}/configs/tasks/openbookqa.py:rows={path}"
  texts, letters = task.load(page), task.load(f"{page},asked=letters")
  assert texts.title == "openbookqa_texts"
  assert letters.title == "openbookqa_letters"
  assert letters.items[0].options == ("A", "B", "C", "D")
  assert letters.prompts[0] == (
    "A stone by the river is most like a\nA. stone\nB. old river\n"
    "C. caf\u00e9 and lantern\nD. no lantern\nAnswer:"
  )
  assert [i.right for i in letters.items] == [i.right for i in texts.items]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_says_how_it_is_asked(path):
  text = path.read_text()
  (command,) = re.findall(r"^    python -m train.evaluate .*$", text, re.M)
  assert f"--task=configs/tasks/{path.name}:rows=" in command
  assert re.search(r"arXiv \d{4}\.\d{5}|lm-evaluation-harness", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_asks_for_figures_that_there_are(path, monkeypatch):
  """Before its rows are read; whether or not the tools are installed."""
  monkeypatch.setattr(metrics, "_TOOLS", {})
  names, page = door.run_page(path, "", "get_task")
  config = fields.make(task.Config, page.to_dict(), path.stem)
  readings = names.get("READINGS", {})
  made = task.Task(path.stem, config, (), (), readings, "")
  exam.check(made)
  wrong = dataclasses.replace(config, metrics=("exact_match_nobody",))
  with pytest.raises(ValueError, match="'exact_match_nobody' is not known"):
    exam.check(dataclasses.replace(made, config=wrong))


def test_mistakes_are_told(tmp_path):
  rows = jsonl(tmp_path / "rows.jsonl", [{"goal": "g", "sol1": "a"}])
  page = f"{ROOT}/configs/tasks/piqa.py:rows={rows}"
  with pytest.raises(ValueError, match="row 0 .*piqa.py .*KeyError: 'sol2'"):
    task.load(page)
  with pytest.raises(ValueError, match="no .*/piqa2.py; beside it lie arc, "):
    task.load(f"{ROOT}/configs/tasks/piqa2.py")
  with pytest.raises(ValueError, match="argument row is unknown.* rows"):
    task.load(f"{ROOT}/configs/tasks/piqa.py:row=1")
  with pytest.raises(ValueError, match="asked='letters'.*kind='text'"):
    task.Config(kind="text", rows="-", metrics=("x",), asked="letters")
  with pytest.raises(ValueError, match="n_samples=3.*all would be alike"):
    task.Writing(n_samples=3)
  with pytest.raises(ValueError, match=r"right=\(2,\) names options"):
    task.Item(prompt="", options=("a", "b"), right=(2,))
