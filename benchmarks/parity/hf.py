"""The same tiny models in `transformers`: logits and gradients."""

import numpy as np
import torch
import transformers

from benchmarks.parity import cases
from convert import catalogue, tensors
from data.batch import Source
from models import families


def run(config: families.Config) -> tuple[np.ndarray, families.Params]:
  """Their logits of `cases.batch`, and the gradients in our tree's shape.

  Segments are read one by one, as if nothing was packed; logits of padding
  are zero.
  """
  model = build(config)
  loads = _count_loads(model)
  batch = cases.batch(config)
  logits = torch.zeros((*batch.tokens.shape, config.vocab_size))
  nll = torch.zeros(())
  for row, segments in enumerate(batch.segment_ids):
    for segment in set(segments.tolist()) - {0}:
      (where,) = np.nonzero(segments == segment)
      text, target = batch.tokens[row, where], batch.targets[row, where]
      out = _read(model, text, _of_segment(batch.source, row, segment))[0]
      nll += torch.nn.functional.cross_entropy(
        out, torch.tensor(target, dtype=torch.long), reduction="sum"
      )
      logits[row, where] = out.detach()
  (nll / float(batch.weights.sum())).backward()
  gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
  gradients |= {name: load - load.mean() for name, load in loads.items()}
  return logits.numpy(), tensors.from_theirs(config, gradients)


def _of_segment(
  source: Source | None, row: int, segment: int
) -> np.ndarray | None:
  """The other text that goes with a segment."""
  if source is None:
    return None
  return source.tokens[row][source.segment_ids[row] == segment]


def _read(
  model: torch.nn.Module, text: np.ndarray, source: np.ndarray | None
) -> torch.Tensor:
  """Logits [1, T, V] of one text, maybe behind another."""
  text = torch.tensor(text[None], dtype=torch.long)
  if source is None:
    return model(text).logits
  read = torch.tensor(source[None], dtype=torch.long)
  return model(input_ids=read, decoder_input_ids=text).logits


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
  kind, *_ = catalogue.of(config).theirs(config)["architectures"]
  model = getattr(transformers, kind)._from_config(
    their_config(config), attn_implementation="eager"
  )
  tied = set(model.all_tied_weights_keys)
  if not config.tied and "lm_head.weight" in tied:
    # Theirs ties T5's head whatever the config says, until two are loaded.
    tied.remove("lm_head.weight")
    head = model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(head.detach().clone())
  weights = tensors.to_theirs(config, cases.params(config))
  loaded = {name: torch.tensor(x) for name, x in weights.items()}
  missing, unexpected = model.load_state_dict(loaded, strict=False)
  unlearnt = {"final_logits_bias"}  # zeros in BART
  assert set(missing) - unlearnt == tied, (missing, tied)
  assert not unexpected, unexpected
  return model.float().eval()


def their_config(config: families.Config) -> transformers.PretrainedConfig:
  """Our Config as theirs; a padding token would have no gradient."""
  settings = {**catalogue.of(config).theirs(config), "pad_token_id": None}
  return transformers.AutoConfig.for_model(
    **{k: v for k, v in settings.items() if k != "architectures"}
  )
