// A custom primitive of MLX's graph: a function of the caller's that computes outputs from inputs on a CPU stream. src/lib.rs
// declares this interface for Rust. Handles are mlx-c's, whose private headers convert them; no function of mlx-c is called.
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

extern "C" {

// The memory of an array while the function runs.
typedef struct mlx_primitive_view_ {
  void* data;
  const int32_t* shape;
  // In elements. Outputs are row-major.
  const int64_t* strides;
  size_t ndim;
  mlx_dtype dtype;
} mlx_primitive_view;

// The function. It runs at most once, on the thread of the stream.
typedef struct mlx_primitive_function_ {
  void* payload;
  // Returns 0, or another number after writing the reason: at most `capacity` bytes, with the zero byte at its end. It must not
  // unwind.
  int (*run)(
      void* payload,
      const mlx_primitive_view* inputs,
      const mlx_primitive_view* outputs,
      char* reason,
      size_t capacity);
  // Called once, on any thread, when MLX drops the function.
  void (*free)(void* payload);
} mlx_primitive_function;

// The description of an output.
typedef struct mlx_primitive_output_ {
  const int32_t* shape;
  size_t ndim;
  mlx_dtype dtype;
  // The input whose memory it reuses if nothing else needs that memory and the sizes agree, or a negative number. The function
  // can compare addresses.
  int32_t donor;
} mlx_primitive_output;

} // extern "C"

namespace {

using mlx::core::array;

// Memory of outputs that were dropped, for outputs of the same size. MLX's allocator for CPUs keeps nothing, and memory that is new
// to the process is cleared by the system page by page, which takes longer than many kernels. MLX counts it as active.
class BufferCache {
 public:
  // The process has one, which is never destroyed: MLX drops arrays until the end.
  static BufferCache& global() {
    static auto* cache = new BufferCache;
    return *cache;
  }

  mlx::core::allocator::Buffer take(size_t bytes) {
    if (bytes >= least) {
      std::lock_guard lock(mutex_);
      // The last ones are the likeliest to be in the processor's caches.
      for (auto buffer = buffers_.rbegin(); buffer != buffers_.rend(); ++buffer) {
        const size_t held = size(*buffer);
        if (held >= bytes && held - bytes < page) {
          auto taken = *buffer;
          buffers_.erase(std::next(buffer).base());
          bytes_ -= held;
          return taken;
        }
      }
    }
    return mlx::core::allocator::malloc(bytes);
  }

  void give(mlx::core::allocator::Buffer buffer) {
    const size_t bytes = size(buffer);
    if (bytes < least || bytes > most) {
      return mlx::core::allocator::free(buffer);
    }
    std::lock_guard lock(mutex_);
    buffers_.push_back(buffer);
    bytes_ += bytes;
    shrink(most);
  }

  void clear() {
    std::lock_guard lock(mutex_);
    shrink(0);
  }

  size_t bytes() {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  // Smaller ones are no work for the allocator.
  static constexpr size_t least = size_t{64} << 10;
  static constexpr size_t most = size_t{64} << 20;
  // An allocator may round sizes up.
  static constexpr size_t page = size_t{16} << 10;

  static size_t size(mlx::core::allocator::Buffer buffer) {
    return mlx::core::allocator::allocator().size(buffer);
  }

  // Frees the oldest buffers.
  void shrink(size_t bytes) {
    while (bytes_ > bytes) {
      bytes_ -= size(buffers_.front());
      mlx::core::allocator::free(buffers_.front());
      buffers_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<mlx::core::allocator::Buffer> buffers_;
  size_t bytes_ = 0;
};

// The caller's function, owned.
struct Function {
  mlx_primitive_function function;

  explicit Function(mlx_primitive_function function) : function(function) {}
  Function(const Function&) = delete;
  Function& operator=(const Function&) = delete;
  ~Function() {
    function.free(function.payload);
  }
};

// The place of an array. It does not own the memory: MLX keeps the arrays of a task until the task is done.
struct Place {
  void* data;
  mlx::core::Shape shape;
  mlx::core::Strides strides;
  mlx_dtype dtype;

  explicit Place(const array& a)
      : data(const_cast<char*>(a.data<char>())),
        shape(a.shape()),
        strides(a.strides()),
        dtype(mlx_dtype_to_c(a.dtype())) {}

  mlx_primitive_view view() const {
    return {data, shape.data(), strides.data(), shape.size(), dtype};
  }
};

class CustomPrimitive : public mlx::core::Primitive {
 public:
  CustomPrimitive(mlx::core::Stream stream, const char* name, std::shared_ptr<Function> function, std::vector<int> donors)
      : Primitive(stream), name_(name), function_(std::move(function)), donors_(std::move(donors)) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override {
    std::vector<Place> places;
    places.reserve(inputs.size() + outputs.size());
    for (const auto& input : inputs) {
      places.emplace_back(input);
    }
    for (size_t i = 0; i < outputs.size(); i++) {
      const int donor = donors_[i];
      if (donor >= 0 && can_take(inputs[donor], outputs[i])) {
        outputs[i].copy_shared_buffer(inputs[donor]);
      } else {
        outputs[i].set_data(
            BufferCache::global().take(outputs[i].nbytes()),
            [](mlx::core::allocator::Buffer buffer) { BufferCache::global().give(buffer); });
      }
      places.emplace_back(outputs[i]);
    }
    auto& encoder = mlx::core::cpu::get_command_encoder(stream());
    encoder.dispatch([name = name_, function = function_, places = std::move(places), count = inputs.size()]() {
      std::vector<mlx_primitive_view> views;
      views.reserve(places.size());
      for (const auto& place : places) {
        views.push_back(place.view());
      }
      char reason[512] = "";
      const auto& [payload, run, free] = function->function;
      if (run(payload, views.data(), views.data() + count, reason, sizeof(reason)) != 0) {
        throw std::runtime_error("[" + std::string(name) + "] " + reason);
      }
    });
  }

  void eval_gpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error("[" + std::string(name_) + "] is implemented for the CPU only.");
  }

  std::vector<array> jvp(const std::vector<array>&, const std::vector<array>&, const std::vector<int>&) override {
    throw std::runtime_error("[" + std::string(name_) + "] has no derivative.");
  }

  std::vector<array> vjp(
      const std::vector<array>&,
      const std::vector<array>&,
      const std::vector<int>&,
      const std::vector<array>&) override {
    throw std::runtime_error("[" + std::string(name_) + "] has no derivative.");
  }

  const char* name() const override {
    return name_;
  }

 private:
  // Whether nothing else needs the memory of the input, and the output fits it exactly.
  static bool can_take(const array& input, const array& output) {
    return input.is_donatable() && input.flags().row_contiguous && input.size() == output.size() &&
        input.dtype() == output.dtype() && input.shape() == output.shape();
  }

  const char* name_;
  std::shared_ptr<Function> function_;
  std::vector<int> donors_;
};

} // namespace

// Stores an array for each of `outputs` in `results`, which holds null handles. Takes `function` over, also on failure. MLX keeps
// `name`, which must be static. Returns 0, or another number after writing the reason: at most `capacity` bytes, with the zero byte
// at its end.
extern "C" int mlx_primitive(
    mlx_array* results,
    const char* name,
    const mlx_array* inputs,
    size_t input_count,
    const mlx_primitive_output* outputs,
    size_t output_count,
    mlx_primitive_function function,
    const mlx_stream stream,
    char* reason,
    size_t capacity) {
  try {
    auto owned = std::make_shared<Function>(function);
    std::vector<array> arrays;
    arrays.reserve(input_count);
    for (size_t i = 0; i < input_count; i++) {
      arrays.push_back(mlx_array_get_(inputs[i]));
    }
    std::vector<mlx::core::Shape> shapes;
    std::vector<mlx::core::Dtype> dtypes;
    std::vector<int> donors;
    for (size_t i = 0; i < output_count; i++) {
      const auto& [shape, ndim, dtype, donor] = outputs[i];
      shapes.emplace_back(shape, shape + ndim);
      dtypes.push_back(mlx_dtype_to_cpp(dtype));
      donors.push_back(donor < static_cast<int32_t>(input_count) ? donor : -1);
    }
    auto primitive =
        std::make_shared<CustomPrimitive>(mlx_stream_get_(stream), name, std::move(owned), std::move(donors));
    auto made = array::make_arrays(std::move(shapes), dtypes, primitive, arrays);
    for (size_t i = 0; i < output_count; i++) {
      mlx_array_set_(results[i], std::move(made[i]));
    }
  } catch (std::exception& e) {
    std::snprintf(reason, capacity, "%s", e.what());
    return 1;
  }
  return 0;
}

// Bytes of memory that are kept for later outputs. MLX counts them as active.
extern "C" size_t mlx_primitive_cached_bytes() {
  return BufferCache::global().bytes();
}

// Frees that memory.
extern "C" void mlx_primitive_clear_cache() {
  BufferCache::global().clear();
}

// Where an evaluated array begins in the memory of the GPU; MLX must be its CUDA build. MLX's own access to the memory of an array
// moves it to the host, and the headers that say where it is on the GPU come with the CUDA build alone: there a buffer points to a
// structure that begins with the address.
extern "C" void* mlx_cuda_address(const mlx_array array) {
  auto& evaluated = mlx_array_get_(array);
  char* data = *static_cast<char**>(evaluated.buffer().ptr());
  return data + evaluated.offset();
}
