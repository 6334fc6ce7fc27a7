#include "native/memory_floor.h"

#include "native/error.h"
#include "native/parallel.h"
#include "native/run_on.h"
#include "native/simd/row_kernels.h"

namespace fapo {

void memory_floor(const MemoryFloor& args) {
  check(args.result.size == 1, "result");
  const bool copies = args.kind == MemoryFloor::Kind::copy || args.kind == MemoryFloor::Kind::plain_copy;
  check(!copies || args.destination.size == args.data.size, "destination.length");
  run_on(args.device, &Backend::memory_floor, args);
}

void cpu::memory_floor(const MemoryFloor& args) {
  const auto& kernels = row_kernels<float>();
  constexpr int64_t kChunk = 1 << 17;  // 512 KB, about a row of a large vocabulary
  float* const data = args.data.data;
  parallel_for(args.data.size, kChunk, args.data.size * 4, [&](int64_t begin, int64_t end) {
    switch (args.kind) {
      case MemoryFloor::Kind::read:
        // Of any order of the threads the result is some maximum: it is there to be computed, not to be used.
        if (kernels.max(data + begin, end - begin) > 0.0f && begin == 0) args.result[0] = 1.0f;
        break;
      case MemoryFloor::Kind::read_write:
        kernels.scale(data + begin, end - begin, 1.0f);
        break;
      case MemoryFloor::Kind::copy:
        kernels.copy_streamed(args.destination.data + begin, data + begin, end - begin, asking());
        break;
      case MemoryFloor::Kind::plain_copy:
        kernels.copy_streamed(args.destination.data + begin, data + begin, end - begin, {});
        break;
    }
  });
}

}  // namespace fapo
