"""Settings that do not fit each other, told before any device is touched.

What one section alone cannot know. A rule is a function of the sections that
its parameters name; it holds for every entrypoint that has them all.
"""

import inspect
import math

from configs import door
from data import corrupt
from models import families, prefix
from sharding import context, pipeline, rules
from sharding import mesh as meshes
from train.core import optim as optimizers
from train.core import parts, staged, track
from train.core import schedule as schedules
from train.objectives import labels, mlm


def check(config: door.Config, n_devices: int | None = None) -> None:
  """Checks every rule whose sections the config has.

  Args:
    config: resolved, of any entrypoint.
    n_devices: of all hosts; None: they are not asked yet, and only the axes of
      the mesh whose sizes are given are known.

  Raises:
    ValueError: what does not fit, and the way out.
  """
  given = dict(config.sections)
  if "mesh" in given:
    given["layout"] = _layout(given["mesh"], n_devices)
  if "model" in given:
    given["split"] = parts.make(config)
  for rule in _RULES:
    names = inspect.signature(rule).parameters.keys()
    if names <= given.keys():
      rule(**{name: given[name] for name in names})


def _layout(config: meshes.Config, n_devices: int | None) -> rules.Layout:
  if n_devices is None:  # an axis of -1 takes no more than one
    n_devices = math.prod(max(size, 1) for size in config.sizes().values())
  return rules.make(meshes.abstract(config, n_devices), *config.settings)


def _length(model, batch):
  if batch.length > model.max_length:
    raise ValueError(
      f"batch.length={batch.length} is more than model.max_length="
      f"{model.max_length}: shorten the one or raise the other."
    )


def _hidden(model, batch):
  family = families.name(model)
  if families.reads(model, "source") != (batch.source_length > 0):
    raise ValueError(
      f"batch.source_length={batch.source_length} with model.name={family}: a "
      "family of an encoder and a decoder goes with sources of some length, and "
      "sources with such a family (t5, bart)."
    )
  if batch.source_length > model.max_length:
    raise ValueError(
      f"batch.source_length={batch.source_length} is more than "
      f"model.max_length={model.max_length}: shorten the one or raise the other."
    )
  if batch.sees_sources and not families.reads(model, "prefix"):
    raise ValueError(
      f"batch.noise.kind={batch.noise.kind} with model.name={family}: this "
      "family cannot see a part of its text whole. Give kind='middle'."
    )


def _apart(data, batch):
  is_apart = batch.source_length > 0 and batch.noise is None
  if is_apart != data.chat.apart:
    raise ValueError(
      f"data.chat.apart={data.chat.apart} with batch.source_length="
      f"{batch.source_length} and batch.noise={batch.noise}: records of two "
      "texts go with room for what is read (batch.source_length above 0, no "
      "batch.noise), for families that read two texts."
    )


def _split(batch, layout):
  n_parts = context.size(layout)
  if n_parts > 1 and batch.source_length:
    raise ValueError(
      f"mesh.context={n_parts} splits rows, and an encoder's are seen whole "
      f"(batch.source_length={batch.source_length}): give mesh.context=1."
    )


def _ids(model, tokenizer, batch):
  n_above = 0 if batch.noise is None else corrupt.Ids(0).end
  if tokenizer.vocab_size + n_above > model.vocab_size and n_above:
    raise ValueError(
      f"tokenizer.vocab_size={tokenizer.vocab_size} and {n_above} ids that "
      f"batch.noise has above it are more than model.vocab_size="
      f"{model.vocab_size}: raise that, or make a smaller tokenizer."
    )
  if tokenizer.vocab_size > model.vocab_size:
    raise ValueError(
      f"tokenizer.vocab_size={tokenizer.vocab_size} is more than "
      f"model.vocab_size={model.vocab_size}: ids beyond would be read as the "
      "last one. Raise model.vocab_size, or make a smaller tokenizer."
    )


def _rows(batch, layout):
  n_shards = layout.n_batch_shards
  if batch.size % n_shards:
    raise ValueError(
      f"batch.size={batch.size} does not divide over {n_shards} shards "
      f"({meshes.describe(layout.mesh)}): make it a multiple of {n_shards}."
    )


def _columns(batch, model, layout):
  n_kv_heads = getattr(model, "n_kv_heads", model.n_heads)
  context.check(layout, length=batch.length, n_kv_heads=n_kv_heads)


def _states(model, layout):
  n_parts = context.size(layout)
  if n_parts > 1 and "state" in model.pattern:
    raise ValueError(
      f"mesh.context={n_parts} splits rows, and the states of "
      f"{families.name(model)} go from token to token: give mesh.context=1, and "
      "split widths (mesh.tensor) instead."
    )


def _parts(batch, train, layout):
  n_shards = layout.n_batch_shards
  if batch.size // n_shards % train.n_micro:
    raise ValueError(
      f"train.n_micro={train.n_micro} does not divide the "
      f"{batch.size // n_shards} rows that each of {n_shards} shards has of "
      f"batch.size={batch.size}."
    )


def _stages(model, mesh, layout):
  n_stages = layout.n_stages
  if n_stages == 1:
    if (how := mesh.pipeline) is not None:
      raise ValueError(
        f"mesh.pipeline (schedule={how.schedule}, n_repeats={how.n_repeats}) "
        "says how stages work, and mesh.stage=1 makes none: leave it out, or "
        "give mesh.stage=2 or more."
      )
    return
  if families.reads(model, "source"):
    raise ValueError(
      f"mesh.stage={n_stages} cuts one stack of layers, and the family "
      f"{families.name(model)} has two: give mesh.stage=1."
    )
  if not model.scanned:
    raise ValueError(
      f"model.scanned=False keeps every layer apart, and mesh.stage={n_stages} "
      "cuts the stacked layers: give model.scanned=True."
    )
  if model.dtype == "float16":
    raise ValueError(
      f"model.dtype=float16 with mesh.stage={n_stages}: the gradients inside a "
      "pipeline are not scaled, and would vanish. Give bfloat16."
    )
  how = mesh.pipeline or pipeline.Config()
  staged.Cut.of(model, n_stages * how.n_repeats)


def _passes(mesh, train, layout):
  if layout.n_stages > 1:
    how = mesh.pipeline or pipeline.Config()
    pipeline.Timetable(layout.n_stages, train.n_micro, how)


def _sizes(split, layout):
  for kind in ("params", "grads", "state"):
    layout.shardings(split.axes, split.shapes, kind)
  layout.shardings(split.frozen_axes, split.frozen_shapes)


def _frozen(split, mesh, train, optim):
  if not split.frozen_shapes:
    return
  what = "a part of the parameters is frozen"
  if mesh.stage != 1:
    raise ValueError(
      f"{what}, and mesh.stage={mesh.stage} would compute their gradients all "
      "the same: give stage=1."
    )
  if train.diloco is not None:
    raise ValueError(
      f"{what}, and train.diloco would copy them for each replica: leave it out."
    )
  if split.speeds is not None and isinstance(optim, optimizers.LBFGS):
    raise ValueError(
      "optim.name='lbfgs' steps along one line, and an adapter may ask for an lr "
      "of each leaf (adapter.b_speed): choose another."
    )
  if optim.mup_width is not None:
    raise ValueError(
      f"{what}, and optim.mup_width={optim.mup_width} scales the steps of a "
      "whole model: leave it out."
    )


def _ahead(model, objective):
  has_module = getattr(model, "ahead", False)
  if has_module != (objective.ahead_weight > 0):
    raise ValueError(
      f"objective.ahead_weight={objective.ahead_weight} with model.ahead="
      f"{has_module}: a module for the token after next goes with a weight of "
      "its loss (0.3 in DeepSeek-V3), and a weight with a module."
    )


def _asked(model, objective):
  if isinstance(objective, labels.Config):
    _labelled(model, objective)
    return
  is_masked, is_causal = (
    isinstance(objective, mlm.Config),
    families.is_causal(model),
  )
  if is_masked == is_causal:
    name = families.name(model)
    raise ValueError(
      f"objective.name=mlm hides words from what reads both ways, and {name} "
      "reads one way: give objective.name=lm."
      if is_masked
      else f"objective.name=lm asks for the next token, which {name} sees: give "
      "objective.name=mlm."
    )
  if not is_masked:
    if model_heads := families.kinds(model):
      raise ValueError(
        f"objective.name=lm asks for words, and model.heads.kinds={model_heads}: "
        "give model.heads.kinds=(), or objective.name=labels."
      )
    return
  wanted = ("words", "texts") if objective.pair_weight else ("words",)
  if missing := {*wanted} - {*model.heads.kinds}:
    raise ValueError(
      f"the objective asks for {' and '.join(missing)}, and model.heads.kinds="
      f"{model.heads.kinds}: give {wanted}."
    )
  if objective.pair_weight and model.heads.n_labels != 2:
    raise ValueError(
      f"model.heads.n_labels={model.heads.n_labels} with objective.pair_weight="
      f"{objective.pair_weight}: a text follows or it does not. Give 2."
    )
  if objective.mask_id >= model.vocab_size:
    raise ValueError(
      f"objective.mask_id={objective.mask_id} is no id of model.vocab_size="
      f"{model.vocab_size}: raise model.vocab_size."
    )


def _labelled(model, objective):
  if objective.head not in (kinds := families.kinds(model)):
    raise ValueError(
      f"objective.name=labels with of={objective.of!r} asks the head "
      f"{objective.head!r}, and model.heads.kinds={kinds}: name it there, of a "
      "family that has heads (of decoders and of bert and its kin)."
    )
  if objective.of == "measure" and model.heads.n_labels != 1:
    raise ValueError(
      f"model.heads.n_labels={model.heads.n_labels} with objective.of='measure':"
      " a number is one score. Give 1."
    )


def _examples(model, data, batch, objective):
  forms = {*data.formats} - {"text"}
  if forms and batch.packing != "whole":
    raise ValueError(
      f"data.formats={data.formats} makes examples, and batch.packing="
      f"{batch.packing!r} parts them at the ends of rows: give 'whole'."
    )
  is_labelled = isinstance(objective, labels.Config)
  wanted = {"tokens": "tokens"}.get(getattr(objective, "of", ""), "labels")
  if is_labelled and {*data.formats} != {wanted}:
    raise ValueError(
      f"objective.name=labels with of={objective.of!r} learns from records of "
      f"data.formats=({wanted!r},), not {data.formats}."
    )
  if not is_labelled and forms & {"labels", "tokens"}:
    raise ValueError(
      f"data.formats={data.formats} says labels of texts, and objective.name "
      "asks for words: give objective.name=labels."
    )
  names = data.chat.labels
  if is_labelled and objective.of != "measure":
    if len(names) != model.heads.n_labels:
      raise ValueError(
        f"data.chat.labels={names} are {len(names)} classes, and "
        f"model.heads.n_labels={model.heads.n_labels}: give as many."
      )
  elif names:
    raise ValueError(
      f"data.chat.labels={names} names classes, and nothing asks for them: "
      "leave it out, or give objective.name=labels with of='texts' or 'tokens'."
    )


def _compared(data, eval):
  asked = {"compression", "ngram"} & {*eval.during, *eval.final}
  if asked and {*data.formats} != {"text"}:
    raise ValueError(
      f"eval has {' and '.join(sorted(asked))}, which measure whole texts, and "
      f"data.formats={data.formats} makes examples of which a part is learnt: "
      "leave it out of eval.during and eval.final."
    )


def _blurred(objective, mesh):
  alpha = getattr(objective, "neftune_alpha", 0.0)
  if alpha and mesh.stage != 1:
    raise ValueError(
      f"objective.neftune_alpha={alpha} with mesh.stage={mesh.stage}: the first "
      "stage's embeddings stay without noise. Give stage=1."
    )


def _mask(objective, tokenizer):
  if not isinstance(objective, mlm.Config) or tokenizer.kind == "saved":
    return
  if objective.mask_id < tokenizer.vocab_size:
    raise ValueError(
      f"objective.mask_id={objective.mask_id} is a piece of text to the "
      f"tokenizer: give tokenizer.vocab_size={tokenizer.vocab_size} or more, "
      "below model.vocab_size."
    )


def _pairs(model, batch, objective):
  weight = getattr(objective, "pair_weight", 0.0)
  if (batch.packing == "pairs") != (weight > 0):
    raise ValueError(
      f"objective.pair_weight={weight} with batch.packing={batch.packing!r}: "
      "pairs are packed for an objective that asks whether they belong "
      "together (mlm with a weight above 0), and the other way round."
    )
  if weight and getattr(model, "n_types", 0) < 2:
    raise ValueError(
      f"objective.pair_weight={weight} with model.n_types="
      f"{getattr(model, 'n_types', 0)}: the two texts of a pair are of two "
      "kinds. Choose a family that tells them apart, as bert."
    )


def _written(model, eval):
  writes = {"perplexity", "samples", "python"} & {*eval.during, *eval.final}
  if writes and not families.writes(model):
    why = "reads both ways"
    if families.is_causal(model):
      why = f"has heads of its own (model.heads.kinds={model.heads.kinds})"
    raise ValueError(
      f"{families.name(model)} {why} and cannot write: leave "
      f"{', '.join(sorted(writes))} out of eval.during and eval.final, and take "
      "objective."
    )


def _prefix(adapter, model, batch, mesh):
  if not isinstance(adapter, prefix.Prompt | prefix.Prefix):
    return
  prefix.check(model)
  if batch.packing != "stream":
    raise ValueError(
      f"batch.packing={batch.packing!r}: behind a prefix a row is one text. Give "
      "batch.packing='stream'."
    )
  if mesh.context > 1:
    raise ValueError(
      f"mesh.context={mesh.context} splits a text, and a prefix lies before all "
      "of it: give context=1."
    )
  if batch.length + adapter.n_tokens > model.max_length:
    raise ValueError(
      f"batch.length={batch.length} behind adapter.n_tokens={adapter.n_tokens} "
      f"is more than model.max_length={model.max_length}: shorten one of them."
    )


def _optimizer(split, optim, schedule, train):
  factor = schedules.make(schedule, train.steps)
  optimizers.make(optim, factor, split.axes)


def _rounds(train, optim):
  if train.diloco is None:
    return
  length = train.diloco.round_steps
  for name in ("steps", "eval_every_steps"):
    value = getattr(train, name)
    if value % length:
      raise ValueError(
        f"train.{name}={value} ends within a round: the replicas of "
        f"train.diloco meet every round_steps={length}, and what is measured "
        "and published stays as it was until then. Make it a multiple."
      )
  is_free = isinstance(optim, optimizers.ScheduleFree)
  if is_free or getattr(optim, "ema", None) is not None:
    what = "optim.name='schedule_free'" if is_free else f"optim.ema={optim.ema}"
    raise ValueError(
      f"{what} averages what one replica trains, and with train.diloco what all "
      "have in the mean is published: leave one of the two out."
    )


def _streamed(model, optim, mesh, train):
  if not getattr(optim, "streamed", False):
    return
  what = (
    "optim.streamed=True fetches the moments of one stacked layer at a time"
  )
  if not model.scanned:
    raise ValueError(
      f"{what}, and model.scanned=False stacks none: leave one of the two out."
    )
  if mesh.stage != 1:
    raise ValueError(
      f"{what}, and mesh.stage={mesh.stage} has them on different devices: give "
      "stage=1, or keep the moments in fewer bits (optim.moments)."
    )
  if train.diloco is not None:
    raise ValueError(
      f"{what}, and train.diloco has a copy for each replica: leave one out."
    )


def _measured(train, checkpoint, eval):
  for key, wish in (
    ("train.stop_early", train.stop_early),
    ("checkpoint.keep_best", checkpoint.keep_best),
  ):
    if wish is None:
      continue
    if not train.eval_every_steps:
      raise ValueError(
        f"{key} is never asked at train.eval_every_steps=0: say how often to "
        "evaluate, or leave it out."
      )
    if wish.metric not in eval.reported:
      raise ValueError(
        f"{key}.metric={wish.metric!r} is reported by no evaluator of "
        "eval.during: choose one of "
        f"{', '.join(eval.reported) or 'none, and add perplexity'}."
      )


def _samples(model, eval, generate):
  writes = {"samples", "python"} & {*eval.during, *eval.final}
  if writes and generate.max_tokens >= model.max_length:
    raise ValueError(
      f"generate.max_tokens={generate.max_tokens} leaves no room for a prompt "
      f"in model.max_length={model.max_length}: lower it."
    )


def _tracked(log):
  track.check(log)


_RULES = (
  _length, _hidden, _apart, _split, _ids, _rows, _columns, _states, _parts,
  _stages, _passes, _sizes, _frozen, _prefix, _ahead, _asked, _examples,
  _compared, _blurred, _mask, _pairs, _written, _optimizer, _rounds, _streamed,
  _measured, _samples, _tracked,
)  # fmt: skip
