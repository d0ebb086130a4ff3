"""Strength from games, and a judge behind an address."""

import http.server
import json
import math
import threading

import numpy as np
import pytest
from etils import epath

from train import compare
from train.evaluators import arena, judge
from train.evaluators.arena import Game


def play(strengths, n_games, seed):
  rng, names = np.random.default_rng(seed), list(strengths)
  found = []
  for _ in range(n_games):
    a, b = rng.choice(names, 2, replace=False)
    p = 1 / (1 + 10 ** ((strengths[b] - strengths[a]) / 400))
    found.append(Game(str(a), str(b), "a" if rng.random() < p else "b"))
  return found


TRUE = {"one": 1300.0, "two": 1100.0, "three": 950.0, "four": 650.0}


def test_planted_strengths_are_found():
  """In order, within their intervals, and those are as wide as chance is."""
  n_inside, estimates = 0, []
  for seed in range(8):
    found = arena.standings(play(TRUE, 600, seed), n_draws=50, seed=seed)
    assert [s.name for s in found] == list(TRUE)
    n_inside += sum(s.low <= TRUE[s.name] <= s.high for s in found)
    estimates.append([s.strength for s in found])
    width = np.mean([s.high - s.low for s in found])
  assert n_inside / 32 > 0.8
  spread = np.std(estimates, axis=0).mean()
  assert width == pytest.approx(2 * 1.96 * spread, rel=0.6)
  np.testing.assert_allclose(
    np.mean(estimates, 0), list(TRUE.values()), atol=20
  )


def test_two_players_have_a_closed_form():
  """Three of four games are ln 3 nats; ties are halves."""
  games = [
    Game("x", "y", w) for w in ("a", "a", "tie", "tie", "a", "b", "a", "a")
  ]
  x, y = arena.standings(games, n_draws=20)
  assert (x.name, x.n_games, y.n_games) == ("x", 8, 8)
  expected = 400 * math.log10(3)
  assert x.strength - y.strength == pytest.approx(expected, rel=1e-3)
  assert x.strength + y.strength == pytest.approx(2000)


def test_the_order_and_the_sides_of_games_change_nothing():
  games = play(TRUE, 200, 0)
  other = {"a": "b", "b": "a", "tie": "tie"}
  turned = [Game(g.b, g.a, other[g.winner]) for g in reversed(games)]
  for one, two in zip(
    arena.standings(games, 10), arena.standings(turned, 10), strict=True
  ):
    assert one.name == two.name
    assert one.strength == pytest.approx(two.strength, abs=1e-6)


def test_elo_follows_its_formula():
  found = arena.elo([Game("x", "y", "a"), Game("y", "x", "tie")], k=32.0)
  # 1016 and 984; then y is expected 1 / (1 + 10^(32/400)) and gets a half.
  gain = 32 * (0.5 - 1 / (1 + 10 ** (32 / 400)))
  assert found == pytest.approx({"x": 1016 - gain, "y": 984 + gain})


@pytest.mark.parametrize(
  "rows, match",
  [
    ([{"a": "x", "b": "y"}], "row 0 is no game"),
    ([{"a": "x", "b": "y", "winner": "x"}], "row 0 is no game"),
    ([{"a": "x", "b": "x", "winner": "a"}], "plays against itself"),
  ],
)
def test_what_is_no_game_is_told(rows, match):
  with pytest.raises(ValueError, match=match):
    arena.games(rows)


def test_who_never_lost_has_no_strength():
  games = [Game("x", "y", "a"), Game("y", "z", "a"), Game("z", "y", "a")]
  with pytest.raises(ValueError, match="how far x and y, z lie apart"):
    arena.standings(games)


@pytest.mark.parametrize(
  "first, second, winner",
  [
    ("[[A]]", "[[B]]", "a"),
    ("[[B]]", "[[A]]", "b"),
    ("[[A]]", "[[A]]", "tie"),  # it likes the first place
    ("[[C]]", "[[C]]", "tie"),
    ("well", "[[B]]", "tie"),
    ("not [[B]] but [[A]]", "[[B]]", "a"),  # the last counts
  ],
)
def test_both_orders_have_to_agree(first, second, winner):
  said = iter([first, second])
  assert judge.judge(lambda prompt: next(said), "q", "x", "y").winner == winner


def test_a_judge_of_places_only_prefers_nobody():
  verdicts = [judge.judge(lambda _: "[[A]]", "q", "x", "y") for _ in range(5)]
  assert judge.score(verdicts) == (0, 5, 0, 5, 0)


class Server(http.server.BaseHTTPRequestHandler):
  """Prefers the longer answer; asked for `broken`, it answers nonsense."""

  seen: list = []

  def do_POST(self):  # noqa: N802
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    self.seen.append((self.path, self.headers["Authorization"], body))
    prompt = body["messages"][0]["content"]
    first, second = (
      prompt.split(f"[The {x} answer]\n")[1].split("\n\n[")[0]
      for x in ("first", "second")
    )
    said = "[[A]]" if len(first) > len(second) else "[[B]]"
    said = said if len(first) != len(second) else "[[C]]"
    choices = [{"message": {"role": "assistant", "content": f"So {said}"}}]
    reply = {} if body["model"] == "broken" else {"choices": choices}
    raw = json.dumps(reply).encode()
    self.send_response(200)
    self.send_header("Content-Length", str(len(raw)))
    self.end_headers()
    self.wfile.write(raw)

  def log_message(self, *_):
    pass


@pytest.fixture
def address():
  server = http.server.HTTPServer(("127.0.0.1", 0), Server)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{server.server_port}/v1"
  server.shutdown()
  thread.join()
  server.server_close()


def results(folder, texts):
  folder.mkdir()
  records = [{"prompt": f"q{i}", "texts": [t]} for i, t in enumerate(texts)]
  lines = "".join(json.dumps(r) + "\n" for r in records)
  (folder / "poem.items.jsonl").write_text(lines)
  (folder / "poem.json").write_text("{}")
  return str(folder)


def test_what_two_wrote_is_judged_and_ranked(
  address, tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv("OPENAI_API_KEY", "sesame")
  long = results(tmp_path / "long", ["aaa", "bb", "c"])
  short = results(tmp_path / "short", ["a", "bb", "cc"])
  assert compare.main(["judge", long, short, address, "judge-1"]) == 0
  said = capsys.readouterr().out
  for line in ("n_wins", "n_ties", "n_losses"):
    assert f"{line:<10}     1" in said
  path = epath.Path(short) / "preferences.jsonl"
  winners = [json.loads(x)["winner"] for x in path.read_text().splitlines()]
  assert winners == ["a", "tie", "b"]
  where, key, body = Server.seen[-1]
  assert where == "/v1/chat/completions" and key == "Bearer sesame"
  assert body["model"] == "judge-1" and body["temperature"] == 0
  assert compare.main(["rank", str(path)]) == 0
  assert "1000" in capsys.readouterr().out


def test_a_judge_that_fails_is_named(address):
  with pytest.raises(ValueError, match="in another form .* KeyError"):
    judge.client(address, "broken")(
      "[The first answer]\n1\n\n[The second answer]\n2\n\n["
    )
  with pytest.raises(ValueError, match="judge at http://127.0.0.1:9 fails"):
    judge.client("http://127.0.0.1:9", "x")("q")
  with pytest.raises(ValueError, match="expected http://"):
    judge.client("file:///etc", "x")


def test_the_verbs_are_told():
  with pytest.raises(ValueError, match="or `tasks FIRST SECOND`"):
    compare.main(["tasks", "one"])
