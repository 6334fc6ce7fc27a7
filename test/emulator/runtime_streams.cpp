// Streams are queues of work; events are places in them.
#include <time.h>

#include "runtime.h"

namespace cuda_emulator {
namespace {

Device& device_of(const CudaEmulatorStream& stream) { return runtime().devices[static_cast<size_t>(stream.device)]; }

void run_next(CudaEmulatorStream& stream) {
  const std::function<void()> work = std::move(stream.work.front());
  stream.work.pop_front();
  if (device_of(stream).lost == cudaSuccess) work();
  ++stream.finished;
}

double now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// A stream that has been destroyed had done all its work.
bool is_done(const CudaEmulatorEvent& event) {
  return !event.stream || !find_stream(event.stream) || event.stream->finished >= event.ticket;
}

bool is_default(const CudaEmulatorStream* stream) {
  for (const Device& device : runtime().devices) {
    if (stream == &device.default_stream) return true;
  }
  return false;
}

bool is_event(cudaEvent_t event) {
  if (runtime().events.count(event)) return true;
  return misused("use of an event that does not exist", cudaErrorInvalidResourceHandle) == cudaSuccess;
}

// With lazy streams, asking again and again counts as waiting.
cudaError_t query(CudaEmulatorStream& stream, uint64_t ticket) {
  if (stream.finished < ticket) {
    run_next(stream);
    if (stream.finished < ticket) return cudaErrorNotReady;
  }
  return device_of(stream).lost;
}

}  // namespace

CudaEmulatorStream* find_stream(cudaStream_t stream) {
  Runtime& r = runtime();
  if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    if (!r.device_count) return nullptr;
    return &r.devices[static_cast<size_t>(current_device())].default_stream;
  }
  if (r.streams.count(stream) || is_default(stream)) return stream;
  misused("use of a stream that does not exist", cudaErrorInvalidResourceHandle);
  return nullptr;
}

// A capture that was made to fail stays so until it is ended.
bool forbidden_by_capture(CudaEmulatorStream& stream) {
  if (stream.captured) stream.capture_failed = true;
  return stream.captured || runtime().capturing;
}

bool forbidden_by_capture() {
  bool found = false;
  for (CudaEmulatorStream* stream : runtime().streams) {
    if (!stream->captured || stream->capture_is_relaxed) continue;
    found = stream->capture_failed = true;
  }
  return found;
}

void enqueue(CudaEmulatorStream& stream, std::function<void()> work) {
  if (stream.captured) return stream.captured->work.push_back(std::move(work));
  stream.work.push_back(std::move(work));
  ++stream.enqueued;
  if (!runtime().lazy) run_until(stream, stream.enqueued);
}

void run_until(CudaEmulatorStream& stream, uint64_t ticket) {
  while (stream.finished < ticket) run_next(stream);
}

void run_all(int device) {
  Runtime& r = runtime();
  run_until(r.devices[static_cast<size_t>(device)].default_stream,
            r.devices[static_cast<size_t>(device)].default_stream.enqueued);
  for (CudaEmulatorStream* stream : r.streams) {
    if (stream->device == device) run_until(*stream, stream->enqueued);
  }
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return call("cudaStreamCreateWithFlags", [&] {
    if (!runtime().device_count) return cudaErrorNoDevice;
    *stream = new CudaEmulatorStream;
    (*stream)->device = current_device();
    runtime().streams.insert(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call("cudaStreamDestroy", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found || is_default(found)) return cudaErrorInvalidResourceHandle;
    run_until(*found, found->enqueued);
    runtime().streams.erase(found);
    for (CudaEmulatorEvent* event : runtime().events) {
      if (event->stream == found) event->stream = nullptr;
    }
    delete found;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call("cudaStreamSynchronize", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    if (forbidden_by_capture(*found)) return cudaErrorStreamCaptureUnsupported;
    run_until(*found, found->enqueued);
    return device_of(*found).lost;
  });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call("cudaStreamQuery", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    if (forbidden_by_capture(*found)) return cudaErrorStreamCaptureUnsupported;
    return query(*found, found->enqueued);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call("cudaStreamWaitEvent", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found || !is_event(event)) return cudaErrorInvalidResourceHandle;
    if (found->captured && forbidden_by_capture(*found)) return cudaErrorStreamCaptureUnsupported;
    if (is_done(*event)) return cudaSuccess;
    CudaEmulatorStream* other = event->stream;  // destroyed only when its work is done
    const uint64_t ticket = event->ticket;
    enqueue(*found, [=] {
      if (runtime().streams.count(other) || is_default(other)) run_until(*other, ticket);
    });
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call("cudaStreamIsCapturing", [&] {
    const CudaEmulatorStream* found = find_stream(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    *status = found->captured && found->capture_failed ? cudaStreamCaptureStatusInvalidated
              : found->captured || runtime().capturing ? cudaStreamCaptureStatusActive
                                                       : cudaStreamCaptureStatusNone;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    if (found->captured || is_default(found)) return cudaErrorStreamCaptureUnsupported;
    found->captured.emplace();
    found->captured->device = found->device;
    found->capture_is_relaxed = mode == cudaStreamCaptureModeRelaxed;
    found->capture_failed = false;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    if (!found->captured) return cudaErrorInvalidValue;
    *graph = nullptr;
    auto captured = std::move(*found->captured);
    found->captured.reset();
    if (found->capture_failed) return cudaErrorStreamCaptureInvalidated;
    *graph = new CudaEmulatorGraph(std::move(captured));
    runtime().graphs.insert(*graph);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", [&] {
    if (!runtime().graphs.count(graph)) return misused("use of a graph that does not exist", cudaErrorInvalidValue);
    *exec = new CudaEmulatorGraphExec{*graph};
    runtime().graph_execs.insert(*exec);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  return call("cudaGraphUpload", [&] {
    if (!runtime().graph_execs.count(exec)) return misused("use of a graph that does not exist", cudaErrorInvalidValue);
    return find_stream(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}

// A copy of its work: a graph may be destroyed while it runs.
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return call("cudaGraphLaunch", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    if (!runtime().graph_execs.count(exec)) return misused("use of a graph that does not exist", cudaErrorInvalidValue);
    if (forbidden_by_capture(*found)) return cudaErrorStreamCaptureUnsupported;
    enqueue(*found, [work = exec->work, device = exec->device] {
      for (const auto& one : work) {
        if (runtime().devices[static_cast<size_t>(device)].lost == cudaSuccess) one();
      }
    });
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&] {
    if (!runtime().graphs.erase(graph)) return misused("destruction of no graph", cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call("cudaGraphExecDestroy", [&] {
    if (!runtime().graph_execs.erase(exec)) return misused("destruction of no graph", cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call("cudaEventCreateWithFlags", [&] {
    if (!runtime().device_count) return cudaErrorNoDevice;
    *event = new CudaEmulatorEvent;
    (*event)->timed = !(flags & cudaEventDisableTiming);
    (*event)->device = current_device();
    runtime().events.insert(*event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call("cudaEventDestroy", [&] {
    if (!is_event(event)) return cudaErrorInvalidResourceHandle;
    runtime().events.erase(event);
    delete event;
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call("cudaEventRecord", [&] {
    CudaEmulatorStream* found = find_stream(stream);
    if (!found || !is_event(event)) return cudaErrorInvalidResourceHandle;
    if (event->device != found->device) return cudaErrorInvalidResourceHandle;
    if (found->captured && forbidden_by_capture(*found)) return cudaErrorStreamCaptureUnsupported;
    event->stream = found;
    event->ticket = found->enqueued + 1;
    enqueue(*found, [event, ticket = event->ticket] {
      if (runtime().events.count(event) && event->ticket == ticket) event->seconds = now();
    });
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery", [&] {
    if (!is_event(event)) return cudaErrorInvalidResourceHandle;
    return event->stream ? query(*event->stream, event->ticket) : cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call("cudaEventSynchronize", [&] {
    if (!is_event(event)) return cudaErrorInvalidResourceHandle;
    if (!event->stream) return cudaSuccess;
    run_until(*event->stream, event->ticket);
    return device_of(*event->stream).lost;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call("cudaEventElapsedTime", [&] {
    if (!is_event(start) || !is_event(end)) return cudaErrorInvalidResourceHandle;
    if (!start->timed || !end->timed || !start->ticket || !end->ticket) return cudaErrorInvalidResourceHandle;
    if (!is_done(*start) || !is_done(*end)) return cudaErrorNotReady;
    *milliseconds = static_cast<float>((end->seconds - start->seconds) * 1e3);
    return cudaSuccess;
  });
}
