// The only file that knows Node: one JavaScript object in, one argument struct, one call, errors out.
#include <napi.h>

#include <new>
#include <string>
#include <type_traits>

#include "native/backend.h"
#include "native/error.h"
#include "native/memory_floor.h"
#include "native/parallel.h"
#include "native/simd/row_kernels.h"

namespace fapo {
namespace {

// Which memory an op reads and writes, to refuse outputs that overlap anything else.
class Ranges {
 public:
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
};

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

// Fills an argument struct from the properties of one JavaScript object: a literal made in lib/ops, so that reading it
// runs no code of the caller's between the fetch of a pointer and its use. Lengths and types come from Node-API, never
// from properties that JavaScript can change.
class FieldReader {
 public:
  FieldReader(napi_env env, napi_value object, Ranges& ranges) : env_(env), object_(object), ranges_(ranges) {}

  template <typename T>
  void operator()(const char* name, T& field) {
    const napi_value value = property(object_, name);
    napi_valuetype type;
    ok(napi_typeof(env_, value, &type));
    if (type != napi_undefined) read(name, value, field);
  }

 private:
  template <typename T>
  void read(const char* name, napi_value value, Array<T>& array) {
    using Element = std::remove_const_t<T>;
    const View view = view_of(value);
    check(view.type == ArrayType<Element>::value, name);
    array = {static_cast<T*>(view.data), view.length};
    ranges_.add(name, view.data, view.length * static_cast<int64_t>(sizeof(T)), !std::is_const_v<T>);
  }

  template <typename Void>
  void read(const char* name, napi_value value, BasicMatrix<Void>& matrix) {
    const View view = view_of(property(value, "data"));
    check(view.type == napi_float32_array || view.type == napi_uint16_array, name);
    matrix = {view.data, view.length, static_cast<int64_t>(number(property(value, "rowStride"))),
              static_cast<DType>(static_cast<int32_t>(number(property(value, "dtype"))))};
    const bool wide = view.type == napi_float32_array;
    check(wide == (matrix.dtype == DType::float32), name);
    ranges_.add(name, view.data, view.length * (wide ? 4 : 2), !std::is_const_v<Void>);
  }

  // A struct within a struct is an object within the object.
  template <typename T>
    requires requires(T& t, FieldReader& reader) { t.fields(reader); }
  void read(const char*, napi_value value, T& field) {
    FieldReader nested(env_, value, ranges_);
    field.fields(nested);
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
    napi_typedarray_type type;
    void* data;
    int64_t length;
  };

  // Not TypedArray::ArrayBuffer(): that fails for an array over a SharedArrayBuffer. At length 0 the pointer may be
  // null or dangling (detached, shrunk), and is not kept.
  View view_of(napi_value value) const {
    View view{};
    size_t length = 0;
    ok(napi_get_typedarray_info(env_, value, &view.type, &length, &view.data, nullptr, nullptr));
    view.length = static_cast<int64_t>(length);
    static char empty;
    if (length == 0) view.data = &empty;
    return view;
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
  napi_value object_;
  Ranges& ranges_;
};

[[noreturn]] void rethrow(Napi::Env env, const char* code, const char* message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", code);
  throw error;
}

// Runs fn; every C++ exception becomes a JavaScript error with a code.
template <typename Fn>
void guarded(Napi::Env env, const Fn& fn) {
  try {
    fn();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& e) {
    rethrow(env, e.code, e.what());
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
    FieldReader reader(info.Env(), info[0], ranges);
    args.fields(reader);
    ranges.check_overlap(in_place(args));
    op(args);
  });
}

void set_threads_from(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { set_threads(info[0].As<Napi::Number>().Int32Value()); });
}

Napi::Value get_threads(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), threads()); }

// Every function JavaScript can call.
Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("isa", Napi::String::New(env, isa_kernels().name));
  exports.Set("setThreads", Napi::Function::New(env, set_threads_from));
  exports.Set("threads", Napi::Function::New(env, get_threads));
  exports.Set("memoryFloor", Napi::Function::New(env, call<MemoryFloor, memory_floor>));
  exports.Set("cast", Napi::Function::New(env, call<Cast, cast>));
  exports.Set("tokenLogprob", Napi::Function::New(env, call<TokenLogprob, token_logprob>));
  exports.Set("tokenLogprobBackward", Napi::Function::New(env, call<TokenLogprobBackward, token_logprob_backward>));
  exports.Set("fapoPenalty", Napi::Function::New(env, call<FapoPenalty, fapo_penalty>));
  exports.Set("groupAdvantage", Napi::Function::New(env, call<GroupAdvantage, group_advantage>));
  exports.Set("fapoAdvantage", Napi::Function::New(env, call<FapoAdvantage, fapo_advantage>));
  exports.Set("policyLoss", Napi::Function::New(env, call<PolicyLoss, policy_loss>));
  exports.Set("fusedPolicyLoss", Napi::Function::New(env, call<FusedPolicyLoss, fused_policy_loss>));
  return exports;
}

NODE_API_MODULE(fapo_kernels, init)

}  // namespace
}  // namespace fapo
