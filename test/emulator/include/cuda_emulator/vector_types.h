#pragma once
// CUDA's small vectors and dim3.

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define CUDA_EMULATOR_VECTOR(T, name)                                           \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_EMULATOR_VECTOR(float, float)
CUDA_EMULATOR_VECTOR(double, double)
CUDA_EMULATOR_VECTOR(int, int)
CUDA_EMULATOR_VECTOR(unsigned, uint)
CUDA_EMULATOR_VECTOR(unsigned short, ushort)
#undef CUDA_EMULATOR_VECTOR
