// Every op on the emulated GPU against the CPU's, on small shapes: for the sanitizers, which see the kernels here, and
// for schedules. How exact results are, the tests in TypeScript tell.
//   kernels_test [SEEDS]     seeds 0 to SEEDS - 1; default 2
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/library.h"
#include "native/half.h"
#include "native/parallel.h"
#include "runtime.h"

namespace {

using namespace fapo;

int cases = 0, failures = 0;

size_t bytes_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

double value_of(DType dtype, const void* data, int64_t i) {
  if (dtype == DType::float32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return dtype == DType::bfloat16 ? to_float(bf16{bits}) : to_float(f16{bits});
}

// Both sides may be off by what test/tolerances.ts allows, and round 16-bit results to different sides.
bool near(DType dtype, double got, double want) {
  if (want != want || std::isinf(want)) return want != want ? got != got : got == want;
  const double relative = dtype == DType::float32 ? 1e-5 : dtype == DType::bfloat16 ? 0x1p-7 : 0x1p-10;
  const double absolute = dtype == DType::float16 ? 0x1p-24 : 2e-6;
  return std::fabs(got - want) <= absolute + relative * std::fabs(want);
}

// Host memory of the arguments of a case.
class Host {
 public:
  template <typename T>
  Array<T> array(std::vector<std::remove_const_t<T>> values) {
    const auto size = static_cast<int64_t>(values.size());
    auto* data = static_cast<std::remove_const_t<T>*>(room(values.size() * sizeof(T)));
    if (size) std::memcpy(data, values.data(), values.size() * sizeof(T));
    return {data, size, kCpu};
  }
  template <typename T>
  Array<T> out(int64_t size) {
    return array<T>(std::vector<T>(static_cast<size_t>(size)));
  }
  // Rows of `columns` elements, `stride` apart; without a value they are outputs.
  template <typename M, typename Value>
  M matrix(DType dtype, int64_t rows, int64_t columns, int64_t stride, const Value& value) {
    const int64_t size = (rows - 1) * stride + columns;
    void* data = room(static_cast<size_t>(size) * bytes_of(dtype));
    for (int64_t i = 0; i < size; ++i) {
      const float x = i % stride < columns ? value(i / stride, i % stride) : NAN;
      if (dtype == DType::float32) static_cast<float*>(data)[i] = x;
      if (dtype == DType::bfloat16) static_cast<uint16_t*>(data)[i] = from_float<bf16>(x).bits;
      if (dtype == DType::float16) static_cast<uint16_t*>(data)[i] = from_float<f16>(x).bits;
    }
    return {data, size, stride, dtype, kCpu};
  }

 private:
  void* room(size_t bytes) { return memory_.emplace_back(bytes + 1).data(); }
  std::deque<std::vector<char>> memory_;
};

// Moves the arguments of an op to device 0, and compares what the op wrote there with what the CPU wrote.
class OnDevice {
 public:
  ~OnDevice() {
    for (const Moved& m : moved_) cudaFree(m.there);
  }

  template <typename Args>
  void move(Args& args) {
    args.fields([this](const char* name, auto& field) { move_field(name, field); });
  }

  bool outputs_agree() {
    bool all = true;
    for (const Moved& m : moved_) {
      if (!m.is_output) continue;
      std::vector<char> got(m.bytes);
      cudaMemcpy(got.data(), m.there, m.bytes, cudaMemcpyDeviceToHost);
      all = all && agree(m, got.data());
    }
    return all;
  }

 private:
  struct Moved {
    const char* name;
    const void* here;
    void* there;
    size_t bytes;
    int64_t size;
    DType dtype;
    bool is_output;
  };

  template <typename Field>
  void move_field(const char* name, Field& field) {
    if constexpr (requires { field.dtype; }) {
      using Void = std::remove_pointer_t<decltype(field.data)>;
      const auto bytes = static_cast<size_t>(field.size) * bytes_of(field.dtype);
      move_data(name, field, bytes, field.dtype, !std::is_const_v<Void>);
    } else if constexpr (requires { field.data, field.size; }) {
      using T = std::remove_pointer_t<decltype(field.data)>;
      constexpr DType dtype = std::is_same_v<std::remove_const_t<T>, float>     ? DType::float32
                              : std::is_same_v<std::remove_const_t<T>, int32_t> ? DType::int32
                                                                                : DType::uint8;
      move_data(name, field, static_cast<size_t>(field.size) * sizeof(T), dtype, !std::is_const_v<T>);
    } else if constexpr (requires { field.fields([](const char*, auto&) {}); }) {
      move(field);
    } else if constexpr (std::is_same_v<Field, int32_t>) {
      if (std::strcmp(name, "device") == 0) field = 0;
    }
  }

  template <typename Field>
  void move_data(const char* name, Field& field, size_t bytes, DType dtype, bool is_output) {
    field.device = 0;
    if (!field.data) return;
    for (const Moved& m : moved_) {  // an output that is an input as well
      if (m.here != field.data) continue;
      field.data = static_cast<decltype(field.data)>(m.there);
      return;
    }
    void* there = nullptr;
    cudaMalloc(&there, std::max<size_t>(bytes, 1));
    if (!is_output) cudaMemcpy(there, field.data, bytes, cudaMemcpyHostToDevice);
    moved_.push_back({name, field.data, there, bytes, field.size, dtype, is_output});
    field.data = static_cast<decltype(field.data)>(there);
  }

  static bool agree(const Moved& m, const void* got) {
    if (m.dtype == DType::int32 || m.dtype == DType::uint8) {
      const bool same = std::memcmp(got, m.here, m.bytes) == 0;
      if (!same) std::printf("     %s differs\n", m.name);
      return same;
    }
    for (int64_t i = 0; i < m.size; ++i) {
      const double mine = value_of(m.dtype, got, i), theirs = value_of(m.dtype, m.here, i);
      if (near(m.dtype, mine, theirs)) continue;
      std::printf("     %s[%lld] = %.9g, on the CPU %.9g\n", m.name, static_cast<long long>(i), mine, theirs);
      return false;
    }
    return true;
  }

  std::vector<Moved> moved_;
};

template <typename Args>
void compare(const std::string& name, Args args, void (*on_cpu)(const Args&), void (*on_gpu)(const Args&)) {
  ++cases;
  bool ok = false;
  std::string why;
  try {
    on_cpu(args);
    OnDevice device;
    device.move(args);
    on_gpu(args);
    fapo::cuda::synchronize(0);
    ok = device.outputs_agree();
  } catch (const std::exception& error) {
    why = error.what();
  }
  if (ok) return;
  ++failures;
  std::printf("FAIL %s, seed %llu: %s\n", name.c_str(), static_cast<unsigned long long>(cuda_emulator::settings().seed),
              why.c_str());
}

// ---- the ops

template <typename T>
Array<const T> as_input(const Array<T>& out) {
  return {out.data, out.size, kCpu};
}

uint32_t random_state = 1;
float uniform() { return static_cast<float>((random_state = random_state * 1664525u + 1013904223u) >> 8) * 0x1p-24f; }
std::vector<float> uniforms(int64_t n, float low, float high) {
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = low + (high - low) * uniform();
  return values;
}

struct Rows {
  DType dtype = DType::float32;
  int64_t rows = 3, vocab = 8, stride = 8;
  bool softcap = false, entropy = true, mask = false;
};

std::string text_of(const Rows& r) {
  const char* dtype = r.dtype == DType::float32 ? "float32" : r.dtype == DType::bfloat16 ? "bfloat16" : "float16";
  return std::string(dtype) + " " + std::to_string(r.rows) + " x " + std::to_string(r.vocab) + "/" +
         std::to_string(r.stride) + (r.softcap ? " capped" : "") + (r.entropy ? " entropy" : "") +
         (r.mask ? " masked" : "");
}

TokenLogits logits_of(Host& host, const Rows& r) {
  TokenLogits t;
  t.rows = r.rows;
  t.vocab = r.vocab;
  t.scale.temperature = 0.7;
  t.scale.softcap = r.softcap ? 30.0 : 0.0;
  t.logits = host.matrix<Matrix>(r.dtype, r.rows, r.vocab, r.stride, [&](int64_t row, int64_t column) {
    return row == 1 && column % 3 == 1 && column > 0 ? -INFINITY : 8.0f * uniform() - 4.0f;
  });
  std::vector<int32_t> ids(static_cast<size_t>(r.rows));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i % 3 == 0 ? r.vocab - 1 : 0);
  t.token_ids = host.array<const int32_t>(ids);
  if (r.mask) {
    std::vector<uint8_t> mask(ids.size(), 1);
    for (size_t i = 0; i < mask.size(); i += 2) mask[i] = 0;
    t.response_mask = host.array<const uint8_t>(mask);
  }
  return t;
}

const auto kNothing = [](int64_t, int64_t) { return 0.0f; };

TokenLogprob forward_of(Host& host, const Rows& r) {
  TokenLogprob a;
  a.tokens = logits_of(host, r);
  a.logprobs = host.out<float>(r.rows);
  a.lse = host.out<float>(r.rows);
  if (r.entropy) a.entropy = host.out<float>(r.rows);
  return a;
}

PolicyBatch batch_of(Host& host, int64_t tokens, bool sequences, LossAggMode mode) {
  PolicyBatch b;
  b.old_logprobs = host.array<const float>(uniforms(tokens, -2.0f, -0.1f));
  b.ref_logprobs = host.array<const float>(uniforms(tokens, -2.0f, -0.1f));
  b.loss_agg_mode = mode;
  b.params.kl_estimator = KlEstimator::k3;
  b.params.kl_coef = 0.1;
  b.advantages_per_sequence = sequences;
  if (sequences) {
    const auto middle = static_cast<int32_t>(tokens / 3), end = static_cast<int32_t>(tokens);
    b.cu_seqlens = host.array<const int32_t>({0, middle, middle, end});
    b.advantages = host.array<const float>({1.0f, 0.5f, -1.0f});
  } else {
    b.advantages = host.array<const float>(uniforms(tokens, -1.0f, 1.0f));
    b.importance_weights = host.array<const float>(uniforms(tokens, 0.5f, 1.5f));
  }
  b.loss = host.out<float>(1);
  b.metrics = host.out<float>(kPolicyMetrics);
  b.counts = host.out<int32_t>(2);
  return b;
}

void test_rows(const Rows& r) {
  Host host;
  const TokenLogprob forward = forward_of(host, r);
  compare("tokenLogprob " + text_of(r), forward, cpu::token_logprob, fapo::cuda::token_logprob);

  TokenLogprobBackward backward;
  backward.tokens = forward.tokens;
  backward.logprobs = as_input(forward.logprobs);
  backward.lse = as_input(forward.lse);
  backward.entropy = as_input(forward.entropy);
  backward.grad_logprobs = host.array<const float>(uniforms(r.rows, -1.0f, 1.0f));
  if (r.entropy) backward.grad_entropy = host.array<const float>(uniforms(r.rows, -1.0f, 1.0f));
  backward.grad_logits = host.matrix<MutableMatrix>(r.dtype, r.rows, r.vocab, r.vocab, kNothing);
  compare("tokenLogprobBackward " + text_of(r), backward, cpu::token_logprob_backward,
          fapo::cuda::token_logprob_backward);

  FusedPolicyLoss fused;
  fused.tokens = forward.tokens;
  fused.batch = batch_of(host, r.rows, false, LossAggMode::token_mean);
  fused.batch.entropy_coef = r.entropy ? 0.01 : 0.0;
  fused.logprobs = host.out<float>(r.rows);
  fused.lse = host.out<float>(r.rows);
  if (r.entropy) fused.entropy = host.out<float>(r.rows);
  fused.grad_logits = host.matrix<MutableMatrix>(r.dtype, r.rows, r.vocab, r.vocab, kNothing);
  compare("fusedPolicyLoss " + text_of(r), fused, cpu::fused_policy_loss, fapo::cuda::fused_policy_loss);

  Cast cast;
  cast.source = forward.tokens.logits;
  cast.rows = r.rows;
  cast.columns = r.vocab;
  cast.result = host.matrix<MutableMatrix>(r.dtype == DType::float32 ? DType::bfloat16 : DType::float32, r.rows,
                                           r.vocab, r.vocab, kNothing);
  compare("cast " + text_of(r), cast, cpu::cast, fapo::cuda::cast);
}

void test_policy_loss(int64_t tokens) {
  using enum LossAggMode;
  for (const LossAggMode mode : {token_mean, token_sum, seq_mean_token_sum, seq_mean_token_mean}) {
    Host host;
    PolicyLoss a;
    a.tokens = tokens;
    a.logprobs = host.array<const float>(uniforms(tokens, -2.0f, -0.1f));
    a.batch = batch_of(host, tokens, mode != token_mean, mode);
    a.grad_logprobs = host.out<float>(tokens);
    compare("policyLoss " + std::to_string(tokens) + " tokens, mode " + std::to_string(static_cast<int>(mode)), a,
            cpu::policy_loss, fapo::cuda::policy_loss);
  }
}

void test_rewards(int64_t groups, int64_t size, bool by_id) {
  Host host;
  const int64_t n = groups * size;
  const std::string name = std::to_string(groups) + " groups of " + std::to_string(size) + (by_id ? " by id" : "");
  std::vector<uint8_t> correct(static_cast<size_t>(n));
  std::vector<int8_t> flawed(correct.size());
  std::vector<int32_t> ids(correct.size());
  for (size_t i = 0; i < correct.size(); ++i) {
    correct[i] = uniform() < 0.5f;
    flawed[i] = static_cast<int8_t>(static_cast<int>(uniform() * 3.0f) - 1);
    ids[i] = static_cast<int32_t>(i % static_cast<size_t>(groups));
  }
  FapoPenalty penalty;
  penalty.sequences = n;
  penalty.correct = host.array<const uint8_t>(correct);
  penalty.flawed = host.array<const int8_t>(flawed);
  penalty.rewards = host.out<float>(n);
  penalty.fapo_rewards = host.out<float>(n);
  penalty.valid = host.out<uint8_t>(n);
  compare("fapoPenalty " + name, penalty, cpu::fapo_penalty, fapo::cuda::fapo_penalty);

  GroupAdvantage advantage;
  advantage.grouping.sequences = n;
  advantage.grouping.groups = groups;
  if (by_id) {
    advantage.grouping.group_ids = host.array<const int32_t>(ids);
  } else {
    advantage.grouping.group_size = size;
  }
  advantage.advantages = host.out<float>(n);
  advantage.group_mean = host.out<float>(groups);
  advantage.group_std = host.out<float>(groups);
  advantage.zero_variance = host.out<uint8_t>(groups);
  FapoAdvantage both{penalty, advantage};
  both.advantage.rewards = as_input(penalty.rewards);
  both.advantage.valid = as_input(penalty.valid);
  both.advantage.variance_rewards = as_input(penalty.fapo_rewards);
  compare("fapoAdvantage " + name, both, cpu::fapo_advantage, fapo::cuda::fapo_advantage);
  advantage.rewards = host.array<const float>(uniforms(n, -1.0f, 1.0f));
  compare("groupAdvantage " + name, advantage, cpu::group_advantage, fapo::cuda::group_advantage);
}

void test_all() {
  using enum DType;
  for (const DType dtype : {float32, bfloat16, float16}) {
    test_rows({.dtype = dtype, .rows = 1, .vocab = 1, .stride = 1});
    test_rows({.dtype = dtype, .vocab = 7, .stride = 9});
    test_rows({.dtype = dtype, .vocab = 300, .stride = 301, .entropy = false, .mask = true});
    test_rows({.dtype = dtype, .vocab = 1024, .stride = 1024, .softcap = true});
  }
  test_rows({.dtype = bfloat16, .rows = 2, .vocab = 40000, .stride = 40000});
  // More rows than the ring has blocks, so that slots are used again; then a cluster of two.
  test_rows({.dtype = bfloat16, .rows = 14, .vocab = 24584, .stride = 24584});
  test_rows({.dtype = float32, .rows = 7, .vocab = 24580, .stride = 24580});
  test_policy_loss(1);
  test_policy_loss(700);
  test_rewards(1, 1, false);
  test_rewards(5, 8, false);
  test_rewards(5, 8, true);
}

}  // namespace

int main(int argc, char** argv) {
  set_threads(1);
  const uint64_t seeds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 2;
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    cuda_emulator::settings() = {seed, seed};
    test_all();
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  std::fflush(stdout);
  std::_Exit(failures != 0);  // the library's threads and device memory are never given back
}
