"""Questions in a checkpoint's chat template; answers measured behind them."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import common, fields
from data import functions
from data import tokenizer as tokenizers
from data.chat import templates
from models import decode, families, sampling
from tests.train.test_likelihood import BYTES, make_subject, plain_log_p
from tests.train.test_tasks import ROOT, jsonl
from train import compare
from train.evaluators import exam, likelihood, spoken, task, texts, writing
from train.evaluators.likelihood import Request

# A template that ends answers with a control token that bytes have.
TEMPLATE = (
  "{% for m in messages %}{{ '[' + m.role[:1] + ']' + m.content }}"
  "{% if m.role == 'assistant' %}{{ eos_token + '\n' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '[a]' }}{% endif %}"
)
ROWS = [
  {"instruction": f"Write f{i}: {said}", "output": f"def f{i}():\n  {body}"}
  for i, (said, body) in enumerate([("a", "pass"), ("bc", "x"), ("def", "y")])
]


@pytest.fixture(scope="module")
def who(tiny):
  """A model of random weights, whose tokenizer has a chat template."""
  beside = {templates.OWN: TEMPLATE.encode()}
  own = tokenizers.make(BYTES.filename, BYTES.blob, beside)
  model = dataclasses.replace(tiny, vocab_size=BYTES.vocab_size)
  params = families.init(model, jax.random.key(3))
  params["embed"]["table"] *= 30
  return dataclasses.replace(make_subject(model, params), tokenizer=own)


def load(folder, **changes):
  """The page of functions, with tasks of one kind as changed."""
  rows = jsonl(folder / "rows.jsonl", ROWS)
  words = ",".join(f"{k}={v}" for k, v in {"rows": rows, **changes}.items())
  return task.load(f"{ROOT}/configs/tasks/functions.py:{words}")


def test_a_user_asks_and_the_assistant_goes_on(who):
  assert spoken.prompts(who, ["ab", "<s>"]) == [
    BYTES.encode("[u]ab[a]"),
    BYTES.encode("[u]<s>[a]"),
  ]
  (found,) = spoken.requests(who, [("ab", "xyz")])
  ids = [*BYTES.encode("[u]ab[a]xyz"), BYTES.eos_id]  # and no line end
  assert found == Request(tuple(ids), 4)


def test_what_is_too_long_is_cut_on_the_left(who):
  (found,) = spoken.requests(who, [("a" * 100, "xyz")])
  assert len(found.ids) == 65 and found.n_asked == 4
  assert found.n_cut == 100 + 6 + 4 - 65
  with pytest.raises(ValueError, match="101 tokens behind its context"):
    spoken.requests(who, [("a", "x" * 100)])


def test_a_checkpoint_without_a_template_is_told(who):
  bare = dataclasses.replace(who, tokenizer=BYTES)
  with pytest.raises(ValueError, match="has no chat template"):
    spoken.prompts(bare, ["ab"])


def test_an_answer_is_as_likely_as_its_tokens_one_by_one(who, tmp_path):
  asked = load(tmp_path, item="known")
  result, records = exam.ask(who, asked)
  total = count = size = 0
  for row, record in zip(ROWS, records, strict=True):
    answer = [*BYTES.encode(row["output"]), BYTES.eos_id]
    ids = [*BYTES.encode(f"[u]{row['instruction']}[a]"), *answer]
    log_p, _ = plain_log_p(who.model, who.params, ids)
    expected = log_p[-len(answer) :].sum()
    assert record["log_p"] == pytest.approx(expected, rel=1e-5)
    total, count = total - expected, count + len(answer)
    size += len(row["output"])
  found = {name: f["value"] for name, f in result["metrics"].items()}
  assert found["loss"] == pytest.approx(total / count, rel=1e-5)
  bits = total / np.log(2) / size
  assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_an_answer_is_measured_behind_a_plain_prompt_too(who, tmp_path):
  asked = load(tmp_path, item="known")
  config = dataclasses.replace(asked.config, spoken=False, joint="=")
  _, records = exam.ask(who, dataclasses.replace(asked, config=config))
  answer = BYTES.encode("=" + ROWS[1]["output"])
  ids = [BYTES.bos_id, *BYTES.encode(ROWS[1]["instruction"]), *answer]
  log_p, _ = plain_log_p(who.model, who.params, ids)
  expected = log_p[-len(answer) :].sum()
  assert records[1]["log_p"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured_so_is_refused(who, tmp_path):
  asked = load(tmp_path, item="known")
  first, *others = asked.items
  items = (first, dataclasses.replace(others[0], target=""), others[1])
  with pytest.raises(ValueError, match="item 1 of functions_known has no tar"):
    texts.ask(who, dataclasses.replace(asked, items=items), likelihood.at_once)
  windows = task.Windows(length=8)
  config = dataclasses.replace(asked.config, windows=windows)
  with pytest.raises(ValueError, match="cuts whole texts"):
    texts.ask(
      who, dataclasses.replace(asked, config=config), likelihood.at_once
    )
  page = common.choices("", "rows.jsonl").to_dict()
  with pytest.raises(ValueError, match="spoken=True says nothing with kind='c"):
    fields.make(task.Config, {**page, "spoken": True}, "page")


def test_answers_are_written_behind_the_template(who, tmp_path):
  asked = load(tmp_path, tokens=8)
  result, records = exam.ask(who, asked)
  settings = sampling.Config(max_tokens=8, temperature=0.0)
  for row, record in zip(ROWS, records, strict=True):
    prompt = BYTES.encode(f"[u]{row['instruction']}[a]")
    (ids,) = decode.generate(
      who.model, who.params, [prompt], settings, end_ids=BYTES.end_ids
    )
    assert record["texts"] == [BYTES.decode(ids)]
  assert result["metrics"]["exact_match_bare"]["value"] == 0


@pytest.mark.parametrize(
  "text, bare, fenced",
  [
    ("def f0():\n  return 1", 1, 1),
    ("Here it is:\n```python\ndef f0():\n  return 1\n```\nGood?", 0, 1),
    ("```\ndef f0():\n  return 1", 0, 1),  # cut before its end
    ("def f1():\n  return 1", 0, 0),  # another
    ("def f0():\n  return 1\nf0()", 0, 0),  # and more
    ("def f0(:", 0, 0),
    ("Sure!", 0, 0),
  ],
)
def test_a_function_is_read_out_of_an_answer(text, bare, fenced, tmp_path):
  asked = load(tmp_path)
  scores = writing.grade(asked, asked.items[0], [text])["scores"]
  found = scores["exact_match_bare"], scores["exact_match_fenced"]
  assert found == (bare, fenced)


def test_what_two_wrote_is_shown_side_by_side(who, tmp_path, capsys):
  asked = load(tmp_path, tokens=4)
  folders = []
  for name in "ab":
    folder = tmp_path / name
    folder.mkdir()
    result, records = exam.ask(who, asked)
    jsonl(folder / "functions.items.jsonl", records)
    jsonl(folder / "functions.json", [result])
    folders.append(str(folder))
  assert compare.main(["texts", *folders, "2"]) == 0
  said = capsys.readouterr().out
  assert said.count("--- asked") == 2 and said.count(f"--- {folders[1]}") == 2
  assert "Write f1: bc" in said and "Write f2" not in said
  with pytest.raises(ValueError, match="'0' is no number of items"):
    compare.main(["texts", *folders, "0"])


def test_what_is_held_out_shares_no_name_and_no_source():
  rows = [
    {"instruction": "Write a: 1", "output": "def a(): pass"},
    {"instruction": "Write b: 1", "output": "def b(): pass"},
    {"instruction": "Write c: 1", "output": "def x(): pass"},
  ]
  others = [
    {"instruction": "Write a: 2", "output": "def a(): ..."},
    {"instruction": "Write y: 2", "output": "def x(): pass"},
  ]
  assert functions.unseen(rows, others) == rows[1:2]
