"""All tasks that are asked of one checkpoint, and the report on them."""

from collections.abc import Callable, Sequence

from etils import epath

from configs import door
from models import checkpoint
from train.evaluators import exam, subject, table, task


def measure(
  config: door.Config,
  workdir: epath.Path,
  out: epath.Path | None,
  specs: Sequence[str],
  say: Callable[[str], None],
) -> None:
  """Asks all tasks, and reports.

  Args:
    config: with the sections mesh and eval.
    workdir: a run, or a checkpoint.
    out: where the results go; None: WORKDIR/evaluation.
    specs: pages, PATH.py[:arg].
    say: takes lines.

  Raises:
    ValueError: the results would lie in a checkpoint or hide each other, or
      a task asks for figures that cannot be made.
  """
  path = checkpoint.find(workdir)
  out = workdir / "evaluation" if out is None else out
  if path in (out, *out.parents):
    raise ValueError(
      f"{path} is a checkpoint, which stays as it is: say by --results=DIR "
      "where the results shall go."
    )
  tasks = [task.load(spec) for spec in specs]
  for one in tasks:
    exam.check(one)
  titles = [one.title for one in tasks]
  if len({*titles}) < len(titles):
    raise ValueError(
      f"--task: {', '.join(titles)} are not all different; give another "
      "--results for each."
    )
  who = subject.load(path, config.mesh, config.eval.batch_tokens)
  say(f"asking {path}")
  results = {one.title: exam.sit(who, one, out, path) for one in tasks}
  say(table.text(results))
  everything = {title: result for title, (result, _) in exam.read(out).items()}
  table.write(everything, out, str(path))
  say(f"{out / 'report.md'}")
