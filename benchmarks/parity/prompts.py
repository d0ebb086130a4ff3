"""Makes tests/golden/prompts.json: what lm-evaluation-harness asks and counts.

    python -m benchmarks.parity.prompts            writes it
    python -m benchmarks.parity.prompts --check    compares it with a new one

Each task of its own, over a few rows that were made up here, with and without
examples. A model that draws its answers from a checksum is asked: stored are
the rows, the requests, the answers and the figures. `make test` then needs no
lm-eval (pip install -e '.[lm-eval]').
"""

import itertools
import json
import pathlib
import sys
import tempfile
import zlib
from typing import Any

STORED = pathlib.Path("tests/golden/prompts.json")
Row = dict[str, Any]


def _choices(texts: str, labels: str = "ABCD") -> Row:
  words = texts.split(",")
  return {"text": words, "label": list(labels[: len(words)])}


# More of them than rows: no two rows are alike.
_NOUNS = (
  "stone river caf\u00e9 lantern hill bread cloud violin ship wool drum".split()
)


def _science(i: int) -> Row:
  a, b, c, d = (_NOUNS[(i + k) % 11] for k in range(4))
  return {
    "question_stem": f"A {a} by the {b} is most like a",
    "question": f"Which one rolls farther, the {a} or the {b}?",
    "choices": _choices(f"{a},old {b},{c} and {d},no {d}"),
    "answerKey": "ABCD"[i % 4],
  }


def _piqa(i: int) -> Row:
  a, b = _NOUNS[i % 11], _NOUNS[(i + 3) % 11]
  return {
    "goal": f"To carry a {a}",
    "sol1": f"put it on a {b}, slowly.",
    "sol2": f"Throw the {b}.",
    "label": i % 2,
  }


def _hellaswag(i: int) -> Row:
  a, b = _NOUNS[i % 11], _NOUNS[(i + 2) % 11]
  return {
    "activity_label": "Home and Garden",
    "ctx_a": f"[header] How to mend a {a} [title] Look at it. [step] A man",
    "ctx_b": f"he takes the {b}",
    "endings": [
      f"and mends  the {a}.",
      f"[substeps] and eats the {b}.",
      "and sleeps [title] Then he wakes.",
      " and goes.",
    ],
    "label": str(i % 4),
  }


def _mmlu(i: int) -> Row:
  words = [_NOUNS[(i + k) % 11] for k in range(4)]
  question = f" What is above the {_NOUNS[(i + 5) % 11]}?\n"
  return {"question": question, "choices": words, "answer": (i * 3) % 4}


def _common(i: int) -> Row:
  words = [_NOUNS[(i + k) % 11] for k in range(5)]
  return {
    "question": f"Where would you find a {words[0]}? ",
    "choices": {"text": words, "label": list("ABCDE")},
    "answerKey": "ABCDE"[i % 5],
  }


def _boolq(i: int) -> Row:
  a, b = _NOUNS[i % 11], _NOUNS[(i + 1) % 11]
  return {
    "passage": f"The {a} lies under the {b}. It is heavy.",
    "question": f"is the {a} above the {b}",
    "label": i % 2,
  }


def _truthful(i: int) -> Row:
  a, b, c = (_NOUNS[(i + k) % 11] for k in range(3))
  many = [f"A {a}.", f"Perhaps a {a}.", f"A {b}.", f"A {c}, as all know."]
  return {
    "question": f"What falls from the sky, a {a} or a {b}?",
    "mc1_targets": {"choices": many, "labels": [1, 0, 0, 0]},
    "mc2_targets": {"choices": many, "labels": [1, 1, 0, i % 2]},
  }


def _gsm8k(i: int) -> Row:
  n = 1_200 + 7 * i
  return {
    "question": f"Ann has {n} loaves and bakes {i}. How many are there?",
    "answer": f"{n} + {i} = <<{n}+{i}={n + i}>>{n + i:,}.\n#### {n + i:,}",
  }


def _humaneval(i: int) -> Row:
  return {
    "task_id": f"HumanEval/{i}",
    "prompt": f'def add_{i}(x):\n  """Adds {i}."""\n',
    "test": f"def check(candidate):\n  assert candidate(1) == {i + 1}",
    "entry_point": f"add_{i}",
  }


def _text(i: int) -> Row:
  words = " ".join(_NOUNS[(i + k) % 11] for k in range(20 + 5 * i))
  return {"text": f"{words}.\n"}


# name -> (yaml below lm_eval/tasks, split that is asked, rows, page and its
# argument, settings that are changed, numbers of examples)
TASKS = {
  "openbookqa": (
    "openbookqa/openbookqa", "test", _science, "openbookqa", {}, (0, 2)
  ),
  "arc": ("arc/arc_easy", "test", _science, "arc", {}, (0, 3)),
  "piqa": ("piqa/piqa", "validation", _piqa, "piqa", {}, (0, 2)),
  "hellaswag": (
    "hellaswag/hellaswag", "validation", _hellaswag, "hellaswag", {}, (0, 2)
  ),
  "mmlu": (
    "mmlu/default/mmlu_anatomy",
    "test",
    _mmlu,
    "mmlu:subject=anatomy",
    {},
    (0, 5),
  ),
  "commonsenseqa": (
    "commonsense_qa/default", "validation", _common, "commonsenseqa", {}, (0, 4)
  ),
  "boolq": (
    "super_glue/boolq/default", "validation", _boolq, "boolq", {}, (0, 2)
  ),
  "truthfulqa_mc1": (
    "truthfulqa/truthfulqa_mc1", "validation", _truthful, "truthfulqa", {}, (0,)
  ),
  "truthfulqa_mc2": (
    "truthfulqa/truthfulqa_mc2",
    "validation",
    _truthful,
    "truthfulqa:targets=mc2",
    {},
    (0,),
  ),
  "gsm8k": ("gsm8k/gsm8k", "test", _gsm8k, "gsm8k", {}, (0, 5)),
  "gsm8k_cot": (
    "gsm8k/gsm8k-cot", "test", _gsm8k, "gsm8k:item=cot", {}, (0, 8)
  ),
  "humaneval": (
    "humaneval/humaneval",
    "test",
    _humaneval,
    "humaneval",
    # Its own metric is fetched from the network, and runs programs.
    {"metric_list": [{"metric": "bypass"}], "filter_list": None},
    (0,),
  ),
  "text": (
    "wikitext/wikitext",
    "test",
    _text,
    "text",
    {"doc_to_target": "{{text}}", "process_results": None},
    (0,),
  ),
}  # fmt: skip
# Their acc_norm is by characters: what is ours is their acc_bytes.
_BY_BYTES = ("openbookqa", "arc", "piqa", "hellaswag")
N_ROWS, N_SHOTS = 4, 6


def rows(name: str) -> tuple[list[Row], list[Row]]:
  """Rows that are asked, and rows that examples are drawn from."""
  make = TASKS[name][2]
  return (
    [make(i) for i in range(N_ROWS)],
    [make(i) for i in range(N_ROWS, N_ROWS + N_SHOTS)],
  )


def log_p(context: str, text: str) -> float:
  """What the model without a mind says of a continuation."""
  noise = zlib.crc32(f"{context}|{text}".encode()) % 1000 / 1000
  return -(0.5 + noise) * (1 + len(text) / 4)


_WRITTEN = itertools.cycle(
  [
    " 1,200 + 0 = 1,200.\n#### 1,200",
    " The answer is 1,208.",
    " So there are $1,216. The answer is 1216. Or 1,217?",
    "",
    " #### 12.",
  ]
)


def make() -> dict[str, Any]:
  """Requests, answers and figures of all tasks."""
  found = {}
  for name, (*_, page, _, shots) in TASKS.items():
    asked, pool = rows(name)
    found[name] = {
      "page": page,
      "rows": asked,
      "pool": pool,
      "runs": {str(n): _ask(name, n) for n in shots},
    }
  return found


def _ask(name: str, n_shots: int) -> dict[str, Any]:
  import lm_eval
  from lm_eval import tasks
  from lm_eval.api.model import LM

  kept = []

  class Recorder(LM):
    """Writes down what it is asked."""

    def loglikelihood(self, requests):
      answers = [(log_p(*r.args), False) for r in requests]
      keep(requests, [a for a, _ in answers])
      return answers

    def loglikelihood_rolling(self, requests):
      answers = [log_p("", *r.args) for r in requests]
      keep(requests, answers)
      return answers

    def generate_until(self, requests):
      answers = [next(_WRITTEN) for _ in requests]
      keep(requests, answers)
      return answers

  def keep(requests, answers):
    for request, answer in zip(requests, answers, strict=True):
      kept.append([*request.args, answer])

  with tempfile.TemporaryDirectory() as folder:
    _write(pathlib.Path(folder), name)
    manager = tasks.TaskManager(include_path=folder, include_defaults=False)
    results = lm_eval.simple_evaluate(
      model=Recorder(),
      tasks=[f"golden_{name}"],
      num_fewshot=n_shots,
      task_manager=manager,
      bootstrap_iters=0,
      confirm_run_unsafe_code=True,
    )
  figures = {
    key: value
    for key, value in results["results"][f"golden_{name}"].items()
    if isinstance(value, float) and "stderr" not in key
  }
  return {"requests": kept, "figures": figures}


def _write(folder: pathlib.Path, name: str) -> None:
  """The task's own yaml, over rows that lie here."""
  import lm_eval
  from lm_eval.tasks import _yaml_loader

  source, split, _, _, changes, _ = TASKS[name]
  path = pathlib.Path(lm_eval.__file__).parent / "tasks" / f"{source}.yaml"
  asked, pool = rows(name)
  files = {split: asked, "train": pool}
  if name == "mmlu":
    files = {split: asked, "dev": pool}
  for key, lines in files.items():
    text = "\n".join(map(json.dumps, lines))
    (folder / f"{key}.jsonl").write_text(text + "\n")
  settings = {
    "include": str(path),
    "task": f"golden_{name}",
    "dataset_path": "json",
    "dataset_name": None,
    "dataset_kwargs": {
      "data_files": {key: str(folder / f"{key}.jsonl") for key in files}
    },
    **changes,
  }
  if name in _BY_BYTES:
    measured = ("acc", "acc_norm", "acc_bytes")
    settings["metric_list"] = [{"metric": metric} for metric in measured]
  for key in ("train", "validation", "test"):
    name_of_split = "training_split" if key == "train" else f"{key}_split"
    settings[name_of_split] = key if key in files else None
  if name == "humaneval":  # including it would fetch its metric
    theirs = _yaml_loader.load_yaml(path, resolve_func=False)
    settings = {**theirs, **settings}
    del settings["include"]
  (folder / "task.yaml").write_text(json.dumps(settings))


def main() -> None:
  """Writes or checks; exit 1 when the check fails."""
  text = json.dumps(make(), ensure_ascii=False) + "\n"
  if sys.argv[1:] == ["--check"]:
    is_same = STORED.read_text() == text
    print("the same" if is_same else "another")
    sys.exit(not is_same)
  STORED.write_text(text)
  print(f"{STORED}: {len(TASKS)} tasks, {len(text):,} bytes")


if __name__ == "__main__":
  main()
