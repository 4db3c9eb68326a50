// An operation of the caller's in MLX's graph: a function that computes outputs from inputs, on a stream of the CPU.
// Compiled together with mlx-c, whose private headers it uses; src/custom.rs declares it.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

extern "C" {

// Memory of an array, while the function runs.
typedef struct mlx_primitive_view_ {
  void* data;
  const int32_t* shape;
  // In elements. Those of outputs are those of a row-major array.
  const int64_t* strides;
  size_t ndim;
  mlx_dtype dtype;
} mlx_primitive_view;

// The function. It runs at most once, on the stream's thread.
typedef struct mlx_primitive_function_ {
  void* payload;
  // Not zero: it failed, and wrote why as text that ends in a zero byte, at most `capacity` bytes of it. It must not unwind.
  int (*run)(
      void* payload,
      const mlx_primitive_view* inputs,
      const mlx_primitive_view* outputs,
      char* reason,
      size_t capacity);
  // Called once, when MLX lets go of the function, on any thread.
  void (*free)(void* payload);
} mlx_primitive_function;

// What an output is.
typedef struct mlx_primitive_output_ {
  const int32_t* shape;
  size_t ndim;
  mlx_dtype dtype;
  // The input whose memory it takes over, where nothing else needs that and the sizes agree; less than zero for none. The
  // function tells by the addresses.
  int32_t donor;
} mlx_primitive_output;

} // extern "C"

namespace {

using mlx::core::array;

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

// Where an array lies, without a hold on it: MLX keeps the memory of a task's arrays until the task is done.
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

class Custom : public mlx::core::Primitive {
 public:
  Custom(mlx::core::Stream stream, const char* name, std::shared_ptr<Function> function, std::vector<int> donors)
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
        outputs[i].set_data(mlx::core::allocator::malloc(outputs[i].nbytes()));
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
    throw std::runtime_error("[" + std::string(name_) + "] runs on the CPU only.");
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
  // Whether nothing else needs the input's memory, and the output fits it exactly.
  static bool can_take(const array& input, const array& output) {
    return input.is_donatable() && input.flags().row_contiguous && input.size() == output.size() &&
        input.dtype() == output.dtype() && input.shape() == output.shape();
  }

  const char* name_;
  std::shared_ptr<Function> function_;
  std::vector<int> donors_;
};

} // namespace

// Stores an array for each of `outputs` in `results`, which holds null handles. `function` is taken over, also on failure.
// `name`, which is static, is what MLX calls it. Not zero: it failed, and the error handler was told why.
extern "C" int mlx_primitive(
    mlx_array* results,
    const char* name,
    const mlx_array* inputs,
    size_t input_count,
    const mlx_primitive_output* outputs,
    size_t output_count,
    mlx_primitive_function function,
    const mlx_stream stream) {
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
        std::make_shared<Custom>(mlx_stream_get_(stream), name, std::move(owned), std::move(donors));
    auto made = array::make_arrays(std::move(shapes), dtypes, primitive, arrays);
    for (size_t i = 0; i < output_count; i++) {
      mlx_array_set_(results[i], std::move(made[i]));
    }
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
  return 0;
}
