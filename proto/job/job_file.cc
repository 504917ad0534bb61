#include "proto/job/job_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "proto/job/reader.h"
#include "proto/job/text.h"
#include "proto/job/writer.h"
#include "proto/job/yaml_tree.h"
#include "proto/status_macros.h"

namespace ela::job {

absl::StatusOr<v1::TrainingJob> ParseJob(std::string_view text, std::string_view file_name) {
  ELA_ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(text, file_name));
  if (root.kind == YamlNode::Kind::kNull) {
    return absl::InvalidArgumentError(
        StrCat(file_name, ": is empty; a job file starts with apiVersion: ela/v1"));
  }
  v1::TrainingJob job;
  ELA_RETURN_IF_ERROR(FillMessage(root, std::string(file_name), "", &job));
  return job;
}

absl::StatusOr<v1::TrainingJob> LoadJobFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    const std::string problem = std::strerror(errno);
    return errno == ENOENT ? absl::NotFoundError(StrCat(path, ": no such file"))
                           : absl::InvalidArgumentError(StrCat(path, ": ", problem));
  }
  std::string text(kMaxYamlBytes + 1,
                   '\0');  // one more than is accepted: a larger file is refused, not cut
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad() || (file.fail() && !file.eof())) {
    return absl::InvalidArgumentError(StrCat(path, ": cannot be read; is it a file?"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return ParseJob(text, path);
}

std::string ToYaml(const v1::TrainingJob& job) { return JsonToYaml(MessageToJson(job)); }
std::string ToJson(const v1::TrainingJob& job) { return JsonText(MessageToJson(job)); }
std::string ModelToJson(const v1::ModelSpec& model) { return JsonText(MessageToJson(model)); }

absl::StatusOr<v1::ModelSpec> ModelFromJson(std::string_view json, std::string_view file_name) {
  ELA_ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(json, file_name));
  v1::ModelSpec model;
  ELA_RETURN_IF_ERROR(FillMessage(root, std::string(file_name), "", &model));
  return model;
}

}  // namespace ela::job
