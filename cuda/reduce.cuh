#pragma once
// Reductions in a fixed order, so that every run gives the same bits; every thread that takes part gets the result.
// Each CUDA block has a whole number of warps, and all their threads call.
#include <cstring>
#include <type_traits>

#include "cuda/device.cuh"

namespace fapo::cuda {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxWarps = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

FAPO_DEVICE unsigned lane_index() { return threadIdx.x % kWarp; }
FAPO_DEVICE unsigned warp_index() { return threadIdx.x / kWarp; }
FAPO_DEVICE unsigned warp_count() { return blockDim.x / kWarp; }

// The value of the lane whose index differs in the bits of `flip`.
template <typename T>
FAPO_DEVICE T shuffle_xor(const T& mine, int flip) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0);
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &mine, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) word = __shfl_xor_sync(kAllLanes, word, flip);
  T theirs;
  memcpy(static_cast<void*>(&theirs), words, sizeof(T));
  return theirs;
}

// Halves of a butterfly are added in either order, which gives the same bits.
FAPO_DEVICE double warp_sum(double x) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) x += shuffle_xor(x, flip);
  return x;
}

// The largest; NaN if there is one.
FAPO_DEVICE float warp_max(float x) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) x = max_nan(x, shuffle_xor(x, flip));
  return x;
}

// One T per thread, merged by T::merge: lanes first, then warps, each in order. `slots` is shared memory.
template <typename T>
struct BlockSlots {
  T warp[kMaxWarps];
};
template <typename T>
FAPO_DEVICE T block_merge(T mine, BlockSlots<T>& slots) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) {
    const T theirs = shuffle_xor(mine, flip);
    // The lower lane's comes first on both sides: merging need not commute.
    if (lane_index() & static_cast<unsigned>(flip)) {
      T first = theirs;
      first.merge(mine);
      mine = first;
    } else {
      mine.merge(theirs);
    }
  }
  if (lane_index() == 0) slots.warp[warp_index()] = mine;
  __syncthreads();
  T all = slots.warp[0];
  for (unsigned w = 1; w < warp_count(); ++w) all.merge(slots.warp[w]);
  __syncthreads();  // the slots may be written again
  return all;
}

}  // namespace fapo::cuda
