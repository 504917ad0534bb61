// Saving a step of a checkpoint beside writing the same bytes to one plain file, both made durable,
// in turns on the same file system.
//
//   checkpoint_bench [--dir FOLDER] [--mib N] [--rounds N]
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "proto/status_macros.h"

namespace ela::checkpoints {
namespace {

struct Options {
  std::string folder = std::filesystem::temp_directory_path().string();
  int64_t mib = 256;
  int rounds = 7;
};

/// Like weights and moments of 64 tensors: normal numbers, which do not compress.
class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), folder_(options.folder + "/ela_checkpoint_bench") {
    values_.resize(static_cast<size_t>(options.mib) << 18);
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    for (float& x : values_) x = normal(engine);
  }
  ~Bench() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  absl::Status Run() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    ELA_ASSIGN_OR_RETURN(catalog_, Catalog::OpenForWriting(folder_ + "/checkpoints", 1));
    std::vector<double> save, plain, read;
    for (int i = 0; i <= options_.rounds; ++i) {
      ELA_ASSIGN_OR_RETURN(const double saved, Time([&] { return Save(i + 1); }));
      ELA_ASSIGN_OR_RETURN(const double written, Time([&] { return WritePlainFile(); }));
      ELA_ASSIGN_OR_RETURN(const double checked, Time([&] { return ReadBack(i + 1); }));
      ELA_RETURN_IF_ERROR(catalog_->Collect(1, 0));
      if (i > 0) save.push_back(saved), plain.push_back(written), read.push_back(checked);
    }
    std::printf("%ld MiB in 64 tensors, medians of %d rounds in turns, %s\n", options_.mib,
                options_.rounds, options_.folder.c_str());
    Line("save: shard, catalog, synced", save);
    Line("one plain file, synced", plain);
    Line("read back, checksums checked", read);
    std::printf("save / plain file: %.2fx the time\n", Median(save) / Median(plain));
    return absl::OkStatus();
  }

 private:
  static double Median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
  }
  static absl::StatusOr<double> Time(const std::function<absl::Status()>& work) {
    const auto start = std::chrono::steady_clock::now();
    ELA_RETURN_IF_ERROR(work());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  void Line(const char* what, const std::vector<double>& seconds) const {
    const double rate = static_cast<double>(options_.mib) / Median(seconds);
    std::printf("%-30s %9.1f ms %9.0f MiB/s\n", what, Median(seconds) * 1e3, rate);
  }

  absl::Status Save(int64_t step) {
    constexpr int64_t kTensors = 64;
    const int64_t numel = static_cast<int64_t>(values_.size()) / kTensors;
    std::vector<Piece> pieces;
    v1::StepManifest manifest;
    manifest.set_step(step);
    manifest.set_attempt(1);
    manifest.mutable_state()->set_step(step);
    for (int64_t i = 0; i < kTensors; ++i) {
      const std::string name = "model/" + std::to_string(i);
      pieces.push_back({name, 0, numel, values_.data() + i * numel, sizeof(float)});
      v1::TensorRecord& record = *manifest.add_tensors();
      record.set_name(name);
      record.set_dtype("f32");
      record.add_shape(numel);
    }
    WriteOptions write;
    write.path = folder_ + "/checkpoints";
    write.step = step;
    write.attempt = 1;
    ELA_ASSIGN_OR_RETURN(*manifest.add_writers(), WriteShard(write, pieces));
    manifest.set_bytes(manifest.writers(0).bytes());
    return catalog_->Commit(manifest);
  }

  absl::Status ReadBack(int64_t step) {
    ELA_ASSIGN_OR_RETURN(const v1::StepManifest manifest, catalog_->Get(step));
    ELA_ASSIGN_OR_RETURN(const auto reader, StepReader::Open(folder_ + "/checkpoints", manifest));
    return reader->Verify([](const absl::Status&) {});
  }

  absl::Status WritePlainFile() const {
    const std::string path = folder_ + "/plain";
    const auto failed = [&] { return absl::ErrnoToStatus(errno, path); };
    std::filesystem::remove(path);
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0) return failed();
    const char* at = reinterpret_cast<const char*>(values_.data());
    size_t left = values_.size() * sizeof(float);
    while (left > 0) {
      const ssize_t wrote = write(file, at, std::min<size_t>(left, 1 << 20));
      if (wrote < 0) return close(file), failed();
      at += wrote;
      left -= static_cast<size_t>(wrote);
    }
    if (fsync(file) != 0) return close(file), failed();
    close(file);
    const int folder = open(folder_.c_str(), O_RDONLY | O_DIRECTORY);
    if (folder < 0) return failed();
    const int synced = fsync(folder);
    close(folder);
    return synced == 0 ? absl::OkStatus() : failed();
  }

  Options options_;
  std::string folder_;
  std::vector<float> values_;
  std::unique_ptr<Catalog> catalog_;
};

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--dir") {
      options.folder = argv[i + 1];
    } else if (option == "--mib") {
      options.mib = std::max(1, std::atoi(argv[i + 1]));
    } else if (option == "--rounds") {
      options.rounds = std::max(1, std::atoi(argv[i + 1]));
    }
  }
  const absl::Status status = Bench(options).Run();
  if (!status.ok()) std::fprintf(stderr, "checkpoint_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace ela::checkpoints

int main(int argc, char** argv) { return ela::checkpoints::Main(argc, argv); }
