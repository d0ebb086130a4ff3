"""Makes tests/golden/chat.json: what `transformers` makes of conversations.

    python -m benchmarks.parity.chat            writes it
    python -m benchmarks.parity.chat --check    compares it with a new one

For every built-in template and two kinds of tokenizer, the ids of
apply_chat_template and its mask of the assistant's tokens. That mask asks for
{% generation %} in the template, which is put in here by hand.
"""

import json
import pathlib
import sys

import tokenizers
import transformers

from data.chat import templates

STORED = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "chat.json"
CONTROLS = (
  "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
  "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
TEXT = """Below is an instruction that describes a task. Write a response that
appropriately completes the request. ### Instruction: ### Response: system user
assistant model [INST] [/INST] You are a helpful assistant. What is it? Paris."""
SYSTEM = {"role": "system", "content": "Answer briefly."}
CONVERSATIONS = [
  [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
  ],
  [
    SYSTEM,
    {"role": "user", "content": "  Name two colours,\n\tplease \n"},
    {"role": "assistant", "content": "red 🙂, 蓝  and blue\n"},
    {"role": "user", "content": "And one more?"},
    {"role": "assistant", "content": " green"},
  ],
]
_TAG, _END = "{% generation %}", "{% endgeneration %}"


def _tagged(written: str, end: str) -> str:
  """What an answer is, and what is behind it, with the tag around the first."""
  rest = f"{{{{ {written} + {end} }}}}"
  return f"{_TAG}{rest}{_END}"


def _only_answers(lead: str, content: str, end: str, rest: str) -> str:
  """A message, of which the content and its end are learnt if it answers."""
  return (
    f"{{{{ {lead} }}}}{{% if message.role == 'assistant' %}}"
    f"{_tagged(content, end)}{{% else %}}{{{{ {content} + {end} }}}}"
    f"{{% endif %}}{rest}"
  )


_LINE = "{{ '\\n' }}"
_CHATML = (
  "{{ '<|im_start|>' + message.role + '\\n' + message.content"
  " + '<|im_end|>\\n' }}",
  _only_answers(
    "'<|im_start|>' + message.role + '\\n'",
    "message.content",
    "'<|im_end|>'",
    _LINE,
  ),
)
# name -> a piece of the template, and the same with the tag
TAGGED = {
  "chatml": _CHATML,
  "qwen": _CHATML,
  "alpaca": (
    "{{ message.content + eos_token }}",
    _tagged("message.content", "eos_token"),
  ),
  "llama2": (
    "{{ ' ' + message.content.strip() + ' ' + eos_token }}",
    _tagged("' ' + message.content.strip() + ' '", "eos_token"),
  ),
  "llama3": (
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n'"
    " + message.content | trim + '<|eot_id|>' }}",
    _only_answers(
      "'<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n'",
      "message.content | trim",
      "'<|eot_id|>'",
      "",
    ),
  ),
  "mistral": (
    "{{ ' ' + message.content | trim + eos_token }}",
    _tagged("' ' + message.content | trim", "eos_token"),
  ),
  "gemma": (
    "{{ message.content | trim + '<end_of_turn>\\n' }}",
    _only_answers("''", "message.content | trim", "'<end_of_turn>'", _LINE),
  ),
  "zephyr": (
    "{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}",
    _only_answers(
      "'<|' + message.role + '|>\\n'", "message.content", "eos_token", _LINE
    ),
  ),
}


def vocabularies() -> dict[str, tokenizers.Tokenizer]:
  """A byte-level BPE, and one that begins a text with a space, as Llama 2's."""
  level = tokenizers.Tokenizer(tokenizers.models.BPE())
  level.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  level.decoder = tokenizers.decoders.ByteLevel()
  spaced = tokenizers.Tokenizer(
    tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>")
  )
  spaced.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
    prepend_scheme="first", split=False
  )
  spaced.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace("\u2581", " "),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
    ]
  )
  letters = {
    "byte_level": tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    "spaced": [],
  }
  made = {"byte_level": level, "spaced": spaced}
  fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
  for name, tokenizer in {**made}.items():
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=700 if name == "spaced" else 400,
      special_tokens=[*CONTROLS, *(fallback if name == "spaced" else [])],
      initial_alphabet=letters[name],
      show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    # The trainer makes control tokens of the bytes, too.
    said = json.loads(tokenizer.to_str())
    said["added_tokens"] = [
      x for x in said["added_tokens"] if x["content"] in CONTROLS
    ]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(said))
    made[name] = tokenizer
    bos = CONTROLS.index("<s>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", bos)]
    )
  return made


def make() -> dict:
  """The tokenizers, and the ids and masks of all cases."""
  stored = {
    "tokenizers": {},
    "conversations": CONVERSATIONS,
    "cases": {},
  }
  for kind, model in vocabularies().items():
    stored["tokenizers"][kind] = model.to_str()
    theirs = transformers.PreTrainedTokenizerFast(
      tokenizer_object=model,
      bos_token="<s>",
      eos_token="</s>",
      pad_token="</s>",  # an end is an end, also where it pads
    )
    for name, text in templates.TEMPLATES.items():
      plain, tagged = TAGGED[name]
      assert text.count(plain) == 1, f"{name}: the template was changed"
      for i, conversation in enumerate(CONVERSATIONS):
        found = theirs.apply_chat_template(
          conversation,
          chat_template="{{ bos_token }}" + text.replace(plain, tagged),
          return_assistant_tokens_mask=True,
          return_dict=True,
        )
        stored["cases"][f"{kind}/{name}/{i}"] = {
          "ids": found["input_ids"],
          "mask": found["assistant_masks"],
        }
  return stored


def main() -> None:
  """Writes or checks; exit 1 when the check fails."""
  made = make()
  if sys.argv[1:] == ["--check"]:
    stored = json.loads(STORED.read_text())
    wrong = [k for k, v in made["cases"].items() if stored["cases"].get(k) != v]
    print(f"{len(made['cases'])} cases,", *(wrong or ["all the same"]))
    sys.exit(bool(wrong))
  STORED.write_text(json.dumps(made, separators=(",", ":")))
  print(f"{STORED}: {len(made['cases'])} cases")


if __name__ == "__main__":
  main()
