#include "trainer/model/build_layers.h"

#include <utility>

#include "trainer/layers/ela_mixer.h"
#include "trainer/layers/softmax_mixer.h"

namespace ela::trainer {
namespace {

Parameter FusedParameterOf(const ParameterStore& store, const std::string& prefix) {
  const std::string first = prefix + "q.weight", last = prefix + "v.weight";
  Parameter p{store.FusedParam(first, last), {}};
  if (store.options().gradients) p.grad = store.FusedGrad(first, last);
  return p;
}

Communicator* SequenceOf(const Mesh* mesh) { return mesh == nullptr ? nullptr : &mesh->sequence(); }

std::unique_ptr<AttentionLayer> BuildAttention(const v1::ModelSpec& model,
                                               const ParameterStore& store, const Mesh* mesh,
                                               bool causal, int64_t i) {
  const std::string prefix = "layers." + std::to_string(i) + ".";
  const v1::AttentionSpec& spec = model.attention();
  const int64_t heads = model.num_attention_heads(), head_dim = model.hidden_size() / heads;
  std::unique_ptr<Mixer> mixer;
  if (spec.softmax_every() > 0 && (i + 1) % spec.softmax_every() == 0) {
    mixer = std::make_unique<SoftmaxMixer>(kernels::SoftmaxAttentionConfig{heads, head_dim, causal},
                                           SequenceOf(mesh));
  } else {
    kernels::ElaConfig config;
    config.kernel = FeatureMapOf(spec.kernel());
    config.num_heads = heads;
    config.head_dim = config.value_dim = head_dim;
    config.causal = causal;
    if (spec.decay() == v1::DECAY_HEAD) config.log_decay = kernels::HeadLogDecay(heads);
    mixer = std::make_unique<ElaMixer>(std::move(config), SequenceOf(mesh));
  }
  AttentionParameters parameters{ParameterOf(store, prefix + "norm1.weight"),
                                 FusedParameterOf(store, prefix + "attn."),
                                 ParameterOf(store, prefix + "attn.o.weight")};
  return std::make_unique<AttentionLayer>(std::move(parameters), std::move(mixer), heads,
                                          spec.rope_theta());
}

std::unique_ptr<MoeLayer> BuildMoe(const v1::ModelSpec& model, const ParameterStore& store,
                                   const Mesh* mesh, int64_t i) {
  const std::string prefix = "layers." + std::to_string(i) + ".moe.";
  const MoeConfig config{model.moe().num_experts(), model.moe().top_k(),
                         model.moe().intermediate_size(), LabelBiasOf(model.moe().label_bias())};
  const int64_t begin = mesh == nullptr ? 0 : mesh->expert_begin();
  const int64_t end = mesh == nullptr ? config.num_experts : mesh->expert_end();
  MoeParameters parameters;
  parameters.router = ParameterOf(store, prefix + "router.weight");
  parameters.router_bias = ParameterOf(store, prefix + "router.bias");
  for (int64_t e = begin; e < end; ++e) {
    const std::string expert = prefix + "experts." + std::to_string(e);
    parameters.up.push_back(ParameterOf(store, expert + ".up.weight"));
    parameters.down.push_back(ParameterOf(store, expert + ".down.weight"));
  }
  return std::make_unique<MoeLayer>(config, std::move(parameters),
                                    mesh == nullptr ? nullptr : &mesh->expert(), begin);
}

std::unique_ptr<MemoryLobe> BuildLobe(const v1::ModelSpec& model, const ParameterStore& store,
                                      const Mesh* mesh, int64_t i) {
  const v1::MemoryLobeSpec& spec = model.memory_lobe();
  if (!spec.enabled()) return nullptr;
  const std::string prefix = "layers." + std::to_string(i) + ".lobe.";
  kernels::ElaConfig config;
  config.kernel = FeatureMapOf(model.attention().kernel());
  config.num_heads = spec.num_heads();
  config.head_dim = config.value_dim = model.hidden_size() / spec.num_heads();
  config.causal = spec.mode() == v1::LOBE_MODE_CAUSAL;
  MemoryLobeParameters parameters;
  if (spec.norm()) parameters.norm = ParameterOf(store, prefix + "norm.weight");
  parameters.qkv = FusedParameterOf(store, prefix);
  return std::make_unique<MemoryLobe>(
      std::move(parameters), std::make_unique<ElaMixer>(std::move(config), SequenceOf(mesh)),
      spec.num_heads());
}

}  // namespace

Parameter ParameterOf(const ParameterStore& store, const std::string& name) {
  Parameter p{store.param(name), {}};
  if (store.options().gradients) p.grad = store.grad(name);
  return p;
}

std::unique_ptr<ResidualLayer> BuildLayer(const v1::ModelSpec& model, const ParameterStore& store,
                                          const Mesh* mesh, bool causal, int64_t i) {
  auto attention = BuildAttention(model, store, mesh, causal, i);
  auto moe = BuildMoe(model, store, mesh, i);
  auto lobe = BuildLobe(model, store, mesh, i);
  if (model.residual() == v1::RESIDUAL_HYPER_LINK) {
    return std::make_unique<HyperLinkLayer>(std::move(attention), std::move(moe), std::move(lobe));
  }
  return std::make_unique<PreNormLayer>(
      std::move(attention), std::move(moe), std::move(lobe),
      ParameterOf(store, "layers." + std::to_string(i) + ".norm2.weight"));
}

kernels::FeatureMap FeatureMapOf(v1::Kernel kernel) {
  switch (kernel) {
    case v1::KERNEL_SUM_SQUARED:
      return kernels::FeatureMap::kSumSquared;
    case v1::KERNEL_SUB_SQUARED:
      return kernels::FeatureMap::kSubSquared;
    case v1::KERNEL_MODULATED_DOT:
      return kernels::FeatureMap::kModulatedDot;
    default:
      return kernels::FeatureMap::kHadamardExp;
  }
}

kernels::LabelBias LabelBiasOf(v1::LabelBias bias) {
  switch (bias) {
    case v1::LABEL_BIAS_INNER:
      return kernels::LabelBias::kInner;
    case v1::LABEL_BIAS_OUTER:
      return kernels::LabelBias::kOuter;
    default:
      return kernels::LabelBias::kNone;
  }
}

}  // namespace ela::trainer
