// Steps with known contents, saved as any number of writers would.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"

namespace ela::checkpoints {

/// Tensors whose sizes divide by nothing, with contents that depend on the seed.
class Model {
 public:
  Model() = default;  // add your own
  explicit Model(uint32_t seed) {
    Add("model/embed.weight", {37, 29}, seed);
    Add("model/layers.0.norm1.gain", {29}, seed + 1);
    Add("model/layers.0.moe.router.bias", {1}, seed + 2);
    Add("adam_m/embed.weight", {37, 29}, seed + 3);
    Add("adam_v/embed.weight", {37, 29}, seed + 4);
  }
  void Add(const std::string& name, const std::vector<int64_t>& shape, uint32_t seed) {
    v1::TensorRecord record;
    record.set_name(name);
    record.set_dtype("f32");
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    record.mutable_shape()->Assign(shape.begin(), shape.end());
    tensors_.push_back(record);
    std::vector<float>& values = values_[name];
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = (seed * 2654435761u + static_cast<uint32_t>(i)) * 2246822519u;
      values.push_back(static_cast<float>(bits >> 8) / 16777216.0f);
    }
  }

  /// What writer `rank` of `world` holds: of the tensors laid end to end, its part.
  std::vector<Piece> PiecesOf(int rank, int world) const {
    int64_t total = 0;
    for (const auto& [name, values] : values_) total += static_cast<int64_t>(values.size());
    const int64_t begin = total * rank / world, end = total * (rank + 1) / world;
    std::vector<Piece> pieces;
    int64_t at = 0;
    for (const auto& [name, values] : values_) {
      const int64_t size = static_cast<int64_t>(values.size());
      const int64_t from = std::max<int64_t>(begin - at, 0), to = std::min(end - at, size);
      if (from < to) pieces.push_back({name, from, to, values.data() + from, sizeof(float)});
      at += size;
    }
    return pieces;
  }

  const std::vector<v1::TensorRecord>& tensors() const { return tensors_; }
  const std::map<std::string, std::vector<float>>& values() const { return values_; }

 private:
  std::vector<v1::TensorRecord> tensors_;
  std::map<std::string, std::vector<float>> values_;
};

struct SaveOptions {
  int64_t step = 100, attempt = 1;
  int world = 3;
  size_t chunk_bytes = 512;
  size_t sst_bytes = 2048;
};

/// Writes all shards and returns the manifest to commit.
inline absl::StatusOr<v1::StepManifest> WriteStep(const std::string& path, const Model& model,
                                                  const SaveOptions& options) {
  v1::StepManifest manifest;
  manifest.set_step(options.step);
  manifest.set_attempt(options.attempt);
  manifest.mutable_state()->set_step(options.step);
  for (const v1::TensorRecord& tensor : model.tensors()) *manifest.add_tensors() = tensor;
  for (int rank = 0; rank < options.world; ++rank) {
    const WriteOptions write = {path, options.step,        options.attempt,
                                rank, options.chunk_bytes, options.sst_bytes};
    auto writer = WriteShard(write, model.PiecesOf(rank, options.world));
    if (!writer.ok()) return writer.status();
    manifest.set_bytes(manifest.bytes() + writer->bytes());
    *manifest.add_writers() = *std::move(writer);
  }
  return manifest;
}

inline absl::Status SaveStep(Catalog* catalog, const std::string& path, const Model& model,
                             const SaveOptions& options) {
  auto manifest = WriteStep(path, model, options);
  if (!manifest.ok()) return manifest.status();
  return catalog->Commit(*manifest);
}

/// Compares every tensor, read in `parts` intervals. OK, or the first error or difference.
inline absl::Status CompareStep(StepReader* reader, const Model& model, int parts = 1) {
  for (const auto& [name, values] : model.values()) {
    const int64_t count = static_cast<int64_t>(values.size());
    for (int part = 0; part < parts; ++part) {
      const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
      std::vector<float> read(static_cast<size_t>(end - begin), -1.0f);
      const absl::Status status = reader->Read(name, begin, end, read.data());
      if (!status.ok()) return status;
      if (std::memcmp(read.data(), values.data() + begin, read.size() * sizeof(float)) != 0) {
        return absl::InternalError("wrong values were read of " + name);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace ela::checkpoints
