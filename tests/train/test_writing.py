"""Answers that are written: stops, votes, programs; beside others and alone."""

import dataclasses
import time

import jax
import pytest

from models import decode, families, sampling
from tests.train.test_likelihood import BYTES, make_subject
from train.evaluators import likelihood, sandbox, task, writing
from train.evaluators.task import Writing

PROMPTS = ["the cat", "a dog sees", "", "one two three one two", "red"]


@pytest.fixture(scope="module")
def who(tiny):
  # Large weights: greedy texts that are not one letter again and again.
  model = dataclasses.replace(tiny, vocab_size=BYTES.vocab_size)
  params = families.init(model, jax.random.key(5))
  params["embed"]["table"] *= 30
  return make_subject(model, params, batch_tokens=128)


def write(who, prompts, **how):
  return ask(who, prompts, Writing(**how))


def ask(who, prompts, how):
  ids = [who.tokenizer.prompt(prompt) for prompt in prompts]
  return writing.write(who, ids, how, likelihood.at_once)


@pytest.mark.parametrize(
  "temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_a_text_is_the_same_alone_and_beside_others(who, temperature):
  how = Writing(max_tokens=12, temperature=temperature, seed=3)
  texts, cut = ask(who, PROMPTS, how)
  assert cut == [0] * 5
  keys = sampling.keys(3, len(PROMPTS))
  settings = sampling.Config(max_tokens=12, temperature=temperature)
  for i, prompt in enumerate(PROMPTS):
    (ids,) = decode.generate(
      who.model,
      who.params,
      [BYTES.prompt(prompt)],
      settings,
      end_ids=BYTES.end_ids,
      keys=keys[i : i + 1],
    )
    assert texts[i] == BYTES.decode(ids)
  large = dataclasses.replace(who, batch_tokens=1024)
  assert ask(large, PROMPTS, how)[0] == texts
  assert len({*texts}) > 1


def test_a_text_ends_before_its_first_stop_string(who):
  (whole,), _ = write(who, ["the cat"], max_tokens=24)
  stop = whole[9:11]
  (found,), _ = write(who, ["the cat"], max_tokens=24, stop=(stop, "never"))
  assert found == whole[: whole.index(stop)]
  assert writing.until("one\ntwo#three", ("#", "\n")) == "one"
  assert writing.until("one", ("#",)) == "one"


def test_a_long_prompt_is_cut_on_the_left_and_counted(who):
  prompt = "abcdefghij" * 8
  (text,), cut = write(who, [prompt], max_tokens=8)
  assert cut == [1 + 80 - (64 - 8)]  # BOS too
  ids = BYTES.encode(prompt)[-56:]
  settings = sampling.Config(max_tokens=8, temperature=0.0)
  (alone,) = decode.generate(
    who.model, who.params, [ids], settings, end_ids=BYTES.end_ids
  )
  assert text == BYTES.decode(alone)
  with pytest.raises(ValueError, match="max_tokens=64 leaves no room"):
    write(who, ["a"], max_tokens=64)


@pytest.mark.parametrize(
  "answers, expected",
  [
    (["7", "8", "8"], "8"),
    (["7", "8", "8", "7"], "7"),  # the first met
    ([None, None, "9"], "9"),  # no answer, no vote
    ([None], None),
    (["x"], "x"),
  ],
)
def test_the_majority_decides(answers, expected):
  assert writing.vote(answers) == expected


def test_self_consistency_counts_the_vote():
  config = task.Config(
    kind="writing",
    rows="-",
    metrics=("exact_match_last",),
    writing=Writing(n_samples=3, temperature=1.0),
  )
  asked = task.make(
    "vote",
    config,
    [{}],
    lambda row: {"prompt": "q", "reference": "8"},
    {"last": lambda text: text.split()[-1] if text else None},
  )
  grade = lambda texts: writing.grade(asked, asked.items[0], texts)  # noqa: E731
  record = grade(["it is 7", "so 8", "surely 8"])
  assert record["read"] == {"last": "8"}
  assert record["scores"]["exact_match_last"] == 1
  assert grade(["7", "7", "8"])["scores"]["exact_match_last"] == 0
  assert grade(["", "", "8"])["scores"]["exact_match_last"] == 1


def program(text):
  config = task.Config(kind="program", rows="-", metrics=("pass_at_1",))
  asked = task.make(
    "program",
    config,
    [{}],
    lambda row: {
      "prompt": "def add(x):\n",
      "check": "def check(f):\n  assert f(1) == 3\ncheck(add)",
    },
  )
  record = writing.grade(asked, asked.items[0], [text, "  return 0\n"])
  return record["scores"]["pass_at_1"]


def test_programs_are_run_behind_their_prompt():
  assert program("  return x + 2\n") == 0.5
  assert program("  return x + 1\n") == 0.0
  assert program("  return x + (\n") == 0.0


@pytest.mark.parametrize(
  "text",
  [
    "exit(0)",
    "import os; os._exit(0)",
    "bytearray(3 << 30)",
    "open('big', 'wb').write(bytes(8 << 20))",
    "import os; os.environ['HOME']",
    "raise SystemExit(0)",
    "import os; [os.open('/dev/null', 0) for _ in range(99)]",
  ],
)
def test_a_program_that_leaves_or_takes_too_much_fails(text):
  assert not sandbox.passes(text)


def test_a_program_is_stopped_in_time_with_its_children(tmp_path):
  mark = tmp_path / "late"
  child = f"time.sleep(4); open({str(mark)!r}, 'x')"
  start = time.monotonic()
  text = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {'import time; ' + child!r}])\n"
    "time.sleep(60)\n"
  )
  assert not sandbox.passes(text, wall_seconds=2.0)
  assert time.monotonic() - start < 20
  time.sleep(4)
  assert not mark.exists()


def test_a_good_program_passes():
  assert sandbox.passes("import math\nassert math.gcd(12, 18) == 6")
