"""Chat templates in the formats that their families published.

A checkpoint's own template goes before any of these. Where a model's texts
begin with BOS, so do its conversations, once; Llama 2 and Mistral set it as
their papers do. An answer ends with a control token: the one that the model
writes to say that it is done.
"""

import json

from data.tokenizer import SETTINGS, Tokenizer

OWN = "chat_template.jinja"  # beside a tokenizer

_CHATML = (
  "{% for message in messages %}"
  "{{ '<|im_start|>' + message.role + '\\n' + message.content"
  " + '<|im_end|>\\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Sets `system`, and `turns` without it, as users and assistants alternate.
_ALTERNATING = (
  "{% if messages and messages[0].role == 'system' %}"
  "{% set system = messages[0].content %}{% set turns = messages[1:] %}"
  "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
  "{% for message in turns %}"
  "{% if message.role != ('user', 'assistant')[loop.index0 % 2] %}"
  "{{ raise_exception('after the system message, user and assistant take"
  " turns, and message ' ~ loop.index ~ ' is of ' ~ message.role) }}"
  "{% endif %}{% endfor %}"
)

TEMPLATES: dict[str, str] = {
  "chatml": _CHATML,
  # Qwen 2: ChatML, never without a system message.
  "qwen": (
    "{% if not messages or messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}" + _CHATML
  ),
  # Stanford Alpaca, with a line end ahead of the answer: its first word would
  # else be one token with the colon, which no prompt ends with.
  "alpaca": _ALTERNATING
  + (
    "{% for message in turns %}{% if message.role == 'user' %}"
    "{% if loop.first %}"
    "{% if system %}{{ system }}{% elif message.input %}"
    "{{ 'Below is an instruction that describes a task, paired with an input"
    " that provides further context. Write a response that appropriately"
    " completes the request.' }}{% else %}"
    "{{ 'Below is an instruction that describes a task. Write a response that"
    " appropriately completes the request.' }}{% endif %}"
    "{{ '\\n\\n' }}{% endif %}"
    "{{ '### Instruction:\\n' + (message.instruction or message.content) }}"
    "{% if message.input %}"
    "{{ '\\n\\n### Input:\\n' + message.input }}{% endif %}"
    "{% if not loop.last or add_generation_prompt %}"
    "{{ '\\n\\n### Response:\\n' }}{% endif %}"
    "{% else %}{{ message.content + eos_token }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endif %}{% endfor %}"
  ),
  # 2307.09288. Every turn begins with BOS.
  "llama2": _ALTERNATING
  + (
    "{% for message in turns %}{% if message.role == 'user' %}"
    "{{ ('' if loop.first else bos_token) + '[INST] ' }}"
    "{% if loop.first and system %}"
    "{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
  ),
  # 2407.21783.
  "llama3": (
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n'"
    " + message.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
  ),
  # 2310.06825, version 0.2; it has no system message of its own.
  "mistral": _ALTERNATING
  + (
    "{% for message in turns %}{% if message.role == 'user' %}"
    "{{ '[INST] ' }}{% if loop.first and system %}"
    "{{ system + '\\n\\n' }}{% endif %}"
    "{{ message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content | trim + eos_token }}"
    "{% endif %}{% endfor %}"
  ),
  # 2403.08295; a system message stands ahead of the first user's, as in 3.
  "gemma": _ALTERNATING
  + (
    "{% for message in turns %}"
    "{{ '<start_of_turn>'"
    " + ('model' if message.role == 'assistant' else 'user') + '\\n' }}"
    "{% if loop.first and system %}{{ system | trim + '\\n\\n' }}{% endif %}"
    "{{ message.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
  ),
  # 2310.16944.
  "zephyr": (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
  ),
}


def find(name: str, tokenizer: Tokenizer) -> str:
  """The template of a name, or the one that came with a tokenizer.

  Args:
    name: of TEMPLATES; "" is the tokenizer's own.
    tokenizer: of the model that talks.

  Raises:
    ValueError: it has none.
  """
  if name:
    begin = "{{ bos_token }}" if tokenizer.start else ""
    return begin + TEMPLATES[name]
  if OWN in tokenizer.beside:
    return tokenizer.beside[OWN].decode()
  said = json.loads(tokenizer.beside.get(SETTINGS, b"{}"))
  found = said.get("chat_template")
  if isinstance(found, list):  # several, by name
    found = {x["name"]: x["template"] for x in found}.get("default")
  if not isinstance(found, str):
    raise ValueError(
      "the tokenizer has no chat template of its own: give data.chat.template, "
      f"one of {', '.join(TEMPLATES)}."
    )
  return found
