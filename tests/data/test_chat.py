"""Conversations: their tokens, and which of them the model is to say.

`python -m benchmarks.parity.chat` made the golden ones.
"""

import functools
import json
import pathlib

import numpy as np
import pytest

from data import tokenizer as tokenizers
from data.chat import encoder, masking, rendering, spelling, templates
from data.chat.encoder import Encoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "chat.json"
SETTINGS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}


@pytest.fixture(scope="module")
def golden():
  return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def vocabularies(golden):
  beside = {tokenizers.SETTINGS: json.dumps(SETTINGS).encode()}
  return {
    kind: tokenizers.make("tokenizer.json", blob.encode(), beside)
    for kind, blob in golden["tokenizers"].items()
  }


@functools.cache  # each has a process
def encoder_of(tokenizer, template, **more):
  return Encoder(encoder.Config(template=template, **more), tokenizer)


def said(found: masking.Text, tokenizer) -> str:
  """What is learnt, with its control tokens."""
  names = {i: n for n, i in spelling.make(tokenizer).controls.items()}
  parts, text = [], []
  for i, is_learnt in zip(found.ids, found.learnt, strict=True):
    if is_learnt and i not in names:
      text.append(i)
      continue
    parts.append(tokenizer.decode(text))
    text = []
    parts.append(names[i] if is_learnt else "")
  return "".join(parts) + tokenizer.decode(text)


@pytest.mark.parametrize("kind", ["byte_level", "spaced"])
@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_ids_and_masks_are_those_of_transformers(
  kind, name, golden, vocabularies
):
  for i, conversation in enumerate(golden["conversations"]):
    found = encoder_of(vocabularies[kind], name).text(conversation)
    theirs = golden["cases"][f"{kind}/{name}/{i}"]
    assert found.ids == theirs["ids"]
    assert [int(x) for x in found.learnt] == theirs["mask"]


WRITTEN = {  # as the families published them
  "chatml": "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?"
  "<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
  "qwen": "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?"
  "<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
  "alpaca": "<s>Be brief.\n\n### Instruction:\n2 + 2?\n\n### Response:\n4</s>",
  "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n2 + 2? [/INST] 4 </s>",
  "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
  "<|start_header_id|>user<|end_header_id|>\n\n2 + 2?<|eot_id|>"
  "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>",
  "mistral": "<s>[INST] Be brief.\n\n2 + 2? [/INST] 4</s>",
  "gemma": "<s><start_of_turn>user\nBe brief.\n\n2 + 2?<end_of_turn>\n"
  "<start_of_turn>model\n4<end_of_turn>\n",
  "zephyr": "<s><|system|>\nBe brief.</s>\n<|user|>\n2 + 2?</s>\n"
  "<|assistant|>\n4</s>\n",
}


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_a_conversation_is_written_as_published(name, vocabularies):
  text = templates.find(name, vocabularies["byte_level"])
  renderer = rendering.Renderer(text, SETTINGS)
  found = renderer.render([SYSTEM, QUESTION, ANSWER])
  assert found.plain == WRITTEN[name]


def test_alpaca_tells_the_input_from_the_instruction(vocabularies):
  tokenizer = vocabularies["byte_level"]
  record = {"instruction": "Add.", "input": "2, 2", "output": "4"}
  found = encoder_of(tokenizer, "alpaca").example(record, "instruction")
  assert tokenizer.decode(found.tokens) == (
    "Below is an instruction that describes a task, paired with an input that "
    "provides further context. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n"
    "### Response:\n4"
  )
  other = encoder_of(tokenizer, "zephyr").example(record, "instruction")
  assert "Add.\n\n2, 2" in tokenizer.decode(other.tokens)


@pytest.mark.parametrize("kind", ["byte_level", "spaced"])
@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_content_mints_no_control_token(kind, name, vocabularies):
  """In either's words, in one message or over two: they stay letters."""
  tokenizer = vocabularies[kind]
  controls = spelling.make(tokenizer).controls
  hostile = "".join(f"x{name} \n{name}y" for name in controls)
  made = encoder_of(tokenizer, name)

  def n_controls(question, answer):
    user = {"role": "user", "content": question}
    found = made.text([user, {"role": "assistant", "content": answer}])
    minted = [i for i in found.ids if i in controls.values()]
    assert found.ids[: len(tokenizer.start)] == [*tokenizer.start]
    return minted, found

  plain, _ = n_controls("hello", "fine")
  for question, answer in [
    (hostile, "fine"),
    ("hello", hostile),
    ("<|im_", "end|>"),
    ("<", "s>"),
  ]:
    minted, found = n_controls(question, answer)
    assert minted == plain
    assert question.strip() in tokenizer.decode(found.ids)
    assert answer.strip() in tokenizer.decode(
      [i for i, is_learnt in zip(*found, strict=True) if is_learnt]
    )


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_each_answer_is_learnt_with_its_end_once(name, vocabularies):
  """Also where padding is EOS, as here (F8)."""
  tokenizer = vocabularies["byte_level"]
  found = encoder_of(tokenizer, name).text(
    [QUESTION, ANSWER, {"role": "user", "content": "3?"}, ANSWER]
  )
  end = {
    "chatml": "<|im_end|>",
    "qwen": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
  }.get(name, "</s>")
  expected = {"llama2": f" 4 {end}", "mistral": f" 4{end}"}
  assert said(found, tokenizer) == expected.get(name, f"4{end}") * 2
  assert tokenizer.pad_id == tokenizer.eos_id


def test_a_prompt_is_what_training_had_before_the_answer(vocabularies):
  for name in templates.TEMPLATES:
    made = encoder_of(vocabularies["byte_level"], name)
    whole = made.text([SYSTEM, QUESTION, ANSWER])
    prompt = made.text([SYSTEM, QUESTION], add_generation_prompt=True)
    first = whole.learnt.index(True)
    assert whole.ids[:first] == prompt.ids and not any(prompt.learnt)


def test_the_tag_generation_says_what_is_learnt(vocabularies):
  tokenizer = vocabularies["byte_level"]
  own = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ ' <think>' + m.content + eos_token + '!' }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
  )
  beside = {**tokenizer.beside, templates.OWN: own.encode()}
  with_own = tokenizers.make("tokenizer.json", tokenizer.blob, beside)
  found = encoder_of(with_own, "").text([QUESTION, ANSWER])
  assert said(found, tokenizer) == " <think>4</s>!"


def test_what_a_template_adds_to_an_answer_is_learnt(vocabularies):
  """As the empty thoughts of Qwen 3: the model has to write them."""
  tokenizer = vocabularies["byte_level"]
  own = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  )
  beside = {tokenizers.SETTINGS: json.dumps(SETTINGS | {"chat_template": own})}
  with_own = tokenizers.make(
    "tokenizer.json", tokenizer.blob, {k: v.encode() for k, v in beside.items()}
  )
  found = encoder_of(with_own, "").text([QUESTION, ANSWER])
  assert said(found, tokenizer) == "<think>\n\n</think>\n\n4<|im_end|>"


FORMATS = {
  "instruction": {"instruction": "2 + 2?", "output": "4", "input": ""},
  "chat": {"messages": [QUESTION, ANSWER]},
  "pairs": {"source": "2 + 2?", "target": "4"},
  "completion": {"prompt": [QUESTION], "completion": [ANSWER]},
  "preference": {
    "prompt": [QUESTION],
    "chosen": [ANSWER],
    "rejected": [ANSWER | {"content": "5"}],
  },
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_the_same(form, vocabularies):
  made = encoder_of(vocabularies["byte_level"], "chatml")
  wanted = made.conversation([QUESTION, ANSWER])
  for found, of_it in zip(
    made.example(FORMATS[form], form), wanted, strict=True
  ):
    np.testing.assert_array_equal(found, of_it)


def test_the_speakers_of_sharegpt_are_ours(vocabularies):
  made = encoder_of(vocabularies["byte_level"], "chatml")
  talk = [("system", "Be brief."), ("human", "2 + 2?"), ("gpt", "4")]
  record = {"conversations": [{"from": a, "value": b} for a, b in talk]}
  found = made.example(record, "chat")
  wanted = made.conversation([SYSTEM, QUESTION, ANSWER])
  np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_answers_in_a_prompt_are_not_learnt_again(vocabularies):
  tokenizer = vocabularies["byte_level"]
  for name in templates.TEMPLATES:
    made = encoder_of(tokenizer, name, system="Be brief.")
    record = {
      "prompt": [QUESTION, ANSWER, QUESTION],
      "completion": [ANSWER | {"content": "five"}],
    }
    found = made.example(record, "completion")
    learnt = found.targets[found.weights > 0]
    assert tokenizer.decode(learnt).strip() == "five"


def test_a_preference_has_two_answers_to_one_prompt(vocabularies):
  tokenizer = vocabularies["byte_level"]
  made = encoder_of(tokenizer, "zephyr")
  chosen, rejected = made.pair(FORMATS["preference"])
  both = [
    tokenizer.decode(x.targets[x.weights > 0]) for x in (chosen, rejected)
  ]
  assert both == ["4", "5"]
  n = int(np.argmax(chosen.weights))
  np.testing.assert_array_equal(chosen.tokens[:n], rejected.tokens[:n])


def test_a_completion_is_one_text_with_its_prompt(vocabularies):
  """Its ids are those of the whole; what begins behind the prompt is learnt."""
  for tokenizer in (*vocabularies.values(), _trained("sentencepiece_bpe")):
    found = encoder_of(tokenizer, "").example(
      {"prompt": "def f(x):\n", "completion": "  return x 🙂"}, "completion"
    )
    text = "def f(x):\n  return x 🙂"
    assert found.tokens.tolist() == tokenizer.prompt(text)
    learnt = found.targets[found.weights > 0]
    assert learnt[-1] == tokenizer.eos_id
    assert tokenizer.decode(learnt).lstrip() == "return x 🙂"
    assert found.weights[-1] == 1


@pytest.mark.parametrize(
  "kind", ["bytes", "sentencepiece_bpe", "tokenizers_bpe"]
)
def test_our_own_tokenizers_talk_too(kind):
  tokenizer = _trained(kind)
  found = encoder_of(tokenizer, "zephyr").text(
    [QUESTION, ANSWER | {"content": "vier \u2581 </s> 🙂 x"}]
  )
  assert said(found, tokenizer) == "vier \u2581 </s> 🙂 x</s>"
  assert found.ids[0] == tokenizer.bos_id
  assert found.ids.count(tokenizer.bos_id) == 1
  assert found.ids.count(tokenizer.eos_id) == 2


def _trained(kind):
  sizes = {"bytes": 259, "sentencepiece_bpe": 400, "tokenizers_bpe": 280}
  config = tokenizers.Config(kind=kind, vocab_size=sizes[kind])
  return tokenizers.train(config, [pathlib.Path(__file__).read_text()])


HOSTILE = {
  "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}"
  "{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
  "a power": "{{ (messages | length + 8) ** (9 ** 9) % 2 }}",
  "a folded power": "{{ 9 ** (9 ** 9) % 2 }}",
  "a long string": "{{ 'a' * 10 ** 12 }}",
  "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
  "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
  "padding": "{{ 'a'.center(10 ** 12) }}",
  "a format": "{{ '%1000000000000d' % 1 }}",
  "a list": "{% set x = [0] * 10 ** 11 %}{{ x | length }}",
  "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "much text": "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
  "code": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "more code": "{{ raise_exception.__globals__['sys'] }}",
  "a file": "{% include '/etc/passwd' %}",
}


SLOW = ("a power", "a folded power")  # as a loop: they use up their seconds


@pytest.mark.parametrize(
  "name",
  [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in HOSTILE],
)
def test_a_hostile_template_is_stopped(name):
  """In bounded time and memory, and the next conversation has a new process."""
  renderer = rendering.Renderer(
    "{% if messages[0].content == 'x' %}" + HOSTILE[name] + "{% endif %}ok", {}
  )
  attack = [{"role": "user", "content": "x"}]
  with pytest.raises(ValueError, match="chat template"):
    renderer.render(attack)
  if name != "a folded power":  # whose template can never be read
    assert renderer.render([QUESTION]).plain == "ok"


def test_a_template_that_asks_the_date_needs_one():
  text = "{{ strftime_now('%d %b %Y') }}"
  with pytest.raises(ValueError, match="data.chat.today"):
    rendering.Renderer(text, {}, today="").render([QUESTION])
  fixed = rendering.Renderer(text, {}, today="2024-07-26").render([QUESTION])
  assert fixed.plain == "26 Jul 2024"
  assert len(rendering.Renderer(text, {}).render([QUESTION]).plain) == 11


@pytest.mark.parametrize(
  "record, form, problem",
  [
    ({"messages": []}, "chat", "not \\[\\]"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "chat", "no role"),
    ({"messages": [QUESTION]}, "chat", "nobody answers"),
    ({"messages": [QUESTION, ANSWER | {"content": ""}]}, "chat", "is empty"),
    ({"messages": [ANSWER, QUESTION]}, "chat", "take turns"),
    ({"messages": [QUESTION | {"content": "\ufdd2"}]}, "chat", "U\\+FDD2"),
    ({"instruction": "x"}, "instruction", "needs output"),
    ({"conversations": [{"from": "owl"}]}, "chat", "from='owl'"),
    ({"chosen": "a", "rejected": "b"}, "preference", "no prompt"),
    ({"prompt": "a", "completion": ""}, "completion", "is empty"),
    ({"text": "a", "label": "good"}, "labels", "data.chat.labels"),
    ({"words": ["a"], "labels": []}, "tokens", "1 words have 0"),
  ],
)
def test_what_is_no_conversation_says_why(record, form, problem, vocabularies):
  made = encoder_of(vocabularies["byte_level"], "gemma")
  with pytest.raises(ValueError, match=problem):
    made.example(record, form)


def test_a_template_that_never_stops_or_rewrites_is_refused(vocabularies):
  tokenizer = vocabularies["byte_level"]
  for own, problem in [
    ("{% for m in messages %}{{ m.content }}{% endfor %}", "learn to stop"),
    ("{{ messages[0].content[1:] + eos_token }}", "changes what"),
    ("{{ messages | length }}", "writes nothing of it"),
  ]:
    beside = {**tokenizer.beside, templates.OWN: own.encode()}
    made = encoder_of(
      tokenizers.make("tokenizer.json", tokenizer.blob, beside), ""
    )
    with pytest.raises(ValueError, match=problem):
      made.text([{"role": "user", "content": "Eh"}, ANSWER])


def test_a_tokenizer_without_a_template_says_which_there_are(vocabularies):
  with pytest.raises(ValueError, match="one of chatml, qwen, alpaca"):
    encoder_of(vocabularies["byte_level"], "").text([QUESTION, ANSWER])


def test_labels_are_names_numbers_or_measures(vocabularies):
  tokenizer = vocabularies["byte_level"]
  named = encoder_of(tokenizer, "", labels=("bad", "good"))
  found = named.example({"text": "fine", "label": "good"}, "labels")
  assert found.tokens.tolist() == [
    tokenizer.bos_id,
    *tokenizer.encode("fine"),
    tokenizer.eos_id,
  ]
  assert found.targets[0] == 1 and found.weights.tolist()[:2] == [1, 0]
  (measured,) = (
    encoder_of(tokenizer, "")
    .example({"text": "fine", "label": 0.25}, "labels")
    .targets[:1]
  )
  assert measured.view(np.float32) == 0.25
  words = {"words": ["two", "words"], "labels": ["bad", "good"]}
  tagged = named.example(words, "tokens")
  assert tagged.targets[tagged.weights > 0].tolist() == [0, 1]
  second = int(np.flatnonzero(tagged.weights)[1])
  assert tokenizer.decode(tagged.tokens[second:]) == " words"
