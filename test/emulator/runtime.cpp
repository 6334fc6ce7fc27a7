// The state of the emulated runtime: environment, injected faults, errors, the ledger.
#include "runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace cuda_emulator {
namespace {

std::string variable(const char* name, const char* otherwise) {
  const char* text = std::getenv(name);
  return text ? text : otherwise;
}

bool stays(int error) { return error == 700 || error == 710 || (error >= 714 && error <= 719); }

thread_local bool thread_has_called = false;

void write_ledger() {
  const std::string path = variable("CUDA_EMU_LEDGER", "");
  if (!path.empty()) std::ofstream(path) << ledger();
}

void read_faults(Runtime& r) {
  std::istringstream list(variable("CUDA_EMU_FAULTS", ""));
  for (std::string entry; std::getline(list, entry, ',');) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos) continue;
    const int value = std::atoi(entry.c_str() + equals + 1);
    const std::string what = entry.substr(0, equals);
    const size_t colon = what.find(':');
    if (what == "driver") {
      r.driver = value;
    } else if (what == "stale") {
      r.stale = value;
    } else if (what == "capturing") {
      r.capturing = value != 0;
    } else {
      const uint64_t nth = colon == std::string::npos ? 0 : std::strtoull(what.c_str() + colon + 1, nullptr, 10);
      r.faults.push_back({what.substr(0, colon), nth, value});
    }
  }
}

void read_environment(Runtime& r) {
  r.device_count = std::min(std::max(std::atoi(variable("CUDA_EMU_DEVICES", "1").c_str()), 0), 4);
  if (std::getenv("CUDA_VISIBLE_DEVICES") && variable("CUDA_VISIBLE_DEVICES", "").empty()) r.device_count = 0;
  const std::string compute = variable("CUDA_EMU_COMPUTE", "9.0");
  const size_t dot = compute.find('.');
  r.compute_major = std::atoi(compute.c_str());
  r.compute_minor = dot == std::string::npos ? 0 : std::atoi(compute.c_str() + dot + 1);
  r.memory = std::strtoull(variable("CUDA_EMU_MEMORY", "1024").c_str(), nullptr, 10) << 20;
  r.lazy = variable("CUDA_EMU_STREAM", "") == "lazy";
  r.driver = CUDART_VERSION;
  r.stale = 0;
  r.capturing = false;
  read_faults(r);
  for (int i = 0; i < r.device_count; ++i) r.devices.emplace_back().default_stream.device = i;
}

}  // namespace

Runtime::Runtime() {
  read_environment(*this);
  std::atexit(write_ledger);
}

Runtime& runtime() {
  static Runtime& it = *new Runtime;
  return it;
}

void reset_runtime() {
  Runtime& r = runtime();
  const std::lock_guard lock(r.mutex);
  r.faults.clear();
  r.devices.clear();
  r.calls.clear();
  r.misuse.clear();
  read_environment(r);
  thread_has_called = false;
  current_device() = 0;
  last_error() = cudaSuccess;
}

int& current_device() {
  static thread_local int device = 0;
  return device;
}

cudaError_t& last_error() {
  static thread_local cudaError_t error = cudaSuccess;
  return error;
}

cudaError_t enter(const char* name) {
  Runtime& r = runtime();
  if (!thread_has_called) {
    thread_has_called = true;
    last_error() = static_cast<cudaError_t>(r.stale);
  }
  const uint64_t nth = ++r.calls[name];
  const bool asks_for_version = std::strstr(name, "GetVersion") != nullptr;
  if (r.needs_driver() && !asks_for_version) return cudaErrorInsufficientDriver;
  const auto device = static_cast<size_t>(current_device());
  if (device < r.devices.size() && r.devices[device].lost != cudaSuccess && !asks_for_version) {
    return r.devices[device].lost;
  }
  for (const Fault& fault : r.faults) {
    if (fault.name != name || (fault.call && fault.call != nth)) continue;
    const auto error = static_cast<cudaError_t>(fault.error);
    if (stays(fault.error) && device < r.devices.size()) r.devices[device].lost = error;
    return error;
  }
  return cudaSuccess;
}

cudaError_t leave(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error() = error;
  return error;
}

cudaError_t misused(const char* what, cudaError_t error) {
  runtime().misuse.emplace_back(what);
  return error;
}

void lose(int device, cudaError_t error, const std::string& report) {
  runtime().devices[static_cast<size_t>(device)].lost = error;
  runtime().reports.push_back(report);
}

std::string ledger() {
  Runtime& r = runtime();
  const std::lock_guard lock(r.mutex);
  std::ostringstream out;
  size_t device_bytes = 0, pinned_bytes = 0, pinned = 0;
  for (const auto& [at, allocation] : r.allocations) {
    const bool is_pinned = allocation.device < 0;
    (is_pinned ? pinned_bytes : device_bytes) += allocation.bytes;
    pinned += is_pinned;
  }
  out << "{\n  \"misuse\": [";
  for (size_t i = 0; i < r.misuse.size(); ++i) out << (i ? ", " : "") << '"' << r.misuse[i] << '"';
  out << "],\n  \"deviceAllocations\": " << r.allocations.size() - pinned << ",\n  \"deviceBytes\": " << device_bytes
      << ",\n  \"pinnedAllocations\": " << pinned << ",\n  \"pinnedBytes\": " << pinned_bytes
      << ",\n  \"streams\": " << r.streams.size() << ",\n  \"events\": " << r.events.size()
      << ",\n  \"graphs\": " << r.graphs.size() + r.graph_execs.size() << ",\n  \"calls\": {";
  const char* separator = "";
  for (const auto& [name, count] : r.calls) {
    out << separator << "\n    \"" << name << "\": " << count;
    separator = ",";
  }
  out << "\n  }\n}\n";
  return out.str();
}

}  // namespace cuda_emulator

using cuda_emulator::runtime;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define CUDA_EMULATOR_NAME(name, number, text) \
  case name:                                   \
    return #name;
    CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_NAME)
#undef CUDA_EMULATOR_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  {
    const std::lock_guard lock(runtime().mutex);
    const auto device = static_cast<size_t>(cuda_emulator::current_device());
    const bool lost = device < runtime().devices.size() && runtime().devices[device].lost == error;
    if (error != cudaSuccess && lost && !runtime().reports.empty()) return runtime().reports.back().c_str();
  }
  switch (error) {
#define CUDA_EMULATOR_TEXT(name, number, text) \
  case name:                                   \
    return text;
    CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_TEXT)
#undef CUDA_EMULATOR_TEXT
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard lock(runtime().mutex);
  const cudaError_t error = cuda_emulator::enter("cudaPeekAtLastError");
  return error == cudaSuccess ? cuda_emulator::last_error() : error;
}

cudaError_t cudaGetLastError() {
  const std::lock_guard lock(runtime().mutex);
  const cudaError_t error = cuda_emulator::enter("cudaGetLastError");
  if (error != cudaSuccess) return error;
  return std::exchange(cuda_emulator::last_error(), cudaSuccess);
}
