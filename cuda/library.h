#pragma once
// What cuda/library.cpp hands to the addon. See CudaLibrary in native/backend.h for what each function does.
#include "native/backend.h"

namespace fapo::cuda {

void cast(const Cast& args);
void token_logprob(const TokenLogprob& args);
void token_logprob_backward(const TokenLogprobBackward& args);
void fapo_penalty(const FapoPenalty& args);
void group_advantage(const GroupAdvantage& args);
void fapo_advantage(const FapoAdvantage& args);
void policy_loss(const PolicyLoss& args);
void fused_policy_loss(const FusedPolicyLoss& args);
void memory_floor(const MemoryFloor& args);

CudaProbe probe();
CudaDeviceInfo device_info(int32_t device);
void* allocate(int32_t device, int64_t bytes, bool zeroed);
void release(int32_t device, void* data, int64_t bytes) noexcept;
void* upload(int32_t device, const CudaUpload* arrays, int32_t count, int64_t bytes);
void copy_to_device(int32_t device, void* to, const void* from, int64_t bytes);
void copy_to_host(int32_t device, void* to, const void* from, int64_t bytes);
void copy_on_device(int32_t device, const CudaRows& rows);
void synchronize(int32_t device);
CudaMemoryInfo memory_info(int32_t device);
void set_memory_limit(int32_t device, int64_t bytes);
uint64_t stream(int32_t device);
void set_stream(int32_t device, uint64_t stream);
void wait_for(int32_t device, uint64_t stream);
void make_wait(int32_t device, uint64_t stream);
void check_foreign(int32_t device, uint64_t address, int64_t bytes);
void begin_capture(int32_t device);
void* end_capture(int32_t device);
void abandon_capture(int32_t device) noexcept;
void replay(int32_t device, void* graph);
void release_graph(int32_t device, void* graph) noexcept;
void start_timer(int32_t device);
double stop_timer(int32_t device);

}  // namespace fapo::cuda
