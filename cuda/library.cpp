// The second Node-API library: exports the table of CUDA ops, and nothing else.
#include "cuda/library.h"

#include <node_api.h>

namespace fapo::cuda {
namespace {

constexpr CudaLibrary kLibrary = {
    .abi = kCudaAbi,
#ifdef FAPO_EMULATE_CUDA
    .emulated = true,
#endif
    .ops =
        {
            .cast = cast,
            .token_logprob = token_logprob,
            .token_logprob_backward = token_logprob_backward,
            .fapo_penalty = fapo_penalty,
            .group_advantage = group_advantage,
            .fapo_advantage = fapo_advantage,
            .policy_loss = policy_loss,
            .fused_policy_loss = fused_policy_loss,
            .memory_floor = memory_floor,
        },
    .probe = probe,
    .device_info = device_info,
    .allocate = allocate,
    .release = release,
    .upload = upload,
    .copy_to_device = copy_to_device,
    .copy_to_host = copy_to_host,
    .copy_on_device = copy_on_device,
    .synchronize = synchronize,
    .memory_info = memory_info,
    .set_memory_limit = set_memory_limit,
    .stream = stream,
    .set_stream = set_stream,
    .wait_for = wait_for,
    .make_wait = make_wait,
    .check_foreign = check_foreign,
    .begin_capture = begin_capture,
    .end_capture = end_capture,
    .abandon_capture = abandon_capture,
    .replay = replay,
    .release_graph = release_graph,
    .start_timer = start_timer,
    .stop_timer = stop_timer,
};

}  // namespace
}  // namespace fapo::cuda

NAPI_MODULE_INIT() {
  const napi_type_tag tag = {fapo::kCudaLibraryTag[0], fapo::kCudaLibraryTag[1]};
  auto* library = const_cast<fapo::CudaLibrary*>(&fapo::cuda::kLibrary);  // read alone
  napi_value external;
  if (napi_create_external(env, library, nullptr, nullptr, &external) != napi_ok ||
      napi_type_tag_object(env, external, &tag) != napi_ok ||
      napi_set_named_property(env, exports, "library", external) != napi_ok) {
    return nullptr;  // with an exception pending, or in an environment that is ending
  }
  return exports;
}
