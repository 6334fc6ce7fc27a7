// The only file that knows Node: values of JavaScript in, one argument struct, one call, errors out.
#include <napi.h>

#include <new>
#include <string>
#include <type_traits>

#include "native/backend.h"
#include "native/error.h"
#include "native/huge_pages.h"
#include "native/memory_floor.h"
#include "native/parallel.h"
#include "native/simd/row_kernels.h"

namespace fapo {
namespace {

// Memory of a GPU that JavaScript holds: ours until JavaScript releases it or loses it, or borrowed.
struct DeviceMemory {
  int32_t device;
  void* data;  // null once released
  int64_t bytes;
  bool owned;

  void release(napi_env env) {
    if (data == nullptr) return;
    if (owned) {
      cuda_library().release(device, data, bytes);
      int64_t total;
      napi_adjust_external_memory(env, -bytes, &total);
    }
    data = nullptr;
  }
};
constexpr napi_type_tag kDeviceMemoryTag = {0x6661706f6b65726e, 0x6d656d6f72790001};

// Calls that were captured, to be replayed.
struct Graph {
  int32_t device;
  void* graph;  // null once released

  void release() {
    if (graph != nullptr) cuda_library().release_graph(device, graph);
    graph = nullptr;
  }
};
constexpr napi_type_tag kGraphTag = {0x6661706f6b65726e, 0x6772617068000001};

// Which memory an op reads and writes, to refuse outputs that overlap anything else, and on which GPU it lies.
class Ranges {
 public:
  // All arrays of a call that are not on the host are on one GPU.
  void place(const char* name, int32_t device) {
    if (device == kCpu) return;
    check(gpu_ == kCpu || gpu_ == device, name);
    gpu_ = device;
  }
  int32_t gpu() const { return gpu_; }

  void add(const char* name, const void* data, int64_t bytes, bool output) {
    if (data == nullptr || bytes == 0) return;
    check(count_ < kMax, "too many arrays");
    const auto begin = reinterpret_cast<uintptr_t>(data);
    ranges_[count_++] = {name, begin, begin + static_cast<uintptr_t>(bytes), output};
  }

  void check_overlap(bool in_place) const {
    for (int a = 0; a < count_; ++a) {
      for (int b = a + 1; b < count_; ++b) {
        const Range &x = ranges_[a], &y = ranges_[b];
        if (!(x.output || y.output) || x.end <= y.begin || y.end <= x.begin) continue;
        if (in_place && is(x, "logits") && is(y, "gradLogits") && x.begin == y.begin && x.end == y.end) continue;
        const Range &output = y.output ? y : x, &other = y.output ? x : y;
        throw Error("ERR_INVALID_ARGUMENT", std::string("expected out.") + output.name + " to be memory of its own, " +
                                                "got memory that overlaps " + other.name);
      }
    }
  }

 private:
  struct Range {
    const char* name;
    uintptr_t begin, end;
    bool output;
  };

  static bool is(const Range& range, const char* name) { return std::string_view(range.name) == name; }

  static constexpr int kMax = 32;
  Range ranges_[kMax];
  int count_ = 0;
  int32_t gpu_ = kCpu;
};

// Finds the device that an argument struct names.
struct DeviceFinder {
  int32_t device = kCpu;

  template <typename T>
  void operator()(const char* name, T& field) {
    if constexpr (std::is_same_v<T, int32_t>) {
      if (std::string_view(name) == "device") device = field;
    } else if constexpr (requires { field.fields(*this); }) {
      field.fields(*this);
    }
  }
};

// What lies behind an External of ours.
template <typename T>
T& content_of(napi_env env, napi_value value, const napi_type_tag& tag, const char* expected) {
  bool ours = false;
  void* content = nullptr;
  const bool ok = napi_check_object_type_tag(env, value, &tag, &ours) == napi_ok && ours &&
                  napi_get_value_external(env, value, &content) == napi_ok;
  check(ok, expected);
  return *static_cast<T*>(content);
}

DeviceMemory& device_memory(napi_env env, napi_value value) {
  return content_of<DeviceMemory>(env, value, kDeviceMemoryTag, "expected memory of a GPU");
}

template <typename T>
struct ArrayType;
template <>
struct ArrayType<float> {
  static constexpr napi_typedarray_type value = napi_float32_array;
};
template <>
struct ArrayType<int32_t> {
  static constexpr napi_typedarray_type value = napi_int32_array;
};
template <>
struct ArrayType<uint8_t> {
  static constexpr napi_typedarray_type value = napi_uint8_array;
};
template <>
struct ArrayType<int8_t> {
  static constexpr napi_typedarray_type value = napi_int8_array;
};

template <typename T>
struct IsMatrix : std::false_type {};
template <typename Void>
struct IsMatrix<BasicMatrix<Void>> : std::true_type {};

// The fields of an argument struct, for lib/addon.ts, which passes their values in this order: an array of names, and
// of [name, fields] where a field is a struct itself.
class FieldNames {
 public:
  explicit FieldNames(Napi::Env env) : names_(Napi::Array::New(env)) {}

  template <typename T>
  void operator()(const char* name, T& field) {
    FieldNames nested(names_.Env());
    if constexpr (IsMatrix<T>::value) {
      for (const char* part : {"data", "rowStride", "dtype"}) nested.add(Napi::String::New(names_.Env(), part));
    } else if constexpr (requires { field.fields(nested); }) {
      field.fields(nested);
    } else {
      return add(Napi::String::New(names_.Env(), name));
    }
    Napi::Array pair = Napi::Array::New(names_.Env(), 2);
    pair.Set(uint32_t{0}, name);
    pair.Set(1, nested.names_);
    add(pair);
  }

  template <typename Args>
  static Napi::Array of(Napi::Env env) {
    FieldNames names(env);
    Args args{};
    args.fields(names);
    return names.names_;
  }

 private:
  void add(Napi::Value value) { names_.Set(names_.Length(), value); }

  Napi::Array names_;
};

// Fills an argument struct from the arguments of a call, in the order of its fields: reading properties by their names
// would take most of a small call. Lengths and types of arrays come from Node-API, never from properties that
// JavaScript can change.
class FieldReader {
 public:
  FieldReader(const Napi::CallbackInfo& info, Ranges& ranges) : env_(info.Env()), info_(info), ranges_(ranges) {}

  template <typename T>
  void operator()(const char* name, T& field) {
    if constexpr (requires { field.fields(*this); }) {
      field.fields(*this);
    } else if constexpr (IsMatrix<T>::value) {
      read_matrix(name, field);
    } else {
      read(name, next(), field);
    }
  }

  void done() const { check(next_ == info_.Length(), "the number of arguments"); }

 private:
  template <typename T>
  void read(const char* name, napi_value value, Array<T>& array) {
    using Element = std::remove_const_t<T>;
    const View view = view_of(name, value, sizeof(T));
    if (view.data == nullptr) return;  // not given
    check(view.device != kCpu || view.type == ArrayType<Element>::value, name);
    array = {static_cast<T*>(view.data), view.length, view.device};
    add(name, view, sizeof(T), !std::is_const_v<T>);
  }

  template <typename Void>
  void read_matrix(const char* name, BasicMatrix<Void>& matrix) {
    const napi_value data = next();
    const auto row_stride = static_cast<int64_t>(number(next()));
    const auto dtype = static_cast<DType>(static_cast<int32_t>(number(next())));
    const bool wide = dtype == DType::float32;
    check(wide || dtype == DType::bfloat16 || dtype == DType::float16, name);
    const int64_t element = wide ? 4 : 2;
    const View view = view_of(name, data, element);
    check(view.data != nullptr, name);
    check(view.device != kCpu || view.type == (wide ? napi_float32_array : napi_uint16_array), name);
    matrix = {view.data, view.length, row_stride, dtype, view.device};
    add(name, view, element, !std::is_const_v<Void>);
  }

  void read(const char*, napi_value value, bool& field) { ok(napi_get_value_bool(env_, value, &field)); }

  template <typename T>
    requires std::is_enum_v<T> || std::is_arithmetic_v<T>
  void read(const char*, napi_value value, T& field) {
    if constexpr (std::is_enum_v<T>) {
      field = static_cast<T>(static_cast<int32_t>(number(value)));
    } else {
      field = static_cast<T>(number(value));
    }
  }

  struct View {
    void* data = nullptr;
    int64_t length = 0;
    int32_t device = kCpu;
    napi_typedarray_type type{};  // on the host
  };

  // A typed array, memory of a GPU, or nothing for undefined. Not TypedArray::ArrayBuffer(): that fails for an array
  // over a SharedArrayBuffer. At length 0 the pointer may be null or dangling (detached, shrunk), and is not kept.
  View view_of(const char* name, napi_value value, int64_t element_bytes) const {
    View view;
    size_t length = 0;
    if (napi_get_typedarray_info(env_, value, &view.type, &length, &view.data, nullptr, nullptr) != napi_ok) {
      napi_valuetype type;
      ok(napi_typeof(env_, value, &type));
      return type == napi_undefined ? view : device_view_of(name, value, element_bytes);
    }
    view.length = static_cast<int64_t>(length);
    static char empty;
    if (length == 0) view.data = &empty;
    return view;
  }

  // See DeviceMemory in lib/cuda.ts.
  View device_view_of(const char* name, napi_value value, int64_t element_bytes) const {
    const DeviceMemory& memory = device_memory(env_, property(value, "handle"));
    if (memory.data == nullptr) throw Error("ERR_DISPOSED", std::string(name) + " has been disposed");
    const double offset = number(property(value, "offset")), length = number(property(value, "length"));
    check(offset >= 0.0 && length >= 0.0 && length <= static_cast<double>(memory.bytes), name);
    const auto begin = static_cast<int64_t>(offset), count = static_cast<int64_t>(length);
    check(begin <= memory.bytes && count * element_bytes <= memory.bytes - begin, name);
    char* data = static_cast<char*>(memory.data) + begin;
    check(reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element_bytes) == 0, name);
    return {data, count, memory.device};
  }

  void add(const char* name, const View& view, int64_t element_bytes, bool output) {
    ranges_.place(name, view.device);
    ranges_.add(name, view.data, view.length * element_bytes, output);
  }

  napi_value next() {
    check(next_ < info_.Length(), "the number of arguments");
    return info_[next_++];
  }

  napi_value property(napi_value object, const char* name) const {
    napi_value value;
    ok(napi_get_named_property(env_, object, name, &value));
    return value;
  }

  double number(napi_value value) const {
    double result;
    ok(napi_get_value_double(env_, value, &result));
    return result;
  }

  void ok(napi_status status) const {
    if (status != napi_ok) throw Napi::Error::New(env_);
  }

  napi_env env_;
  const Napi::CallbackInfo& info_;
  Ranges& ranges_;
  size_t next_ = 0;
};

[[noreturn]] void rethrow(Napi::Env env, const char* code, const char* message, const Error* from = nullptr) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", code);
  if (from != nullptr && from->cuda_error_name != nullptr) {
    Napi::Object cuda_error = Napi::Object::New(env);
    cuda_error.Set("number", Napi::Number::New(env, from->cuda_error));
    cuda_error.Set("name", from->cuda_error_name);
    error.Set("cudaError", cuda_error);
  }
  throw error;
}

// Runs fn; every C++ exception becomes a JavaScript error with a code.
template <typename Fn>
decltype(auto) guarded(Napi::Env env, const Fn& fn) {
  try {
    return fn();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& e) {
    rethrow(env, e.code, e.what(), &e);
  } catch (const std::bad_alloc&) {
    rethrow(env, "ERR_OUT_OF_MEMORY", "no memory for the op's work space");
  } catch (const std::exception& e) {
    rethrow(env, "ERR_INTERNAL", e.what());
  } catch (...) {
    rethrow(env, "ERR_INTERNAL", "unknown C++ exception");
  }
}

template <typename Args>
bool in_place(const Args& args) {
  if constexpr (requires { args.in_place; }) return args.in_place;
  return false;
}

template <typename Args, void (*op)(const Args&)>
void call(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    Args args{};
    Ranges ranges;
    FieldReader reader(info, ranges);
    args.fields(reader);
    reader.done();
    ranges.check_overlap(in_place(args));
    if (ranges.gpu() != kCpu) {
      DeviceFinder named;
      args.fields(named);
      check(named.device == ranges.gpu(), "arrays of a GPU for an op elsewhere");
    }
    op(args);
  });
}

void set_threads_from(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { set_threads(info[0].As<Napi::Number>().Int32Value()); });
}

Napi::Value get_threads(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), threads()); }

// ---- CUDA: the library, and memory of GPUs

int32_t device_from(const Napi::Value& value) { return value.As<Napi::Number>().Int32Value(); }
int64_t bytes_from(const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); }

uint64_t address_from(const Napi::Value& value) {
  bool lossless = false;
  const uint64_t address = value.As<Napi::BigInt>().Uint64Value(&lossless);
  check(lossless, "expected an address of 64 bits");
  return address;
}

void open_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const napi_type_tag tag = {kCudaLibraryTag[0], kCudaLibraryTag[1]};
    bool tagged = false;
    void* library = nullptr;
    const bool ok = napi_check_object_type_tag(info.Env(), info[0], &tag, &tagged) == napi_ok && tagged &&
                    napi_get_value_external(info.Env(), info[0], &library) == napi_ok;
    if (!ok) throw Error("ERR_NO_CUDA", "this is no library of CUDA kernels");
    set_cuda_library(static_cast<const CudaLibrary*>(library));
  });
}

Napi::Value cuda_probe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const CudaProbe probe = cuda_library().probe();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("emulated", Napi::Boolean::New(info.Env(), cuda_library().emulated));
    result.Set("devices", Napi::Number::New(info.Env(), probe.devices));
    result.Set("status", Napi::Number::New(info.Env(), probe.status));
    result.Set("statusName", probe.status_name);
    result.Set("statusMessage", probe.status_message);
    result.Set("driver", Napi::Number::New(info.Env(), probe.driver));
    result.Set("runtime", Napi::Number::New(info.Env(), probe.runtime));
    return Napi::Value(result);
  });
}

Napi::Value device_info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const CudaDeviceInfo found = cuda_library().device_info(device_from(info[0]));
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("name", found.name);
    result.Set("reason", found.reason);
    result.Set("computeMajor", Napi::Number::New(info.Env(), found.compute_major));
    result.Set("computeMinor", Napi::Number::New(info.Env(), found.compute_minor));
    result.Set("multiprocessors", Napi::Number::New(info.Env(), found.multiprocessors));
    result.Set("memory", Napi::Number::New(info.Env(), static_cast<double>(found.total_bytes)));
    return Napi::Value(result);
  });
}

// An External over memory of a GPU, which it owns where `owned`.
Napi::Value handle_of(Napi::Env env, const DeviceMemory& content) {
  const auto finalize = [](napi_env finalizing, void* data, void*) {
    auto* memory = static_cast<DeviceMemory*>(data);
    memory->release(finalizing);
    delete memory;
  };
  auto* memory = new DeviceMemory(content);
  napi_value handle;
  if (napi_create_external(env, memory, finalize, nullptr, &handle) != napi_ok) {
    if (memory->owned) cuda_library().release(memory->device, memory->data, memory->bytes);
    delete memory;
    throw Napi::Error::New(env);
  }
  int64_t total;
  if (content.owned) napi_adjust_external_memory(env, content.bytes, &total);
  if (napi_type_tag_object(env, handle, &kDeviceMemoryTag) != napi_ok) throw Napi::Error::New(env);
  return Napi::Value(env, handle);
}

// allocate(device, bytes, zeroed)
Napi::Value allocate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int32_t device = device_from(info[0]);
    const int64_t bytes = bytes_from(info[1]);
    check(bytes >= 0, "bytes");
    void* data = cuda_library().allocate(device, bytes, info[2].As<Napi::Boolean>());
    return handle_of(info.Env(), {device, data, bytes, true});
  });
}

// borrow(device, address, bytes): memory of someone else, after checks.
Napi::Value borrow(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int32_t device = device_from(info[0]);
    const uint64_t address = address_from(info[1]);
    const int64_t bytes = bytes_from(info[2]);
    cuda_library().check_foreign(device, address, bytes);
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address is what the caller has.
    return handle_of(info.Env(), {device, reinterpret_cast<void*>(address), bytes, false});
  });
}

void release(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { device_memory(info.Env(), info[0]).release(info.Env()); });
}

struct Bytes {
  void* data;
  int64_t size;
};

Bytes host_bytes(Napi::Env env, napi_value array) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  check(napi_get_typedarray_info(env, array, &type, &length, &data, nullptr, nullptr) == napi_ok, "a typed array");
  const int64_t element = type == napi_float32_array || type == napi_int32_array ? 4
                          : type == napi_uint16_array                            ? 2
                                                                                 : 1;
  return {data, static_cast<int64_t>(length) * element};
}

// preferHugePages(array)
void prefer_huge_pages_of(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Bytes all = host_bytes(info.Env(), info[0]);
    prefer_huge_pages(all.data, all.size);
  });
}

// `bytes` of a piece of device memory from `offset` on.
void* device_bytes(const DeviceMemory& memory, const Napi::Value& offset, int64_t bytes) {
  const int64_t begin = bytes_from(offset);
  if (memory.data == nullptr) throw Error("ERR_DISPOSED", "the tensor has been disposed");
  check(begin >= 0 && begin <= memory.bytes && bytes <= memory.bytes - begin, "outside the memory");
  return static_cast<char*>(memory.data) + begin;
}

// copyToDevice(handle, offset, array)
void copy_to_device(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceMemory& memory = device_memory(info.Env(), info[0]);
    const Bytes from = host_bytes(info.Env(), info[2]);
    cuda_library().copy_to_device(memory.device, device_bytes(memory, info[1], from.size), from.data, from.size);
  });
}

constexpr const char* kOverlap = "expected out to be memory of its own, got memory that overlaps the tensor";

// copyOnDevice(to, offset, stride, from, offset, stride, row bytes, rows): memory of one GPU, all in bytes.
void copy_on_device(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceMemory &to = device_memory(info.Env(), info[0]), &from = device_memory(info.Env(), info[3]);
    CudaRows rows;
    rows.to_stride = bytes_from(info[2]), rows.from_stride = bytes_from(info[5]);
    rows.row_bytes = bytes_from(info[6]), rows.count = bytes_from(info[7]);
    check(to.device == from.device, "memory of one GPU");
    const auto extent = [&](int64_t stride) {
      constexpr int64_t kMost = int64_t{1} << 53;
      check(rows.row_bytes >= 0 && rows.count >= 0 && stride >= rows.row_bytes, "rows");
      check(rows.count <= 1 || stride <= kMost / rows.count, "rows");
      return rows.count == 0 ? 0 : (rows.count - 1) * stride + rows.row_bytes;
    };
    const int64_t to_extent = extent(rows.to_stride), from_extent = extent(rows.from_stride);
    rows.to = device_bytes(to, info[1], to_extent);
    rows.from = device_bytes(from, info[4], from_extent);
    const auto to_begin = reinterpret_cast<uintptr_t>(rows.to), from_begin = reinterpret_cast<uintptr_t>(rows.from);
    if (to_begin < from_begin + static_cast<uintptr_t>(from_extent) &&
        from_begin < to_begin + static_cast<uintptr_t>(to_extent)) {
      throw Error("ERR_INVALID_ARGUMENT", kOverlap);
    }
    cuda_library().copy_on_device(to.device, rows);
  });
}

// copyToHost(array, handle, offset)
void copy_to_host(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const DeviceMemory& memory = device_memory(info.Env(), info[1]);
    const Bytes to = host_bytes(info.Env(), info[0]);
    cuda_library().copy_to_host(memory.device, to.data, device_bytes(memory, info[2], to.size), to.size);
  });
}

void synchronize(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { cuda_library().synchronize(device_from(info[0])); });
}

Napi::Value memory_info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const CudaMemoryInfo found = cuda_library().memory_info(device_from(info[0]));
    Napi::Object result = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, int64_t bytes) {
      result.Set(name, Napi::Number::New(info.Env(), static_cast<double>(bytes)));
    };
    set("used", found.used), set("reserved", found.reserved), set("limit", found.limit);
    set("free", found.free), set("total", found.total);
    return Napi::Value(result);
  });
}

void set_memory_limit(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { cuda_library().set_memory_limit(device_from(info[0]), bytes_from(info[1])); });
}

Napi::Value address_of(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const DeviceMemory& memory = device_memory(info.Env(), info[0]);
    return Napi::Value(Napi::BigInt::New(info.Env(), uint64_t{reinterpret_cast<uintptr_t>(memory.data)}));
  });
}

Napi::Value stream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::Value(Napi::BigInt::New(info.Env(), cuda_library().stream(device_from(info[0]))));
  });
}

// (device, stream)
template <void (*CudaLibrary::*function)(int32_t device, uint64_t stream)>
void with_stream(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { (cuda_library().*function)(device_from(info[0]), address_from(info[1])); });
}

// ---- graphs

// A worker that ends while it captures must not leave the device to itself.
thread_local int32_t capturing_device = kCpu;
void abandon_at_end(void* device) { cuda_library().abandon_capture(*static_cast<int32_t*>(device)); }

void begin_capture(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const int32_t device = device_from(info[0]);
    cuda_library().begin_capture(device);
    capturing_device = device;
    napi_add_env_cleanup_hook(info.Env(), abandon_at_end, &capturing_device);
  });
}

void abandon_capture(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const int32_t device = device_from(info[0]);
    napi_remove_env_cleanup_hook(info.Env(), abandon_at_end, &capturing_device);
    cuda_library().abandon_capture(device);
  });
}

// The graph, as an External that owns it.
Napi::Value end_capture(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const int32_t device = device_from(info[0]);
    napi_remove_env_cleanup_hook(info.Env(), abandon_at_end, &capturing_device);
    auto* graph = new Graph{device, cuda_library().end_capture(device)};
    const auto finalize = [](napi_env, void* data, void*) {
      auto* finished = static_cast<Graph*>(data);
      finished->release();
      delete finished;
    };
    napi_value handle;
    if (napi_create_external(info.Env(), graph, finalize, nullptr, &handle) != napi_ok) {
      graph->release();
      delete graph;
      throw Napi::Error::New(info.Env());
    }
    if (napi_type_tag_object(info.Env(), handle, &kGraphTag) != napi_ok) throw Napi::Error::New(info.Env());
    return Napi::Value(info.Env(), handle);
  });
}

Graph& graph_of(napi_env env, napi_value value) { return content_of<Graph>(env, value, kGraphTag, "expected a graph"); }

void replay(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Graph& graph = graph_of(info.Env(), info[0]);
    check(graph.graph != nullptr, "the graph has been disposed");
    cuda_library().replay(graph.device, graph.graph);
  });
}

void release_graph(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { graph_of(info.Env(), info[0]).release(); });
}

void start_timer(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { cuda_library().start_timer(device_from(info[0])); });
}

Napi::Value stop_timer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::Value(Napi::Number::New(info.Env(), cuda_library().stop_timer(device_from(info[0]))));
  });
}

// Every function JavaScript can call.
Napi::Object init(Napi::Env env, Napi::Object exports) {
  const auto function = [&](const char* name, auto call) { exports.Set(name, Napi::Function::New(env, call)); };
  exports.Set("isa", Napi::String::New(env, isa_kernels().name));
  function("setThreads", set_threads_from);
  function("threads", get_threads);
  function("preferHugePages", prefer_huge_pages_of);
  Napi::Object fields = Napi::Object::New(env);
  const auto op = [&]<typename Args, void (*run)(const Args&)>(const char* name) {
    function(name, call<Args, run>);
    fields.Set(name, FieldNames::of<Args>(env));
  };
  op.template operator()<MemoryFloor, memory_floor>("memoryFloor");
  op.template operator()<Cast, cast>("cast");
  op.template operator()<TokenLogprob, token_logprob>("tokenLogprob");
  op.template operator()<TokenLogprobBackward, token_logprob_backward>("tokenLogprobBackward");
  op.template operator()<FapoPenalty, fapo_penalty>("fapoPenalty");
  op.template operator()<GroupAdvantage, group_advantage>("groupAdvantage");
  op.template operator()<FapoAdvantage, fapo_advantage>("fapoAdvantage");
  op.template operator()<PolicyLoss, policy_loss>("policyLoss");
  op.template operator()<FusedPolicyLoss, fused_policy_loss>("fusedPolicyLoss");
  exports.Set("fields", fields);
  function("openCuda", open_cuda);
  function("cudaProbe", cuda_probe);
  function("deviceInfo", device_info);
  function("allocate", allocate);
  function("borrow", borrow);
  function("release", release);
  function("copyToDevice", copy_to_device);
  function("copyOnDevice", copy_on_device);
  function("copyToHost", copy_to_host);
  function("synchronize", synchronize);
  function("memoryInfo", memory_info);
  function("setMemoryLimit", set_memory_limit);
  function("addressOf", address_of);
  function("stream", stream);
  function("setStream", with_stream<&CudaLibrary::set_stream>);
  function("waitFor", with_stream<&CudaLibrary::wait_for>);
  function("makeWait", with_stream<&CudaLibrary::make_wait>);
  function("beginCapture", begin_capture);
  function("endCapture", end_capture);
  function("abandonCapture", abandon_capture);
  function("replay", replay);
  function("releaseGraph", release_graph);
  function("startTimer", start_timer);
  function("stopTimer", stop_timer);
  return exports;
}

NODE_API_MODULE(fapo_kernels, init)

}  // namespace
}  // namespace fapo
