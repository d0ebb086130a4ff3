"""The same tiny models in `transformers`: logits and gradients."""

import numpy as np
import torch
import transformers

from benchmarks.parity import cases, names
from models import deepseek, families, gpt, mixtral
from models.layers.position import Scaling


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
      out = model(torch.tensor(text[None], dtype=torch.long)).logits[0]
      nll += torch.nn.functional.cross_entropy(
        out, torch.tensor(target, dtype=torch.long), reduction="sum"
      )
      logits[row, where] = out.detach()
  (nll / float(batch.weights.sum())).backward()
  gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
  gradients |= {name: load - load.mean() for name, load in loads.items()}
  return logits.numpy(), names.from_theirs(config, gradients)


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
  model = transformers.AutoModelForCausalLM.from_config(
    their_config(config), attn_implementation="eager"
  )
  weights = names.to_theirs(config, cases.params(config))
  tensors = {name: torch.tensor(x) for name, x in weights.items()}
  missing, unexpected = model.load_state_dict(tensors, strict=False)
  tied = {"lm_head.weight"} if config.tied else set()
  assert set(missing) == tied and not unexpected, (missing, unexpected)
  return model.float().eval()


def their_config(config: families.Config) -> transformers.PretrainedConfig:
  """Our Config as theirs."""
  c = config
  if isinstance(c, gpt.Config):
    return transformers.GPT2Config(
      vocab_size=c.vocab_size,
      n_embd=c.d_model,
      n_layer=c.n_layers,
      n_head=c.n_heads,
      n_inner=c.d_ff,
      n_positions=c.max_length,
      layer_norm_epsilon=c.norm_epsilon,
      bos_token_id=None,
      eos_token_id=None,
    )
  if isinstance(c, deepseek.Config):
    return _deepseek(c)
  if isinstance(c, mixtral.Config):
    kind, extra = _experts(c)
  elif c.qk_normed:
    kind, extra = transformers.Qwen3Config, {}
  elif c.qkv_biased:
    kind, extra = transformers.Qwen2Config, {}
  elif c.window is not None:
    kind, extra = transformers.MistralConfig, {"sliding_window": c.window}
  else:
    kind, extra = transformers.LlamaConfig, {}
  return kind(
    vocab_size=c.vocab_size,
    hidden_size=c.d_model,
    num_hidden_layers=c.n_layers,
    num_attention_heads=c.n_heads,
    num_key_value_heads=c.n_kv_heads,
    head_dim=c.d_head,
    intermediate_size=c.d_ff,
    rms_norm_eps=c.norm_epsilon,
    tie_word_embeddings=c.tied,
    **rope(c.rope_theta, c.rope_scaling, c.max_length),
    **extra,
  )


def _experts(config: mixtral.Config) -> tuple[type, dict]:
  e = config.experts
  if config.qk_normed:
    return transformers.Qwen3MoeConfig, {
      "num_experts": e.n_experts,
      "num_experts_per_tok": e.n_active,
      "moe_intermediate_size": config.d_ff,
      "norm_topk_prob": e.gates_normed,
    }
  return transformers.MixtralConfig, {
    "num_local_experts": e.n_experts,
    "num_experts_per_tok": e.n_active,
  }


def _deepseek(config: deepseek.Config) -> transformers.PretrainedConfig:
  c, e, a = config, config.experts, config.attention
  if e.scores == "sigmoid":
    kind = transformers.DeepseekV3Config
    extra = {"num_mtp_layers": 0}
  else:
    kind = transformers.DeepseekV2Config
    is_limited = e.n_groups > 1
    extra = {"topk_method": "group_limited_greedy" if is_limited else "greedy"}
  rotary = rope(c.rope_theta, c.rope_scaling, c.max_length)
  if a.mscale:  # as published: their ratio is the factor of the phases, 1
    del rotary["rope_parameters"]["attention_factor"]
    rotary["rope_parameters"] |= {
      "mscale": a.mscale,
      "mscale_all_dim": a.mscale,
    }
  return kind(
    vocab_size=c.vocab_size,
    hidden_size=c.d_model,
    num_hidden_layers=c.n_layers,
    num_attention_heads=c.n_heads,
    num_key_value_heads=c.n_heads,
    q_lora_rank=a.q_rank,
    kv_lora_rank=a.kv_rank,
    qk_nope_head_dim=a.d_plain,
    qk_rope_head_dim=a.d_rotary,
    v_head_dim=a.d_value,
    intermediate_size=c.d_ff,
    moe_intermediate_size=c.d_expert,
    first_k_dense_replace=c.n_dense,
    n_routed_experts=e.n_experts,
    num_experts_per_tok=e.n_active,
    n_shared_experts=e.n_shared,
    routed_scaling_factor=e.gate_scale,
    norm_topk_prob=e.gates_normed,
    n_group=e.n_groups,
    topk_group=e.n_active_groups,
    rms_norm_eps=c.norm_epsilon,
    tie_word_embeddings=c.tied,
    **rotary,
    **extra,
  )


def rope(theta: float, scaling: Scaling | None, length: int) -> dict:
  """Our rotary settings as theirs, for texts of `length` tokens.

  Their dynamic NTK has the factor f T / M - (f - 1) at T tokens, where it was
  trained on M: with M = T / 2 and f = factor - 1, that is our factor.
  """
  parameters = {"rope_theta": theta, "rope_type": "default"}
  if scaling is None:
    return {"rope_parameters": parameters, "max_position_embeddings": length}
  s = scaling
  parameters |= {"rope_type": s.kind, "factor": s.factor}
  if s.kind == "ntk":
    parameters |= {"rope_type": "dynamic", "factor": s.factor - 1}
    length //= 2
  if s.kind == "yarn":
    low, high = s.turns
    parameters |= {
      "beta_slow": low,
      "beta_fast": high,
      "attention_factor": s.attention_factor,
    }
  if s.kind == "llama3":
    low, high = s.turns
    parameters |= {"low_freq_factor": low, "high_freq_factor": high}
  if s.original_length is not None:
    parameters["original_max_position_embeddings"] = s.original_length
  return {"rope_parameters": parameters, "max_position_embeddings": length}
