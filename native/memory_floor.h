#pragma once
// How fast this machine moves memory through the same loops and threads as the ops: what benchmarks divide by.
#include "native/tensor.h"

namespace fapo {

struct MemoryFloor {
  // plain_copy asks memory for nothing ahead; a GPU copies in one way.
  enum class Kind : int32_t { read, read_write, copy, plain_copy };

  int32_t device = kCpu;
  Kind kind = Kind::read;
  Array<float> data;         // read; overwritten with its own values by read_write
  Array<float> destination;  // of copies alone, written past the caches
  Array<float> result;       // [1], out: keeps the reads from being optimised away

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("device", device), v("kind", kind), v("data", data), v("destination", destination), v("result", result);
  }
};

void memory_floor(const MemoryFloor& args);

namespace cpu {
void memory_floor(const MemoryFloor& args);
}  // namespace cpu

}  // namespace fapo
