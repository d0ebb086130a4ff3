"""F5: peft loads what we write, and says the same; its golden numbers hold."""

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.parity import cases
from convert import peft
from models import checkpoint
from tests.convert.test_hf import save
from tests.convert.test_peft import STORED, ask

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
import peft as theirs  # noqa: E402

from benchmarks.parity import adapters, golden, hf  # noqa: E402

pytestmark = pytest.mark.parity


def test_the_golden_numbers_are_theirs():
  stored, made = dict(np.load(STORED)), adapters.make()
  texts = {key for key in made if key.endswith("/config")}
  assert all(stored[key] == made[key] for key in texts)
  assert not golden.differences(
    *({k: x for k, x in a.items() if k not in texts} for a in (stored, made))
  )


@pytest.mark.parametrize("kind", adapters.ADAPTERS)
def test_peft_loads_what_we_write(kind, tmp_path):
  """In by its own files, moved, out again: logits within 1e-5."""
  case, _ = adapters.ADAPTERS[kind]
  base, _ = save(tmp_path / "base", cases.CASES[case])
  first, ours, back = (epath.Path(tmp_path) / n for n in ("a", "b", "c"))
  adapters.build(kind).save_pretrained(str(first), save_embedding_layers=False)
  peft.take(first, base, ours)
  peft.give(ours, back)
  model = theirs.PeftModel.from_pretrained(
    hf.build(cases.CASES[case]), str(back)
  ).eval()
  expected = adapters.logits(model, case)
  got = jax.device_get(ask(*checkpoint.load(ours)))
  np.testing.assert_allclose(got, expected, atol=1e-5 * abs(expected).max())
