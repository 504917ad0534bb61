#include "proto/job/plan.h"

#include <algorithm>
#include <string>
#include <utility>

namespace ela::job {
namespace {

class ParameterList {
 public:
  void Matrix(std::string name, int64_t rows, int64_t columns, bool is_expert = false) {
    list_.push_back({std::move(name), {rows, columns}, is_expert, /*decays=*/true, part_});
  }
  // A gain or a bias: weight decay would pull it away from the value that means "none".
  void Vector(std::string name, int64_t size) {
    list_.push_back({std::move(name), {size}, /*is_expert=*/false, /*decays=*/false, part_});
  }
  void NextPart() { ++part_; }
  std::vector<ParameterInfo> Take() { return std::move(list_); }

 private:
  std::vector<ParameterInfo> list_;
  int64_t part_ = 0;
};

void AddLayer(const v1::ModelSpec& model, const std::string& prefix, ParameterList* list) {
  const int64_t d = model.hidden_size();
  list->Vector(prefix + "norm1.weight", d);
  for (const char* name : {"q", "k", "v", "o"}) {
    list->Matrix(prefix + "attn." + name + ".weight", d, d);
  }
  if (model.residual() == v1::RESIDUAL_PRE_NORM) list->Vector(prefix + "norm2.weight", d);
  list->Matrix(prefix + "moe.router.weight", model.moe().num_experts(), d);
  list->Vector(prefix + "moe.router.bias", model.moe().num_experts());
  const int64_t f = model.moe().intermediate_size();
  for (int64_t e = 0; e < model.moe().num_experts(); ++e) {
    const std::string expert = prefix + "moe.experts." + std::to_string(e);
    list->Matrix(expert + ".up.weight", 2 * f, d, /*is_expert=*/true);
    list->Matrix(expert + ".down.weight", d, f, /*is_expert=*/true);
  }
  if (!model.memory_lobe().enabled()) return;
  if (model.memory_lobe().norm()) list->Vector(prefix + "lobe.norm.weight", d);
  for (const char* name : {"q", "k", "v"}) {
    list->Matrix(prefix + "lobe." + name + ".weight", d, d);
  }
}

// Elements of the matrices of one layer, with `experts` experts counted.
int64_t LayerMatrixCount(const v1::ModelSpec& model, int64_t experts) {
  const int64_t d = model.hidden_size();
  const int64_t attention = 4 * d * d;
  const int64_t router = model.moe().num_experts() * d;
  const int64_t expert = 3 * model.moe().intermediate_size() * d;
  const int64_t lobe = model.memory_lobe().enabled() ? 3 * d * d : 0;
  return attention + router + experts * expert + lobe;
}

// Elements of the gains and the router bias of one layer.
int64_t LayerVectorCount(const v1::ModelSpec& model) {
  int64_t gains = 1;
  if (model.residual() == v1::RESIDUAL_PRE_NORM) ++gains;
  if (model.memory_lobe().enabled() && model.memory_lobe().norm()) ++gains;
  return gains * model.hidden_size() + model.moe().num_experts();
}

}  // namespace

int64_t ParameterInfo::numel() const {
  int64_t product = 1;
  for (int64_t extent : shape) product *= extent;
  return product;
}

std::vector<int64_t> FlatOffsets(const std::vector<ParameterInfo>& parameters) {
  std::vector<int64_t> offsets;
  int64_t end = 0;
  const std::vector<int64_t>* before = nullptr;
  for (const ParameterInfo& parameter : parameters) {
    const std::vector<int64_t>& shape = parameter.shape;
    const bool continues = before != nullptr && before->size() == 2 && shape.size() == 2 &&
                           before->back() == shape.back();
    const int64_t beyond = end % kParameterAlignment;
    if (!continues && beyond > 0) end += kParameterAlignment - beyond;
    offsets.push_back(end);
    end += parameter.numel();
    before = &shape;
  }
  offsets.push_back(end);
  return offsets;
}

bool IsOfLobe(const ParameterInfo& parameter) {
  return parameter.name.find(".lobe.") != std::string::npos;
}

std::vector<ParameterInfo> Parameters(const v1::ModelSpec& model) {
  ParameterList list;
  list.Matrix("embed.weight", model.vocab_size(), model.hidden_size());
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    list.NextPart();
    AddLayer(model, "layers." + std::to_string(i) + ".", &list);
  }
  if (model.final_norm()) list.Vector("final_norm.weight", model.hidden_size());
  return list.Take();
}

int64_t PaddedPart(int64_t numel, int64_t ranks) {
  const int64_t multiple = kParameterAlignment * ranks;
  return (numel + multiple - 1) / multiple * multiple;
}

int64_t LongestBucket(int64_t ranks, int64_t bucket_numel) {
  const int64_t multiple = kParameterAlignment * ranks;
  return std::max(bucket_numel / multiple, int64_t{1}) * multiple;
}

// In closed form, so that a job of any legal size is counted without listing its tensors.
int64_t ParameterCount(const v1::ModelSpec& model) {
  const int64_t d = model.hidden_size();
  const int64_t layer =
      LayerMatrixCount(model, model.moe().num_experts()) + LayerVectorCount(model);
  return model.vocab_size() * d + model.num_layers() * layer + (model.final_norm() ? d : 0);
}

int64_t ActiveParameterCount(const v1::ModelSpec& model) {
  return model.vocab_size() * model.hidden_size() +
         model.num_layers() * LayerMatrixCount(model, model.moe().top_k());
}

double ModelFlopsPerToken(const v1::ModelSpec& model, int64_t seq_len) {
  const int64_t every = model.attention().softmax_every();
  const int64_t softmax_layers = every > 0 ? model.num_layers() / every : 0;
  return 6.0 * static_cast<double>(ActiveParameterCount(model)) +
         12.0 * static_cast<double>(seq_len) * static_cast<double>(model.hidden_size()) *
             static_cast<double>(softmax_layers);
}

}  // namespace ela::job
