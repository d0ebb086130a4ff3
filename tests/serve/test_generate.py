"""A checkpoint directory alone is enough to write text."""

import dataclasses
import io
import json
import re

import jax
import orbax.checkpoint as ocp
import pytest
from absl.testing import flagsaver
from etils import epath

from configs import door
from data import tokenizer as tokenizers
from models import checkpoint, decode, families, llama, manifest, sampling
from serve import generate

MODEL = dataclasses.replace(
  llama.PRESETS["3m"],
  vocab_size=259,
  d_model=16,
  n_layers=1,
  d_head=8,
  d_ff=16,
  max_length=64,
  dtype="float32",
)
SETTINGS = sampling.Config(max_tokens=8, temperature=0.9, seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with one checkpoint, of a model that knows nothing yet."""
  workdir = epath.Path(tmp_path_factory.mktemp("run"))
  path = workdir / "checkpoints" / "7"
  path.mkdir(parents=True)
  params = jax.jit(families.init, static_argnums=0)(MODEL, jax.random.key(0))
  ocp.PyTreeCheckpointer().save(path / "params", params)
  tokenizers.train(tokenizers.Config(kind="bytes", vocab_size=259), []).save(
    path
  )
  sections = {"model": MODEL, "generate": SETTINGS}
  config = door.Config(sections, {"model": "llama"})
  (path / "config.json").write_text(json.dumps(config.to_dict()))
  manifest.seal(path)
  return workdir


def written(run, prompts, settings=SETTINGS) -> list[str]:
  """The same by hand."""
  model, params = checkpoint.load(run)
  tokenizer = tokenizers.load(run / "checkpoints" / "7")
  ids = [[tokenizer.bos_id, *tokenizer.encode(p)] for p in prompts]
  texts = decode.generate(model, params, ids, settings, [tokenizer.eos_id])
  return [p + tokenizer.decode(t) for p, t in zip(prompts, texts, strict=True)]


@pytest.fixture
def main(run, capsys, monkeypatch):
  """Runs the entrypoint in this process."""

  def call(prompts, settings=SETTINGS, stdin=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    with flagsaver.flagsaver(prompt=prompts):
      generate.main(door.Config({"generate": settings}, {}), run)
    return capsys.readouterr()

  return call


def test_prompts_are_continued_and_shown_in_turn(run, main):
  prompts = ["def f(", "import", ""]
  out, said = main(prompts)
  assert out == "\n\n".join(written(run, prompts)) + "\n"
  assert f"reading {run}/checkpoints/7\n" in said
  rate = re.search(r"then ([0-9.]+) tokens/s", said)
  assert float(rate[1]) > 0


def test_without_a_prompt_the_standard_input_is_one(run, main):
  out, _ = main(None, stdin="two\nlines")
  assert out == written(run, ["two\nlines"])[0] + "\n"


def test_a_stop_string_ends_a_text(run, main):
  (text,) = written(run, ["a"])
  stop = text[4:6]
  out, _ = main(["a"], dataclasses.replace(SETTINGS, stop=(stop,)))
  assert out == text[: text.index(stop)] + "\n"


def test_the_first_text_comes_as_it_grows_and_the_others_after_it():
  steps = [["a", "x"], ["b", None], ["c", None], [None, None]]
  shown = list(generate.in_turn(["1", "2"], steps))
  assert shown == ["1a", "b", "c", "", "\n\n2x", "\n"]


def test_a_directory_without_a_checkpoint_is_told(tmp_path):
  with pytest.raises(ValueError, match="holds no checkpoint"):
    generate.main(door.Config({"generate": SETTINGS}, {}), epath.Path(tmp_path))
