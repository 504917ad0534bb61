#include "coordinator/live.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "nlohmann/json.hpp"

namespace ela::coordinator {
namespace {

void KeepEverySecond(std::vector<v1::StepPoint>* points) {
  size_t kept = 0;
  for (size_t i = 0; i < points->size(); i += 2) (*points)[kept++] = (*points)[i];
  points->resize(kept);
}

void DropAfter(int64_t step, std::vector<v1::StepPoint>* points) {
  while (!points->empty() && points->back().step() > step) points->pop_back();
}

double Real(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  // JSON has no NaN: the trainer writes null.
  if (it != object.end() && it->is_null()) return std::numeric_limits<double>::quiet_NaN();
  return it != object.end() && it->is_number() ? it->get<double>() : 0;
}

}  // namespace

void LossHistory::Add(const v1::StepPoint& point) {
  DropAfter(point.step() - 1, &recent_);
  if (recent_.empty()) DropAfter(point.step() - 1, &older_);
  recent_.push_back(point);
  if (recent_.size() < kRecent) return;
  older_.insert(older_.end(), recent_.begin(), recent_.begin() + kRecent / 2);
  recent_.erase(recent_.begin(), recent_.begin() + kRecent / 2);
  if (older_.size() >= kOlder) KeepEverySecond(&older_);
}

void LossHistory::RewindTo(int64_t step) {
  DropAfter(step, &recent_);
  DropAfter(step, &older_);
  ++epoch_;
  rewound_to_ = step;
}

std::vector<v1::StepPoint> LossHistory::After(int64_t after, size_t limit) const {
  std::vector<v1::StepPoint> points;
  for (const auto* part : {&older_, &recent_}) {
    for (const v1::StepPoint& point : *part) {
      if (point.step() > after) points.push_back(point);
    }
  }
  if (points.size() <= limit || limit == 0) {
    if (limit == 0) points.clear();
    return points;
  }
  std::vector<v1::StepPoint> thinned;
  for (size_t i = 1; i <= limit; ++i) thinned.push_back(points[i * points.size() / limit - 1]);
  return thinned;
}

LossHistory LossHistory::FromMetricsFile(const std::string& path, v1::Progress* progress) {
  LossHistory history;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object() || !object.contains("step")) continue;
    const int64_t step = static_cast<int64_t>(Real(object, "step"));
    if (object.contains("eval_loss")) {
      progress->set_eval_loss(Real(object, "eval_loss"));
      progress->set_eval_step(step);
    }
    if (!object.contains("loss")) continue;
    const int64_t tokens = static_cast<int64_t>(Real(object, "tokens"));
    const double seconds = Real(object, "step_seconds");
    const int64_t step_tokens = tokens - progress->tokens();
    v1::StepPoint point;
    point.set_step(step);
    point.set_loss(Real(object, "loss"));
    if (seconds > 0 && step_tokens > 0) point.set_tokens_per_second(step_tokens / seconds);
    history.Add(point);
    progress->set_step(step);
    progress->set_loss(point.loss());
    progress->set_aux_loss(Real(object, "aux_loss"));
    progress->set_grad_norm(Real(object, "grad_norm"));
    progress->set_learning_rate(Real(object, "lr"));
    progress->set_tokens(tokens);
    progress->set_step_seconds(seconds);
    progress->set_tokens_per_second(point.tokens_per_second());
    if (object.contains("leaks_future")) progress->set_leaks_future(true);
  }
  return history;
}

void StepTimes::Add(double seconds) {
  if (!(seconds > 0)) return;
  if (seconds_.size() < kWindow) {
    seconds_.push_back(seconds);
  } else {
    seconds_[next_++ % kWindow] = seconds;
  }
}

double StepTimes::P99() const {
  if (seconds_.empty()) return 0;
  std::vector<double> sorted = seconds_;
  const size_t index = (sorted.size() * 99) / 100;
  const size_t at = std::min(index, sorted.size() - 1);
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(at), sorted.end());
  return sorted[at];
}

double StepTimes::Mean() const {
  double sum = 0;
  for (const double seconds : seconds_) sum += seconds;
  return seconds_.empty() ? 0 : sum / static_cast<double>(seconds_.size());
}

void Live::BeginAttempt(int32_t number, int64_t now_mono_ms) {
  if (attempt == number) return;
  attempt = number;
  attempt_mono_ms = now_mono_ms;
  progress_mono_ms = now_mono_ms;
  heartbeat_mono_ms = 0;
  heartbeat_unix_ms = 0;
  activity = 0;
  phase = "init";
  step_times = StepTimes();
}

}  // namespace ela::coordinator
