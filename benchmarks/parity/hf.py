"""The same tiny models in `transformers`: logits and gradients."""

import functools

import numpy as np
import torch
import transformers

from benchmarks.parity import cases
from convert import catalogue, tensors
from models import families


def run(config: families.Config) -> tuple[np.ndarray, families.Params]:
  """Their logits of `cases.batch`, and the gradients in our tree's shape.

  Segments are read one by one, as if nothing was packed; logits of padding
  are zero.
  """
  model = build(config)
  loads = _count_loads(model)
  batch = cases.batch(config)
  logits, nll = None, torch.zeros(())
  for row, segments in enumerate(batch.segment_ids):
    for segment in set(segments.tolist()) - {0}:
      (where,) = np.nonzero(segments == segment)
      text = {
        name: torch.tensor(getattr(batch, name)[None, row, where]).long()
        for name in ("tokens", "positions", "types")
        if getattr(batch, name) is not None
      }
      if batch.source is not None:
        read = batch.source.tokens[row][
          batch.source.segment_ids[row] == segment
        ]
        text["source"] = torch.tensor(read[None]).long()
      targets = torch.tensor(batch.targets[row, where]).long()
      found = answers(config, model, text)
      for out in found:
        nll += torch.nn.functional.cross_entropy(
          out, targets[: len(out)] % out.shape[-1], reduction="sum"
        )
      width = sum(out.shape[-1] for out in found)
      if logits is None:
        logits = torch.zeros((*batch.tokens.shape, width))
      at = 0
      for out in found:
        end = at + out.shape[-1]
        logits[row, where[: len(out)], at:end] = out.detach()
        at = end
  (nll / float(batch.weights.sum())).backward()
  gradients = {
    name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
    for name, p in model.named_parameters()
  }
  gradients |= {name: load - load.mean() for name, load in loads.items()}
  return logits.numpy(), tensors.from_theirs(config, gradients)


def answers(
  config: families.Config,
  model: torch.nn.Module,
  text: dict[str, torch.Tensor],
) -> list[torch.Tensor]:
  """Their logits of one text, of all that `cases.asked` says.

  [tokens, ...]; of what is asked of the text as a whole, [1, ...].
  """
  if "source" in text:
    read, written = text["source"], text["tokens"]
    return [model(input_ids=read, decoder_input_ids=written).logits[0]]
  more = {}
  if not families.is_causal(config):
    if config.first_position:
      more["position_ids"] = config.first_position + text["positions"]
    if "types" in text:
      kind = "global_attention_mask" if config.window else "token_type_ids"
      more[kind] = text["types"]
  if isinstance(model, transformers.BigBirdPreTrainedModel):
    # After a short text it would read long ones whole, too.
    getattr(model, "bert", model).set_attention_type("block_sparse")
  out = model(text["tokens"], **more)
  asked = cases.asked(config)
  if asked == ("words", "texts"):
    return [out.prediction_logits[0], out.seq_relationship_logits]
  if asked == ("spans",):
    return [torch.stack([out.start_logits, out.end_logits], -1)[0]]
  if asked == ("pooled",):
    return [out.pooler_output]
  return [out.logits if asked == ("texts",) else out.logits[0]]


def write(
  config: families.Config, sources: list[list[int]], n_new: int
) -> list[list[int]]:
  """What their `generate` writes greedily about sources, padded on the right."""
  model, longest = build(config), max(map(len, sources))
  tokens = torch.zeros((len(sources), longest), dtype=torch.long)
  for row, source in zip(tokens, sources, strict=True):
    row[: len(source)] = torch.tensor(source)
  texts = model.generate(
    tokens,
    attention_mask=(tokens > 0).long(),
    max_new_tokens=n_new,
    min_new_tokens=n_new,
    do_sample=False,
    num_beams=1,
  )
  return texts[:, 1:].tolist()


def _count_loads(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """Name of every router's bias -> the tokens of each expert, as they come."""
  loads = {}

  def watch(name, size):
    loads[name] = np.zeros(size, np.float32)

    def add(module, inputs, outputs):
      loads[name] += np.bincount(outputs[2].reshape(-1), minlength=size)

    return add

  for name, bias in model.named_buffers():
    router, _, last = name.rpartition(".")
    if last == "e_score_correction_bias":
      hook = watch(name, len(bias))
      model.get_submodule(router).register_forward_hook(hook)
  return loads


def build(config: families.Config) -> torch.nn.Module:
  """Their model with the weights of `cases.params`, in fp32."""
  kind, *_ = catalogue.theirs(config)["architectures"]
  model = getattr(transformers, kind)._from_config(
    their_config(config), attn_implementation="eager"
  )
  if not config.tied and "lm_head.weight" in model.all_tied_weights_keys:
    # Theirs ties T5's head whatever the config says, until two are loaded.
    head = model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(head.detach().clone())
  weights = tensors.to_theirs(config, cases.params(config))
  loaded = {name: torch.tensor(x) for name, x in weights.items()}
  missing, unexpected = model.load_state_dict(loaded, strict=False)
  assert not unexpected, unexpected
  places = {name: x.data_ptr() for name, x in model.state_dict().items()}
  held = {places[name] for name in loaded}
  parameters = dict(model.named_parameters(remove_duplicate=False))
  for name in missing:
    # Else it is tied to one that was loaded, or zeros as in BART.
    if places[name] not in held and name in parameters:
      # No head reads it: a gradient that reaches it is an error.
      parameters[name].register_hook(functools.partial(_refuse, name))
  return model.float().eval()


def _refuse(name: str, gradient: torch.Tensor) -> None:
  raise AssertionError(f"{name} is read, and has no place in our tree")


def their_config(config: families.Config) -> transformers.PretrainedConfig:
  """Our Config as theirs; a padding token would have no gradient."""
  settings = {**catalogue.theirs(config), "pad_token_id": None}
  return transformers.AutoConfig.for_model(
    **{k: v for k, v in settings.items() if k != "architectures"}
  )
