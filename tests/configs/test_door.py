"""Pages and overrides become dataclasses; mistakes become one plain line."""

import dataclasses
import json
import random
import string
from typing import Literal

import pytest
from etils import epath

from configs import door, fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
  theta: float = 1e4  # base of the frequencies
  factor: float | None = None  # None: not stretched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama:
  d_model: int  # width
  n_layers: int = 2  # blocks
  n_kv_heads: int = 1
  # Written above,
  # in two lines.
  rope: Rope | None = None
  kinds: tuple[str, ...] = ("global",)  # of the layers, repeated
  window: tuple[int, int] | None = None
  activation: Literal["silu", "gelu"] = "silu"
  tied: bool = True  # the head is the embedding

  def __post_init__(self):
    if self.n_layers < 1:
      raise ValueError(f"n_layers={self.n_layers} is below 1.")
    if self.d_model < 1:
      raise ValueError(f"model.d_model={self.d_model} is below 1.")


PRESETS = {
  "tiny": Llama(d_model=8, rope=Rope(theta=5e5, factor=2.0)),
  "8b": Llama(d_model=4096, n_layers=32, n_kv_heads=8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
  lr: float = 1e-3  # peak
  b2: float = 0.95
  weight_decay: float = 0.1
  clip: float | None = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
  lr: float = 0.1  # peak
  momentum: float = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  size: int = 8
  length: int = 256
  packing: str | None = None
  mixture: dict[str, float] = dataclasses.field(default_factory=dict)


SECTIONS = {
  "model": {"llama": Llama},
  "optim": {"adamw": AdamW, "sgd": SGD},
  "batch": Batch,
}
PAGE = {
  "model": {"name": "llama", "preset": "tiny", "n_layers": 3},
  "optim": {"name": "adamw"},
  "eval": {"every_steps": 10},
}


def build(*overrides, page=PAGE):
  return door.build(page, SECTIONS, overrides)


def test_a_page_names_a_preset_and_changes_it():
  config = build()
  assert config.model == dataclasses.replace(PRESETS["tiny"], n_layers=3)
  assert config.optim == AdamW()
  assert config.batch == Batch()


def test_a_nested_dataclass_is_changed_not_replaced():
  config = build("model.rope.theta=7")
  assert config.model.rope == Rope(theta=7.0, factor=2.0)
  nested = {**PAGE["model"], "rope": {"factor": 4}}
  config = build("model.rope.theta=7", page={**PAGE, "model": nested})
  assert config.model.rope == Rope(theta=7.0, factor=4.0)
  assert build("model.preset=8b", "model.rope.factor=8").model.rope == Rope(
    factor=8.0
  )


@pytest.mark.parametrize(
  "override, value",
  [
    ("optim.lr=1e-4", 1e-4),
    ("optim.lr=1", 1.0),
    ("optim.clip=none", None),
    ("optim.clip=2", 2.0),
    ("model.tied=false", False),
    ("model.kinds=local,global", ("local", "global")),
    ("model.kinds=('a','b')", ("a", "b")),
    ("model.kinds=local", ("local",)),
    ("model.kinds=", ()),
    ("model.window=3,4", (3, 4)),
    ("model.window=None", None),
    ("model.activation=gelu", "gelu"),
    ("model.rope=None", None),
    ("batch.packing=12", "12"),
    ("batch.packing=None", None),
    ("batch.packing=a=b", "a=b"),
    ("batch.mixture={'code': 1}", {"code": 1.0}),
    ("batch.mixture.code=0.5", {"code": 0.5}),
    ("model.n_layers=1_000", 1000),
  ],
)
def test_an_override_is_typed_by_its_field(override, value):
  section, field = override.partition("=")[0].split(".")[:2]
  found = getattr(getattr(build(override), section), field)
  assert found == value and type(found) is type(value)


def test_what_picks_a_class_is_read_before_the_fields_and_the_last_one_wins():
  config = build("optim.momentum=0.5", "optim.name=sgd", "optim.momentum=0")
  assert config.optim == SGD(momentum=0.0)


@pytest.mark.parametrize(
  "override, words",
  [
    ("model.n_layers=1e-3", "config.model.n_layers=1e-3: expected int."),
    ("model.n_layers=2.0", "expected int."),
    ("model.n_layers=true", "expected int."),
    ("model.tied=1", "expected bool."),
    ("model.tied=yes", "expected bool."),
    ("optim.lr=abc", "config.optim.lr=abc: expected float."),
    ("optim.lr=nan", "expected float."),
    ("optim.lr=inf", "expected float."),
    ("optim.lr=None", "expected float."),
    ("optim.clip=off", "expected float | None."),
    ("model.activation=relu", "expected silu | gelu."),
    ("model.window=1,2,3", "expected tuple[int, int] | None."),
    ("model.window=1,x", "expected tuple[int, int] | None."),
    ("model.rope=3", "expected Rope | None."),
    ("model.n_layers=0", "config.model: n_layers=0 is below 1."),
    ("model.d_model=0", "config.model.d_model=0 is below 1."),
    ("model.preset=9b", "config.model.preset=9b: choose one of tiny, 8b."),
    ("optim.name=adam", "config.optim.name=adam: choose one of adamw, sgd."),
    ("optim=3", "config.optim is a section"),
  ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(override, words):
  with pytest.raises(ValueError) as error:
    build(override)
  assert words in str(error.value)
  assert str(error.value).startswith("config.")


@pytest.mark.parametrize(
  "page, words",
  [
    ({"optim": {"name": "sgd", "lr": "1e-3"}}, "lr='1e-3': expected float."),
    ({"optim": {"name": "sgd", "lr": True}}, "lr=True: expected float."),
    ({"optim": {"lr": 1.0}}, "config.optim.name is missing: choose one of"),
    ({"optim": 3}, "config.optim=3: expected key: value pairs."),
    ({"model": {"name": "llama"}}, "config.model lacks d_model"),
    ({"batch": {"size": 4.0}}, "config.batch.size=4.0: expected int."),
    ({"batch": {"sise": 4}}, "the nearest is config.batch.size (int)."),
    (
      {"batch": {"mixture": {"a": "x"}}},
      "config.batch.mixture.a='x': expected float.",
    ),
  ],
)
def test_a_wrong_page_is_told_by_its_key(page, words):
  with pytest.raises(ValueError) as error:
    build(page={**PAGE, **page})
  assert words in str(error.value)


def test_sections_of_other_entrypoints_are_left_alone_but_not_misspelt():
  config = build("eval.every_steps=20")
  with pytest.raises(AttributeError):
    _ = config.eval
  with pytest.raises(ValueError, match="nearest is config.eval.every_steps"):
    build("eval.every_step=20")


@pytest.mark.parametrize(
  "key, meant",
  [
    ("optim.learning_rate", "optim.lr"),
    ("lr", "optim.lr"),
    ("optm.lr", "optim.lr"),
    ("model.lr", "optim.lr"),
    ("optim.wd", "optim.weight_decay"),
    ("batch_size", "batch.size"),
    ("train.batch_size", "batch.size"),
    ("model.num_layers", "model.n_layers"),
    ("model.theta", "model.rope.theta"),
    ("preset", "model.preset"),
    ("optimizer.name", "optim.name"),
  ],
)
def test_what_people_type_leads_to_the_setting_that_they_mean(key, meant):
  with pytest.raises(ValueError) as error:
    build(f"{key}=1")
  assert f"config.{key} is no setting" in str(error.value)
  assert f"the nearest is config.{meant} (" in str(error.value)


def test_a_setting_of_another_choice_is_told_as_such():
  with pytest.raises(ValueError) as error:
    build("optim.momentum=0.5")
  assert str(error.value) == (
    "config.optim.momentum is no setting of config.optim.name=adamw, "
    "but of sgd."
  )


def mutants(key, known, rng):
  """Three typos of a key: a letter dropped, doubled letters swapped, added."""
  for kind in ("drop", "swap", "add"):
    for _ in range(100):
      i = rng.randrange(len(key) - 1)
      typo = {
        "drop": key[:i] + key[i + 1 :],
        "swap": key[:i] + key[i + 1] + key[i] + key[i + 2 :],
        "add": key[:i] + rng.choice(string.ascii_lowercase) + key[i:],
      }[kind]
      if typo not in known and typo.count(".") == key.count("."):
        yield typo
        break


def share_led_back(page, sections, rng):
  """Shares of all typos refused, and refused with the right key named."""
  known = []
  for section, choice in sections.items():
    name = page.get(section, {}).get("name")
    cls = choice[name] if name else choice
    known += [f"{section}.{path}" for path in fields.paths(cls)]
  refused = named = total = 0
  for key in known:
    for typo in mutants(key, known, rng):
      total += 1
      try:
        door.build(page, sections, [f"{typo}=1"])
      except ValueError as error:
        refused += f"config.{typo} is no setting" in str(error)
        named += f"the nearest is config.{key} (" in str(error)
  assert total >= 3 * len(known) - 3
  return refused / total, named / total


def test_three_typos_of_every_key_are_refused_and_led_back():
  refused, named = share_led_back(PAGE, SECTIONS, random.Random(0))
  assert refused == 1.0
  assert named >= 0.97


def test_a_misspelt_section_of_a_page_is_told():
  with pytest.raises(ValueError, match="config.optm is no section; the near"):
    build(page={**PAGE, "optm": {"lr": 1.0}})
  with pytest.raises(ValueError, match="config.eval=3: expected key: value"):
    build(page={**PAGE, "eval": 3})


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_file_could_hold_is_no_text(text):
  with pytest.raises(ValueError, match="batch.packing="):
    build(page={**PAGE, "batch": {"packing": text}})


def test_a_resolved_config_round_trips_exactly(tmp_path):
  config = build("model.kinds=a,b", "model.window=1,2", "batch.mixture.x=0.5")
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config.to_dict(), allow_nan=False))
  again = door.load(path, SECTIONS)
  assert again == config
  assert again.model.kinds == ("a", "b") and again.model.window == (1, 2)
  assert door.differences(config, again) == {}
  assert again.to_dict()["optim"]["name"] == "adamw"


def test_a_written_config_knows_whether_it_is_whole(tmp_path):
  """Any bit that flips is seen, or changes nothing that is read."""
  path = epath.Path(tmp_path) / "config.json"
  door.write(path, build().to_dict())
  raw = path.read_bytes()
  for i in range(8 * len(raw)):
    flipped = bytearray(raw)
    flipped[i // 8] ^= 1 << i % 8
    path.write_bytes(flipped)
    try:
      assert door.load(path, SECTIONS) == build()
    except ValueError as error:
      assert "config" in str(error)


def test_a_preset_cannot_be_ignored_by_a_resolved_config():
  with pytest.raises(ValueError, match="would change nothing"):
    build("model.preset=8b", page=build().to_dict())


def test_differences_name_the_key_and_both_values():
  changed = build("optim.name=sgd", "model.rope.factor=None")
  assert door.differences(build(), changed) == {
    "model.rope.factor": (2.0, None),
    "optim.name": ("adamw", "sgd"),
    "optim.lr": (1e-3, 0.1),
    "optim.b2": (0.95, None),
    "optim.weight_decay": (0.1, None),
    "optim.clip": (1.0, None),
    "optim.momentum": (None, 0.9),
  }


def test_a_config_prints_as_one_page():
  text = str(build())
  assert "rope.factor=2.0" in text and "optim: name=adamw" in text
  assert max(map(len, text.splitlines())) <= 80


def test_only_json_is_loaded_as_data(tmp_path):
  page = tmp_path / "page.py"
  page.write_text("raise SystemExit('executed')")
  with pytest.raises(ValueError, match="only those are loaded as data"):
    door.load(page, SECTIONS)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "3", '"x"'])
def test_a_damaged_config_is_named(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(ValueError, match="config.json is no config"):
    door.load(path, SECTIONS)


@pytest.mark.parametrize(
  "body, words",
  [
    ("c.optm = dict(lr=1)", 'Did you mean "optim"'),
    ("c.optim = dict(lr=1 / 0)", "page.py:5: ZeroDivisionError"),
    ("common.parse_arg('step=3', steps=5)", "the nearest is steps"),
    ("c.optim = (", "SyntaxError"),
  ],
)
def test_a_mistake_in_a_page_is_one_line(tmp_path, body, words):
  page = tmp_path / "page.py"
  page.write_text(
    "from configs import common\n\n"
    f"def get_config(arg=''):\n  c = common.base()\n  {body}\n  return c\n"
  )
  with pytest.raises(ValueError) as error:
    door.read(page)
  assert words in str(error.value)
  assert len(str(error.value).splitlines()) == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nesterov(SGD):
  lr: float = 0.2
  momentum: float = 0.9  # of the step ahead


def test_comments_are_read_from_the_source():
  assert fields.comments(Nesterov) == {
    "lr": "peak",
    "momentum": "of the step ahead",
  }
  comments = fields.comments(Llama)
  assert comments["d_model"] == "width"
  assert comments["rope"] == "Written above, in two lines."
  assert comments["n_kv_heads"] == ""
