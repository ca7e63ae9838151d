// Runs a program in two parts on two executors.
#include "executor.h"

namespace glmlite {

namespace {

class HybridExecutor final : public Executor {
 public:
  HybridExecutor(std::unique_ptr<Executor> first, std::unique_ptr<Executor> second, size_t first_ops, size_t second_ops)
      : first_(std::move(first)),
        second_(std::move(second)),
        shift_(static_cast<int>(first_ops) - 1),
        share_(static_cast<double>(first_ops) / static_cast<double>(first_ops + second_ops)),
        isa_(std::string(first_->isa()) + " + " + second_->isa()) {}

  StepResult run(const Step& step, const CancelFlag* cancel, const Watch* watch) override {
    in_second_.store(false, std::memory_order_relaxed);
    const StepResult half = first_->run(step, cancel, watch);
    if (half.bad_token >= 0) return half;
    Step rest = step;
    rest.input = half.logits;
    in_second_.store(true, std::memory_order_relaxed);
    // Its input was seen as the first part's last value.
    Watch shifted;
    shifted.value = [&](int value, const float* rows, int64_t count, int64_t width) {
      if (value > 0) watch->value(value + shift_, rows, count, width);
    };
    if (watch && watch->expert)
      shifted.expert = [&](int value, const ExpertRows& rows) { watch->expert(value + shift_, rows); };
    return second_->run(rest, cancel, watch ? &shifted : nullptr);
  }
  void share(int64_t count, const std::function<void(int64_t)>& fn) override { first_->share(count, fn); }
  void copy_page(int32_t from, int32_t to) override {
    first_->copy_page(from, to);
    second_->copy_page(from, to);
  }
  void write_prefix(const std::vector<int32_t>& pages) override {
    first_->write_prefix(pages);
    second_->write_prefix(pages);
  }
  size_t weight_bytes() const override { return first_->weight_bytes() + second_->weight_bytes(); }
  size_t kv_bytes() const override { return first_->kv_bytes() + second_->kv_bytes(); }
  size_t scratch_bytes() const override { return first_->scratch_bytes() + second_->scratch_bytes(); }
  void release() override {
    first_->release();
    second_->release();
  }
  int threads() const override { return first_->threads(); }
  void set_threads(int threads) override { first_->set_threads(threads); }
  int threads_now() const override { return first_->threads_now(); }
  const char* isa() const override { return isa_.c_str(); }
  double progress() const override {
    return in_second_.load(std::memory_order_relaxed) ? share_ + (1 - share_) * second_->progress()
                                                      : share_ * first_->progress();
  }

 private:
  const std::unique_ptr<Executor> first_, second_;
  const int shift_;     // from a value's id in the second part to its id in the whole
  const double share_;  // of the first part's ops in all
  const std::string isa_;
  std::atomic<bool> in_second_{false};
};

}  // namespace

std::unique_ptr<Executor> make_hybrid_executor(std::unique_ptr<Executor> first, std::unique_ptr<Executor> second,
                                               size_t first_ops, size_t second_ops) {
  return std::make_unique<HybridExecutor>(std::move(first), std::move(second), first_ops, second_ops);
}

}  // namespace glmlite
