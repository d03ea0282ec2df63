// C in compressed sparse rows. No row is searched and no count is scanned: what the axes' tables say of one row gives
// every entry's place in closed form, so that one pass writes the three arrays.
#include <algorithm>

#include "elements.cuh"
#include "matrix.h"

namespace convarith::cuda {

PackedTables pack_tables(const CsrPlan& plan, bool meets) {
  PackedTables packed;
  auto& words = packed.words;
  const auto append = [&](const std::vector<int64_t>& values) {
    const int64_t offset = static_cast<int64_t>(words.size());
    for (const int64_t v : values) words.push_back(static_cast<int32_t>(v));
    return offset;
  };
  for (int i = 0; i < kAxes; ++i) {
    const AxisTable& table = plan.table[i];
    packed.one_to_one = packed.one_to_one && table.tap.size() == table.column.size();
  }
  for (int i = 0; i < kAxes; ++i) {
    const AxisTable& table = plan.table[i];
    packed.axis[i] = {append(table.begin), 0, 0, 0, 0};
    if (!meets) {
      packed.axis[i].column = append(table.column);
      packed.axis[i].tap = append(table.tap);
      if (!packed.one_to_one) packed.axis[i].tap_begin = append(table.tap_begin);
      continue;
    }
    words.resize(words.size() + words.size() % 2);  // pairs are read as such
    packed.axis[i].meets = static_cast<int64_t>(words.size());
    words.resize(words.size() + 2 * plan.outputs[i] * plan.taps[i], -1);
    int32_t* pairs = words.data() + packed.axis[i].meets;
    for (int64_t row = 0; row < plan.rows[i]; ++row) {
      for (int64_t e = table.begin[row]; e < table.begin[row + 1]; ++e) {
        const int64_t output = plan.transposed ? table.column[e] : row;
        for (int64_t t = table.tap_begin[e]; t < table.tap_begin[e + 1]; ++t) {
          int32_t* pair = pairs + 2 * (output * plan.taps[i] + table.tap[t]);
          pair[0] = static_cast<int32_t>(row);
          pair[1] = static_cast<int32_t>(e - table.begin[row]);
        }
      }
    }
  }
  return packed;
}

namespace {

// Upload ------------------------------------------------------------------------------------------------------------

struct Words {
  static constexpr int kMost = 1000;  // arguments of a kernel may have 4096 bytes
  int32_t word[kMost];
};

__global__ void upload_kernel(const Words words, int count, int32_t* to) {
  for (int i = threadIdx.x; i < count; i += kThreads) to[i] = words.word[i];
}

// Assembly ----------------------------------------------------------------------------------------------------------

// One axis's table on the device (AxisTable), and what it counts.
struct DeviceTable {
  const int32_t* begin;
  const int32_t* column;
  const int32_t* tap_begin;
  const int32_t* tap;
  const int2* meets;
  int64_t rows, columns, entries, outputs, taps;
  int64_t tap_stride;  // of the weight

  __device__ int size(int64_t row) const { return begin[row + 1] - begin[row]; }

  // The row that holds entry e < entries.
  __device__ int64_t row_of(int64_t e) const {
    int64_t low = 0, high = rows;  // begin[low] <= e < begin[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (begin[middle] <= e) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

struct DevicePlan {
  DeviceTable table[kAxes];
  int64_t groups, row_channels, column_channels;
  int64_t row_stride, column_stride, group_stride;  // of the weight
  int64_t spatial_rows, spatial_columns;
  int64_t entries_per_channel;

  // Entries of one channel pair in front of a spatial row.
  __device__ int64_t entries_before(int64_t r0, int64_t r1, int64_t r2) const {
    const auto& [t0, t1, t2] = table;
    return t0.begin[r0] * t1.entries * t2.entries +
           t0.size(r0) * (t1.begin[r1] * t2.entries + int64_t{t1.size(r1)} * t2.begin[r2]);
  }
};

DevicePlan on_device(const CsrPlan& plan, const PackedTables& packed, const int32_t* tables) {
  DevicePlan d = {};
  for (int i = 0; i < kAxes; ++i) {
    const auto& at = packed.axis[i];
    d.table[i] = {tables + at.begin, tables + at.column, tables + at.tap_begin, tables + at.tap,
                  nullptr,           plan.rows[i],       plan.columns[i],       plan.table[i].entries(),
                  plan.outputs[i],   plan.taps[i],       plan.tap_stride[i]};
  }
  d.groups = plan.groups;
  d.row_channels = plan.row_channels;
  d.column_channels = plan.column_channels;
  d.row_stride = plan.row_stride;
  d.column_stride = plan.column_stride;
  d.group_stride = plan.group_stride;
  d.spatial_rows = plan.spatial_rows();
  d.spatial_columns = plan.spatial_columns();
  d.entries_per_channel = plan.entries_per_channel();
  return d;
}

template <typename Index>
__global__ void __launch_bounds__(kThreads) row_pointers_kernel(int64_t rows, DevicePlan p, Index* crow) {
  const int64_t row = this_element(rows);
  if (row < 0) return;
  const auto& [t0, t1, t2] = p.table;
  const int64_t channel = row / p.spatial_rows, r = row % p.spatial_rows;
  const int64_t r2 = r % t2.rows, r1 = r / t2.rows % t1.rows, r0 = r / (t2.rows * t1.rows);
  const int64_t size = int64_t{t0.size(r0)} * t1.size(r1) * t2.size(r2);
  if (row == 0) crow[0] = 0;
  crow[row + 1] =
      static_cast<Index>(channel * p.entries_per_channel + (p.entries_before(r0, r1, r2) + size) * p.column_channels);
}

// An entry of one row channel of a group: its column within the group, and the taps of the weight that it sums.
template <bool kOneToOne>
struct Entry {
  int64_t column;
  int64_t offset;    // into the weight: of its column channel, and of its tap where it has one
  int64_t e[kAxes];  // entries of the axes' tables, where it has more
};

// The m-th of p.entries_per_channel.
template <bool kOneToOne>
__device__ inline Entry<kOneToOne> entry_of(const DevicePlan& p, int64_t m) {
  const auto& [t0, t1, t2] = p.table;
  // Planes, lines and rows hold so many entries for every one of their axis's: divide, look up, take the rest.
  const int64_t unit0 = t1.entries * t2.entries * p.column_channels;
  const int64_t r0 = t0.row_of(m / unit0), n0 = t0.size(r0);
  m -= t0.begin[r0] * unit0;
  const int64_t unit1 = n0 * t2.entries * p.column_channels;
  const int64_t r1 = t1.row_of(m / unit1), n1 = t1.size(r1);
  m -= t1.begin[r1] * unit1;
  const int64_t unit2 = n0 * n1 * p.column_channels;
  const int64_t r2 = t2.row_of(m / unit2), n2 = t2.size(r2);
  m -= t2.begin[r2] * unit2;
  const int row = static_cast<int>(n1 * n2), j = static_cast<int>(m % (n0 * row));
  const int64_t channel = m / (n0 * row);
  const int64_t e0 = t0.begin[r0] + j / row, e1 = t1.begin[r1] + j % row / static_cast<int>(n2),
                e2 = t2.begin[r2] + j % static_cast<int>(n2);
  Entry<kOneToOne> entry = {};
  entry.column =
      channel * p.spatial_columns + (t0.column[e0] * t1.columns + t1.column[e1]) * t2.columns + t2.column[e2];
  entry.offset = channel * p.column_stride;
  if (kOneToOne) {
    entry.offset += t0.tap[e0] * t0.tap_stride + t1.tap[e1] * t1.tap_stride + t2.tap[e2] * t2.tap_stride;
  } else {
    entry.e[0] = e0;
    entry.e[1] = e1;
    entry.e[2] = e2;
  }
  return entry;
}

template <bool kOneToOne, typename T>
__device__ inline T value_of(const DevicePlan& p, const Entry<kOneToOne>& entry, const T* w) {
  if constexpr (kOneToOne) {
    return w[entry.offset];
  } else {
    const auto& [t0, t1, t2] = p.table;
    const auto& e = entry.e;
    Accumulate<T> sum(0);
    for (int a = t0.tap_begin[e[0]]; a < t0.tap_begin[e[0] + 1]; ++a) {
      for (int b = t1.tap_begin[e[1]]; b < t1.tap_begin[e[1] + 1]; ++b) {
        for (int c = t2.tap_begin[e[2]]; c < t2.tap_begin[e[2] + 1]; ++c) {
          const int64_t tap = t0.tap[a] * t0.tap_stride + t1.tap[b] * t1.tap_stride + t2.tap[c] * t2.tap_stride;
          sum += convert<Accumulate<T>>(w[entry.offset + tap]);
        }
      }
    }
    return convert<T>(sum);
  }
}

constexpr int kEntries = 4;  // of a thread

// Every thread finds its entries once and writes them for many row channels, whose rows differ in nothing but the
// weights and, between groups, the first column.
template <bool kOneToOne, typename T, typename Index>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(DevicePlan p, int64_t channels_per_block, const T* w, Index* col, T* values) {
  const int64_t first = blockIdx.x * int64_t{kEntries * kThreads} + threadIdx.x;
  Entry<kOneToOne> entry[kEntries];
#pragma unroll
  for (int i = 0; i < kEntries; ++i) {
    const int64_t m = first + i * kThreads;
    if (m < p.entries_per_channel) entry[i] = entry_of<kOneToOne>(p, m);
  }
  const int64_t channels = p.groups * p.row_channels;
  const int64_t begin = blockIdx.y * channels_per_block;
  const int64_t end = min(begin + channels_per_block, channels);
  for (int64_t channel = begin; channel < end; ++channel) {
    const int64_t group = channel / p.row_channels, k = channel % p.row_channels;
    const int64_t shift = group * p.column_channels * p.spatial_columns;
    const int64_t to = channel * p.entries_per_channel + first;
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
      if (first + i * kThreads >= p.entries_per_channel) break;
      col[to + i * kThreads] = static_cast<Index>(entry[i].column + shift);
      if (w == nullptr) continue;
      values[to + i * kThreads] = value_of(p, entry[i], w + group * p.group_stride + k * p.row_stride);
    }
  }
}

// The adjoint of w -> values
// --------------------------------------------------------------------------------------------

constexpr int kSplit = kThreads / kWarp;  // warps that share a weight's entries

// A lane has a weight, a warp every kSplit-th output. The warps' sums are added in order.
template <typename T>
__global__ void __launch_bounds__(kThreads) weight_kernel(DevicePlan p, Divider<int64_t> tiles, const T* values, T* w) {
  using A = Accumulate<T>;
  const auto& [t0, t1, t2] = p.table;
  A* sums = shared_memory<A>();  // (kSplit, kWarp)
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t channel = blockIdx.x;
  const int64_t tile = tiles.take(channel);
  const int64_t taps = t0.taps * t1.taps * t2.taps;
  const int64_t weight = tile * kWarp + lane;  // of the row channel
  const bool exists = weight < p.column_channels * taps;
  const int64_t c = weight / taps, tap = weight % taps;
  const int64_t tap2 = tap % t2.taps, tap1 = tap / t2.taps % t1.taps, tap0 = tap / (t2.taps * t1.taps);
  const T* of_channel = values + channel * p.entries_per_channel;
  A sum(0);
  const int64_t outputs = exists ? t0.outputs * t1.outputs * t2.outputs : 0;
  for (int64_t o = warp; o < outputs; o += kSplit) {
    const int64_t o2 = o % t2.outputs, o1 = o / t2.outputs % t1.outputs, o0 = o / (t2.outputs * t1.outputs);
    const int2 m0 = t0.meets[o0 * t0.taps + tap0], m1 = t1.meets[o1 * t1.taps + tap1],
               m2 = t2.meets[o2 * t2.taps + tap2];
    if (m0.x < 0 || m1.x < 0 || m2.x < 0) continue;
    const int64_t n1 = t1.size(m1.x), n2 = t2.size(m2.x), n = t0.size(m0.x) * n1 * n2;
    const int64_t entry =
        p.entries_before(m0.x, m1.x, m2.x) * p.column_channels + c * n + (m0.y * n1 + m1.y) * n2 + m2.y;
    sum += convert<A>(of_channel[entry]);
  }
  sums[warp * kWarp + lane] = sum;
  __syncthreads();
  if (warp != 0 || !exists) return;
  for (int i = 1; i < kSplit; ++i) sum += sums[i * kWarp + lane];
  const int64_t to = channel / p.row_channels * p.group_stride + channel % p.row_channels * p.row_stride +
                     c * p.column_stride + tap0 * t0.tap_stride + tap1 * t1.tap_stride + tap2 * t2.tap_stride;
  w[to] = convert<T>(sum);
}

// Products ------------------------------------------------------------------------------------------------------------

template <typename A>
__device__ inline A shuffle_xor(A v, int lanes) {
  return __shfl_xor_sync(kAllLanes, v, lanes);
}

template <typename T>
__device__ inline Complex<T> shuffle_xor(Complex<T> v, int lanes) {
  return {__shfl_xor_sync(kAllLanes, v.real, lanes), __shfl_xor_sync(kAllLanes, v.imaginary, lanes)};
}

constexpr int kColumns = 4;  // of x that a lane holds at a time

// A warp has a row. Its lanes lie along x's columns; where those are few, `lanes` of them do, a power of two, and the
// others take further entries.
template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads) multiply_kernel(int64_t rows, int64_t width, int lanes, const Index* crow,
                                                            const Index* col, const T* values, const T* x, T* y) {
  using A = Accumulate<T>;
  const int64_t row = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / kWarp;
  if (row >= rows) return;  // the whole warp
  const int lane = threadIdx.x % kWarp, b = lane % lanes, part = lane / lanes, parts = kWarp / lanes;
  for (int64_t first = 0; first < width; first += kColumns * lanes) {
    A sum[kColumns];
    for (int i = 0; i < kColumns; ++i) sum[i] = A(0);
    for (int64_t e = crow[row] + part; e < crow[row + 1]; e += parts) {
      const A v = convert<A>(values[e]);
      const T* line = x + col[e] * width + first + b;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (first + b + i * lanes < width) sum[i] += v * convert<A>(line[i * lanes]);
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      for (int step = lanes; step < kWarp; step *= 2) sum[i] += shuffle_xor(sum[i], step);
      if (part == 0 && first + b + i * lanes < width) y[row * width + first + b + i * lanes] = convert<T>(sum[i]);
    }
  }
}

// Likewise; `lanes` of them sum one entry together.
template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads) sample_kernel(int64_t rows, int64_t width, int lanes, const Index* crow,
                                                          const Index* col, const T* y, const T* x, T* values) {
  using A = Accumulate<T>;
  const int64_t row = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / kWarp;
  if (row >= rows) return;
  const int lane = threadIdx.x % kWarp, b = lane % lanes, part = lane / lanes, parts = kWarp / lanes;
  const int64_t end = crow[row + 1];
  for (int64_t first = crow[row]; first < end; first += parts) {
    const int64_t e = first + part;
    A sum(0);
    if (e < end) {
      const T* line = x + col[e] * width;
      for (int64_t i = b; i < width; i += lanes) sum += convert<A>(y[row * width + i]) * convert<A>(line[i]);
    }
    for (int step = 1; step < lanes; step *= 2) sum += shuffle_xor(sum, step);
    if (b == 0 && e < end) values[e] = convert<T>(sum);
  }
}

int lanes_for(int64_t width) {
  int lanes = 1;
  while (lanes < kWarp && lanes < width) lanes *= 2;
  return lanes;
}

template <typename Body>
cudaError_t with_index(bool wide, const Body& body) {
  return wide ? body(int64_t{}) : body(int32_t{});
}

}  // namespace

cudaError_t upload(const std::vector<int32_t>& words, int32_t* to, cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(words.size());
  for (int64_t first = 0; first < count; first += Words::kMost) {
    Words some = {};
    const int n = static_cast<int>(std::min<int64_t>(Words::kMost, count - first));
    std::copy_n(words.data() + first, n, some.word);
    const cudaError_t error = launch(upload_kernel, 1, kThreads, 0, stream, some, n, to + first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_csr(const CsrPlan& plan, const PackedTables& packed, const int32_t* tables, DType dtype,
                       bool wide_indices, const void* w, void* crow, void* col, void* values, cudaStream_t stream) {
  const DevicePlan p = on_device(plan, packed, tables);
  // Row channels are split between blocks until there are enough of these; finding entries costs as much as writing a
  // few.
  constexpr int64_t kEnoughBlocks = 2048, kWorthFinding = 8;
  const int64_t channels = p.groups * p.row_channels;
  const int64_t chunks = ceil_div(p.entries_per_channel, kEntries * kThreads);
  const int64_t wanted = std::max<int64_t>(kWorthFinding, channels * chunks / kEnoughBlocks);
  const int64_t per_block = std::max(std::min(wanted, channels), ceil_div(channels, 65535));
  return with_index(wide_indices, [&](auto index) {
    using Index = decltype(index);
    const cudaError_t error = launch_elements(row_pointers_kernel<Index>, plan.row_count(), stream, plan.row_count(), p,
                                              static_cast<Index*>(crow));
    if (error != cudaSuccess || plan.nnz() == 0) return error;
    const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(ceil_div(channels, per_block)));
    const auto fill = [&](auto kernel, auto number) {
      using T = decltype(number);
      return launch(kernel, grid, kThreads, 0, stream, p, per_block, static_cast<const T*>(w), static_cast<Index*>(col),
                    static_cast<T*>(values));
    };
    if (packed.one_to_one) {
      return with_bits(dtype, [&](auto bits) { return fill(fill_kernel<true, decltype(bits), Index>, bits); });
    }
    return with_number(dtype, [&](auto number) { return fill(fill_kernel<false, decltype(number), Index>, number); });
  });
}

cudaError_t launch_csr_weight(const CsrPlan& plan, const PackedTables& packed, const int32_t* tables, DType dtype,
                              const void* values, void* w, cudaStream_t stream) {
  DevicePlan p = on_device(plan, packed, tables);
  for (int i = 0; i < kAxes; ++i) {
    p.table[i].meets = reinterpret_cast<const int2*>(tables + packed.axis[i].meets);
  }
  const int64_t tiles = ceil_div(p.column_channels * plan.tap_count(), kWarp),
                blocks = tiles * p.groups * p.row_channels;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return with_number(dtype, [&](auto number) {
    using T = decltype(number);
    return launch(weight_kernel<T>, static_cast<unsigned>(blocks), kThreads, kThreads * sizeof(Accumulate<T>), stream,
                  p, Divider<int64_t>(tiles), static_cast<const T*>(values), static_cast<T*>(w));
  });
}

cudaError_t launch_csr_multiply(int64_t rows, int64_t width, DType dtype, bool wide_indices, const void* crow,
                                const void* col, const void* values, const void* x, void* y, cudaStream_t stream) {
  return with_index(wide_indices, [&](auto index) {
    return with_number(dtype, [&](auto number) {
      using Index = decltype(index);
      using T = decltype(number);
      return launch_elements(multiply_kernel<T, Index>, rows * kWarp, stream, rows, width, lanes_for(width),
                             static_cast<const Index*>(crow), static_cast<const Index*>(col),
                             static_cast<const T*>(values), static_cast<const T*>(x), static_cast<T*>(y));
    });
  });
}

cudaError_t launch_csr_sample(int64_t rows, int64_t width, DType dtype, bool wide_indices, const void* crow,
                              const void* col, const void* y, const void* x, void* values, cudaStream_t stream) {
  return with_index(wide_indices, [&](auto index) {
    return with_number(dtype, [&](auto number) {
      using Index = decltype(index);
      using T = decltype(number);
      return launch_elements(sample_kernel<T, Index>, rows * kWarp, stream, rows, width, lanes_for(width),
                             static_cast<const Index*>(crow), static_cast<const Index*>(col), static_cast<const T*>(y),
                             static_cast<const T*>(x), static_cast<T*>(values));
    });
  });
}

}  // namespace convarith::cuda
