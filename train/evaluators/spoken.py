"""Questions as a user asks them: by the chat template of the checkpoint.

The prompt is what the user says, and the model goes on as the assistant; an
answer ends with the token that the template ends it with, which counts.
"""

from collections.abc import Sequence

from data.chat.encoder import Config, Encoder
from train.evaluators.likelihood import Request, fitted
from train.evaluators.subject import Subject


def prompts(subject: Subject, questions: Sequence[str]) -> list[list[int]]:
  """The ids behind which the model answers each question.

  Raises:
    ValueError: the checkpoint has no chat template.
  """
  encoder = Encoder(Config(), subject.tokenizer)
  return [
    encoder.text([_said("user", text)], add_generation_prompt=True).ids
    for text in questions
  ]


def requests(
  subject: Subject, pairs: Sequence[tuple[str, str]]
) -> list[Request]:
  """The request for each answer behind its question.

  Raises:
    ValueError: the checkpoint has no chat template; an answer is empty, or more
      than the model reads at once.
  """
  encoder = Encoder(Config(), subject.tokenizer)
  found = []
  for question, answer in pairs:
    messages = [_said("user", question), _said("assistant", answer)]
    ids, learnt = encoder.text(messages)
    end = len(learnt) - learnt[::-1].index(True)  # a line end may follow
    found.append(fitted(subject, ids[:end], sum(learnt), answer))
  return found


def _said(role: str, content: str) -> dict[str, str]:
  return {"role": role, "content": content}
