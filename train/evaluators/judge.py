"""A language model as the judge of two answers, each read in both places.

Judges favour the first place (arXiv 2306.05685): every pair is judged twice,
the second time with the answers swapped, and who does not win both times has
not won. Any server that speaks OpenAI's chat completions can judge.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import NamedTuple

from train.evaluators.arena import Game

Ask = Callable[[str], str]  # a prompt -> what the judge writes
_PROMPT = """\
Two assistants were given the text under [Question]. Judge which answer is \
better: right, to the point, and complete. Neither the order of the answers nor \
their length counts. Say in a few sentences why, and end with exactly one of \
[[A]] (the first is better), [[B]] (the second is better) or [[C]] (neither is).

[Question]
{question}

[The first answer]
{first}

[The second answer]
{second}

[Judgement]
"""


class Verdict(NamedTuple):
  """What came of both readings."""

  winner: str  # "a", "b" or "tie"
  readings: tuple[str | None, str | None]  # of a before b, of b before a


def client(address: str, model: str, timeout_seconds: float = 120) -> Ask:
  """Asks a server at ADDRESS/chat/completions, at temperature 0.

  Args:
    address: "http://127.0.0.1:8000/v1"; the key is that of OPENAI_API_KEY.
    model: its name there.
    timeout_seconds: of one answer.

  Raises:
    ValueError: the address is none of http or https.
  """
  if not address.startswith(("http://", "https://")):
    raise ValueError(f"address={address!r}: expected http:// or https://.")

  def ask(prompt: str) -> str:
    body = {
      "model": model,
      "messages": [{"role": "user", "content": prompt}],
      "temperature": 0,
    }
    request = urllib.request.Request(
      f"{address.rstrip('/')}/chat/completions",
      data=json.dumps(body).encode(),
      headers={
        "Content-Type": "application/json",
        "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}",
      },
    )
    try:
      with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
        said = json.loads(answer.read())
      return said["choices"][0]["message"]["content"]
    except (OSError, urllib.error.URLError) as error:
      raise ValueError(f"the judge at {address} fails: {error}.") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
      raise ValueError(
        f"the judge at {address} answers in another form than OpenAI's chat "
        f"completions: {type(error).__name__}: {error}."
      ) from error

  return ask


def judge(ask: Ask, question: str, a: str, b: str) -> Verdict:
  """Has two answers read in both orders."""
  there = _read(ask(_PROMPT.format(question=question, first=a, second=b)))
  back = _read(ask(_PROMPT.format(question=question, first=b, second=a)))
  winner = {("A", "B"): "a", ("B", "A"): "b"}.get((there, back), "tie")
  return Verdict(winner, (there, back))


def _read(text: str) -> str | None:
  """The last verdict of a judgement; None where there is none."""
  found = re.findall(r"\[\[([ABC])\]\]", text)
  return found[-1] if found else None


class Score(NamedTuple):
  """What many verdicts come to, for the first of two."""

  n_wins: int
  n_ties: int
  n_losses: int
  n_swayed: int  # verdicts that followed the place, not the answer
  n_unread: int  # with a judgement that says nothing


def score(verdicts: Sequence[Verdict]) -> Score:
  """Counts verdicts."""
  winners = [v.winner for v in verdicts]
  return Score(
    n_wins=winners.count("a"),
    n_ties=winners.count("tie"),
    n_losses=winners.count("b"),
    n_swayed=sum(v.readings in (("A", "A"), ("B", "B")) for v in verdicts),
    n_unread=sum(None in v.readings for v in verdicts),
  )


def as_games(verdicts: Sequence[Verdict], a: str, b: str) -> list[Game]:
  """Verdicts as games between two names."""
  return [Game(a, b, v.winner) for v in verdicts]


def lines(verdicts: Sequence[Verdict], a: str, b: str) -> str:
  """The games as JSON lines, which `arena.games` reads."""
  games = as_games(verdicts, a, b)
  return "".join(json.dumps(game._asdict()) + "\n" for game in games)
