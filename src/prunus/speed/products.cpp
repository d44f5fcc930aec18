// Convolutions whose weight is a sparse matrix: see products.py.
//
// Images are padded, and every stride-th pixel laid beside the next one, in planes of their own. All pixels that
// one tap of the kernel meets then lie behind each other, with some between the rows that are not wanted. So an
// output channel is a sum of slices, one for each weight, that stays in registers.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kSums = 8;  // vectors of sums that stay in registers

template <typename T, int width>
struct Vector {
  typedef T type __attribute__((vector_size(width * sizeof(T))));
};
template <typename T>
struct Vector<T, 1> {
  typedef T type;
};

template <typename T>
struct Row {
  const int32_t* columns;
  const T* values;
  int64_t count;
  T bias;
};

// `sums` vectors of outputs of one row, the last of which ends where the slice does and may overlap
template <typename T, int width, int sums>
void tile(const Row<T>& row, const int64_t* table, const T* x, int64_t last, T* out) {
  using V = typename Vector<T, width>::type;
  V sum[sums];
  for (int j = 0; j < sums; ++j) sum[j] = V{} + row.bias;
  for (int64_t k = 0; k < row.count; ++k) {
    const T* from = x + table[row.columns[k]];
    const T value = row.values[k];
    for (int j = 0; j < sums; ++j) {
      V read;
      std::memcpy(&read, from + (j + 1 < sums ? j * width : last), sizeof(V));
      sum[j] += value * read;
    }
  }
  for (int j = 0; j < sums; ++j) std::memcpy(out + (j + 1 < sums ? j * width : last), &sum[j], sizeof(V));
}

template <typename T, int width, int sums = kSums>
void tile_of(int64_t wanted, const Row<T>& row, const int64_t* table, const T* x, int64_t last, T* out) {
  if constexpr (sums > 1) {
    if (wanted < sums) return tile_of<T, width, sums - 1>(wanted, row, table, x, last, out);
  }
  tile<T, width, sums>(row, table, x, last, out);
}

template <typename T>
struct Matrix {
  const int32_t* rows;
  const int32_t* columns;
  const T* values;
  const T* bias;
  int64_t outs;
};

// Along one axis of an image
struct Axis {
  int64_t size, stride, before, out, plane;
  bool plain;
  std::vector<int64_t> phases;  // the pixels, modulo the stride, that a kernel meets

  Axis(int64_t size, int64_t kernel, int64_t stride, int64_t before, int64_t after, int64_t dilation)
      : size(size), stride(stride), before(before), plain(stride == 1 && before == 0 && after == 0) {
    const int64_t reach = dilation * (kernel - 1);
    out = (size + before + after - reach - 1) / stride + 1;
    plane = out + reach / stride;  // long enough for the last tap
    for (int64_t k = 0; k < std::min(kernel, stride); ++k) phases.push_back(k * dilation % stride);
    std::sort(phases.begin(), phases.end());
    phases.erase(std::unique(phases.begin(), phases.end()), phases.end());
  }
};

template <typename T>
void lay_out(const T* x, const Axis& down, const Axis& right, T* out) {
  const int64_t step = right.stride, length = right.plane;
  for (const auto row : down.phases) {
    for (const auto column : right.phases) {
      const int64_t first = column - right.before;
      const int64_t begin = std::min(length, first < 0 ? (-first + step - 1) / step : 0);
      const int64_t end = std::max(begin, std::min(length, (right.size - first + step - 1) / step));
      for (int64_t i = 0; i < down.plane; ++i, out += length) {
        const int64_t y = i * down.stride + row - down.before;
        if (y < 0 || y >= down.size) {
          std::fill(out, out + length, T(0));
          continue;
        }
        const T* from = x + y * right.size + first;
        std::fill(out, out + begin, T(0));
        if (step == 1)
          for (int64_t j = begin; j < end; ++j) out[j] = from[j];
        else if (step == 2)  // which a compiler knows how to do by vectors
          for (int64_t j = begin; j < end; ++j) out[j] = from[2 * j];
        else
          for (int64_t j = begin; j < end; ++j) out[j] = from[j * step];
        std::fill(out + end, out + length, T(0));
      }
    }
  }
}

template <typename T, int width = kBytes / sizeof(T)>
void multiply(const Matrix<T>& matrix, const std::vector<int64_t>& table, const T* x, int64_t items, int64_t size,
              int64_t line, int64_t high, int64_t wide, T* out) {
  const int64_t length = (high - 1) * line + wide;
  if constexpr (width > 1) {
    if (length < width) return multiply<T, width / 2>(matrix, table, x, items, size, line, high, wide, out);
  }
  const int64_t vectors = (length + width - 1) / width;
  const int64_t tiles = (vectors + kSums - 1) / kSums;
  const int64_t sums = (vectors + tiles - 1) / tiles;
  const int64_t group = 64;  // of rows, which read the same part of x
  const int64_t groups = (matrix.outs + group - 1) / group;
  at::parallel_for(0, items * tiles * groups, 1, [&](int64_t begin, int64_t end) {
    T held[kSums * width];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = i / groups / tiles;
      int64_t first = i / groups % tiles * sums * width;
      if (first >= length) continue;
      const int64_t count = std::min(sums, (length - first + width - 1) / width);
      first = std::min(first, length - width);
      const int64_t last = std::min((count - 1) * width, length - width - first);
      const int64_t stop = std::min((i % groups + 1) * group, matrix.outs);
      for (int64_t o = i % groups * group; o < stop; ++o) {
        const int64_t at = matrix.rows[o];
        const Row<T> row{matrix.columns + at, matrix.values + at, matrix.rows[o + 1] - at,
                         matrix.bias ? matrix.bias[o] : T(0)};
        T* made = out + (item * matrix.outs + o) * high * wide;
        T* to = line == wide ? made + first : held;
        tile_of<T, width>(count, row, table.data(), x + item * size + first, last, to);
        if (line == wide) continue;
        for (int64_t y = first / line; y * line < first + last + width; ++y) {
          const int64_t from = std::max(first, y * line), until = std::min(first + last + width, y * line + wide);
          for (int64_t p = from; p < until; ++p) made[p - y * (line - wide)] = held[p - first];
        }
      }
    }
  });
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& columns,
                       const at::Tensor& values, const std::optional<at::Tensor>& bias, at::IntArrayRef kernel,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK(x.scalar_type() == values.scalar_type(), "the input is ", x.scalar_type(), ", and the weight ",
              values.scalar_type());
  const Axis down{x.size(2), kernel[0], stride[0], padding[0], padding[1], dilation[0]};
  const Axis right{x.size(3), kernel[1], stride[1], padding[2], padding[3], dilation[1]};
  const int64_t items = x.size(0), channels = x.size(1), outs = rows.numel() - 1;
  const int64_t high = down.out, wide = right.out, line = right.plane, plane = down.plane * line;
  auto out = at::empty({items, outs, high, wide}, x.options().memory_format(at::MemoryFormat::Contiguous));
  if (out.numel() == 0) return out;
  const auto &on_y = down.phases, &on_x = right.phases;
  const auto index = [](const std::vector<int64_t>& of, int64_t phase) {
    return std::find(of.begin(), of.end(), phase) - of.begin();
  };
  const int64_t planes = on_y.size() * on_x.size();
  std::vector<int64_t> table;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < kernel[0]; ++i)
      for (int64_t j = 0; j < kernel[1]; ++j) {
        const int64_t y = i * dilation[0], x = j * dilation[1];
        const int64_t at = index(on_y, y % stride[0]) * on_x.size() + index(on_x, x % stride[1]);
        table.push_back((c * planes + at) * plane + y / stride[0] * line + x / stride[1]);
      }
  const auto given = x.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "prunus::sparse_conv2d", [&] {
    auto held = given;
    if (!down.plain || !right.plain) {
      held = at::empty({items * channels, planes * plane}, given.options());
      const auto* from = given.const_data_ptr<scalar_t>();
      auto* to = held.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, items * channels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          lay_out(from + i * down.size * right.size, down, right, to + i * planes * plane);
      });
    }
    const Matrix<scalar_t> matrix{rows.const_data_ptr<int32_t>(), columns.const_data_ptr<int32_t>(),
                                  values.const_data_ptr<scalar_t>(),
                                  bias ? bias->const_data_ptr<scalar_t>() : nullptr, outs};
    multiply(matrix, table, held.const_data_ptr<scalar_t>(), items, channels * planes * plane, line, high, wide,
             out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(prunus, m) {
  m.def("sparse_conv2d(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? bias, int[2] kernel, "
        "int[2] stride, int[4] padding, int[2] dilation) -> Tensor");
}
TORCH_LIBRARY_IMPL(prunus, CPU, m) { m.impl("sparse_conv2d", convolution); }
