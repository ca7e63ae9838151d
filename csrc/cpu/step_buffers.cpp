#include "step_buffers.h"

#include <string>

namespace glmlite {

StepBuffers::StepBuffers(const Program& program, const Fusion& fusion, const Strips& strips, const CpuKernels& kernels,
                         Team& team)
    : program_(program),
      fusion_(fusion),
      kernels_(kernels),
      team_(team),
      plan_(plan_buffers(
          strips.places(fusion.values),
          [](int64_t width) { return align64(static_cast<size_t>(width) * sizeof(float)); },
          [](int64_t width) { return align64(static_cast<size_t>(act_bytes(width, 1))); })),
      buffers_(plan_.buffers.size()) {
  for (const ValueInfo& v : program.values)
    if (v.quantized) row_bytes_ = std::max(row_bytes_, align64(static_cast<size_t>(act_bytes(v.width, 1))));
}

void StepBuffers::resize(int64_t tokens, int64_t part_rows, size_t scratch) {
  const auto bytes_of = [&](const Buffer& buffer) {
    return buffer.row_bytes * static_cast<size_t>(buffer.room == Room::kPart ? part_rows : tokens);
  };
  size_t bytes = 0;
  for (const Buffer& buffer : plan_.buffers) bytes += bytes_of(buffer);
  values_.reset();
  values_ = Memory(bytes, "a step of " + std::to_string(tokens) + " tokens");
  size_t at = 0;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    buffers_[i] = values_.as<float>(at);
    at += bytes_of(plan_.buffers[i]);
  }
  own_row_ = align64(scratch);
  scratch_per_thread_ = own_row_ + row_bytes_;
  scratch_.reset();
  scratch_ = Memory(scratch_per_thread_ * static_cast<size_t>(team_.threads()), "scratch");
}

void StepBuffers::begin(const Step& step, bool fused) {
  step_ = &step;
  tokens_ = rows_ = static_cast<int64_t>(step.tokens.size());
  first_ = 0;
  fused_ = fused;
}

void StepBuffers::enter(const Part& part) {
  first_ = part.begin;
  rows_ = part.end - part.begin;
}

Activations StepBuffers::activations(int id, int thread) const {
  const int buffer = plan_.values[id].quantized;
  if (buffer < 0) return {value(id), nullptr};
  if (rows(id) > 1) return {value(id), reinterpret_cast<const uint8_t*>(buffers_[buffer])};
  uint8_t* row = scratch(thread) + own_row_;
  kernels_.quantize(value(id), program_.values[id].width, 0, 1, 1, row);
  return {value(id), row};
}

void StepBuffers::quantize_rows(int id, int64_t begin, int64_t end) const {
  const int buffer = plan_.values[id].quantized;
  if (buffer < 0 || rows(id) == 1) return;
  kernels_.quantize(value(id), program_.values[id].width, begin, end, rows(id),
                    reinterpret_cast<uint8_t*>(buffers_[buffer]));
}

}  // namespace glmlite
