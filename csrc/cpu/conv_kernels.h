// The fast convolution kernels, written once with the compiler's vectors and compiled for every instruction set: the
// including file sets the target and defines CONVARITH_ISA (the namespace), CONVARITH_BYTES (of a vector) and
// CONVARITH_REGISTERS. Nothing inline may be shared between those files, so there is no std:: and no torch here.
//
// A pass is always the same four stages: pack the weights, pack a tile of the input, multiply in registers, store.
// Every sum is taken by one thread in one order, whatever the number of threads.

namespace convarith::cpu::CONVARITH_ISA {
namespace {

#define CONVARITH_UNROLL _Pragma("GCC unroll 16")

// Vectors of T; Loose ones may stand anywhere in memory.
template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(CONVARITH_BYTES)));
  typedef T Loose __attribute__((vector_size(CONVARITH_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = CONVARITH_BYTES / sizeof(T);
};

template <typename T>
inline typename Simd<T>::Vec load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
}

template <typename T>
inline void store(T* p, typename Simd<T>::Vec v) {
  *reinterpret_cast<typename Simd<T>::Loose*>(p) = v;
}

template <typename T>
inline T least(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
inline T most(T a, T b) {
  return a < b ? b : a;
}

// Sums of floats for the half precisions.
template <typename T>
struct SumOf {
  typedef T type;
};
template <>
struct SumOf<Half16> {
  typedef float type;
};
template <>
struct SumOf<Brain16> {
  typedef float type;
};

inline float as_float(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}

inline uint32_t as_bits(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof(bits));
  return bits;
}

inline float widen(float v) {
  return v;
}
inline double widen(double v) {
  return v;
}
inline float widen(Brain16 v) {
  return as_float(static_cast<uint32_t>(v.bits) << 16);
}
inline float widen(Half16 v) {
  const uint32_t magnitude = v.bits & 0x7fffu;
  // The exponent is rebased by a multiplication, which also makes subnormals right; infinities and NaNs separately.
  const float scaled = as_float(magnitude << 13) * as_float(0x77800000u);  // 2^112
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : as_bits(scaled);
  return as_float(bits | static_cast<uint32_t>(v.bits & 0x8000u) << 16);
}

inline void narrow(float v, float& out) {
  out = v;
}
inline void narrow(double v, double& out) {
  out = v;
}
inline void narrow(float v, Brain16& out) {  // to nearest, ties to even
  const uint32_t bits = as_bits(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void narrow(float v, Half16& out) {  // to nearest, ties to even
  const uint32_t bits = as_bits(v), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Normal: rebase the exponent and round in integers. Subnormal: an addition aligns and rounds. Overflow and Inf.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t small = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  out.bits = static_cast<uint16_t>(half | sign >> 16);
}

template <typename T>
bool finite(const void* data, int64_t count) {
  const T* v = static_cast<const T*>(data);
  typedef typename SumOf<T>::type Sum;
  Sum bad = 0;  // v - v is 0, or NaN for an infinity or a NaN
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(Sum)) {
    typedef typename Simd<T>::Vec V;
    V sums[4] = {};
    for (; i + 4 * Simd<T>::kLanes <= count; i += 4 * Simd<T>::kLanes) {
      CONVARITH_UNROLL for (int j = 0; j < 4; ++j) {
        const V x = load(v + i + j * Simd<T>::kLanes);
        sums[j] += x - x;
      }
    }
    const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int j = 0; j < Simd<T>::kLanes; ++j) bad += sum[j];
  }
  for (; i < count; ++i) {
    const Sum x = widen(v[i]);
    bad += x - x;
  }
  return bad == 0;
}

// Blocks of rows as equal as they can be: 10 = 5 + 5 rather than 8 + 2.
constexpr int kRowBlock = CONVARITH_REGISTERS >= 32 ? 8 : 4;
constexpr int kVectors = 3;      // of a panel
constexpr int kWideVectors = 6;  // of a sweep with few rows
constexpr int kWideRows = CONVARITH_REGISTERS >= 32 ? 4 : 2;
constexpr int kDotRows = CONVARITH_REGISTERS >= 32 ? 14 : 9;

inline int64_t block_count(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}
inline int64_t block_begin(int64_t index, int64_t size, int64_t blocks) {
  return index * size / blocks;
}

// Packing ------------------------------------------------------------------------------------------------------------

// Transposing: to[i * to_pitch + r] = from[r * from_pitch + i].
template <typename T, typename Sum>
inline void transpose(const T* from, int64_t from_pitch, int64_t rows, int64_t count, Sum* to, int64_t to_pitch) {
  int64_t row = 0;
  if constexpr (sizeof(T) == 4) {
    typedef float V4 __attribute__((vector_size(16)));
    typedef float Loose4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t I4 __attribute__((vector_size(16)));
    const auto load4 = [](const T* p) { return static_cast<V4>(*reinterpret_cast<const Loose4*>(p)); };
    const auto store4 = [](Sum* p, V4 v) { *reinterpret_cast<Loose4*>(p) = v; };
    for (; row + 4 <= rows; row += 4) {
      const T* in = from + row * from_pitch;
      Sum* out = to + row;
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        const V4 a = load4(in + i), b = load4(in + from_pitch + i);
        const V4 c = load4(in + 2 * from_pitch + i), d = load4(in + 3 * from_pitch + i);
        const V4 ab_lo = __builtin_shuffle(a, b, I4{0, 4, 1, 5}), ab_hi = __builtin_shuffle(a, b, I4{2, 6, 3, 7});
        const V4 cd_lo = __builtin_shuffle(c, d, I4{0, 4, 1, 5}), cd_hi = __builtin_shuffle(c, d, I4{2, 6, 3, 7});
        store4(out + i * to_pitch, __builtin_shuffle(ab_lo, cd_lo, I4{0, 1, 4, 5}));
        store4(out + (i + 1) * to_pitch, __builtin_shuffle(ab_lo, cd_lo, I4{2, 3, 6, 7}));
        store4(out + (i + 2) * to_pitch, __builtin_shuffle(ab_hi, cd_hi, I4{0, 1, 4, 5}));
        store4(out + (i + 3) * to_pitch, __builtin_shuffle(ab_hi, cd_hi, I4{2, 3, 6, 7}));
      }
      for (; i < count; ++i) {
        for (int r = 0; r < 4; ++r) out[i * to_pitch + r] = widen(in[r * from_pitch + i]);
      }
    }
  }
  for (; row < rows; ++row) {
    for (int64_t i = 0; i < count; ++i) to[i * to_pitch + row] = widen(from[row * from_pitch + i]);
  }
}

// Weights as the microkernel reads them: [group][channel block][row block][channel, tap][row of the block].
int64_t pack_tasks(const GatherPlan& p) {
  return p.groups * block_count(p.rows, kRowBlock);
}

template <typename T>
void pack(const GatherPlan& p, const void* from, void* to, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const T* w = static_cast<const T*>(from);
  Sum* packed = static_cast<Sum*>(to) + p.packed;
  const int64_t blocks = block_count(p.rows, kRowBlock);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, first = block_begin(task % blocks, p.rows, blocks);
    const int64_t rows = block_begin(task % blocks + 1, p.rows, blocks) - first;
    for (int64_t c0 = 0; c0 < p.channels; c0 += p.channel_block) {
      const int64_t channels = least(p.channel_block, p.channels - c0), depth = channels * p.taps;
      Sum* out = packed + (g * p.channels + c0) * p.taps * p.rows + first * depth;
      const T* in = w + g * p.w_group + first * p.w_row + c0 * p.w_channel;
      bool dense = true;
      for (int64_t t = 0; t < p.taps; ++t) dense = dense && p.tap_weight[t] == t;
      if (dense) {
        const bool whole = p.w_channel == p.taps;
        for (int64_t c = 0; c < (whole ? 1 : channels); ++c) {
          transpose(in + c * p.w_channel, p.w_row, rows, whole ? depth : p.taps, out + c * p.taps * rows, rows);
        }
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < p.taps; ++t, out += rows) {
          const T* entry = in + c * p.w_channel + p.tap_weight[t];
          for (int64_t r = 0; r < rows; ++r) out[r] = widen(entry[r * p.w_row]);
        }
      }
    }
  }
}

struct Box {
  int64_t first[4];  // batch, z, y, x
  int64_t size[4];
};

inline Box box_at(const GatherPlan& p, int64_t index) {
  Box b;
  const int64_t extent[4] = {p.batch, p.grid[0], p.grid[1], p.grid[2]};
  for (int i = 3; i >= 0; --i) {
    b.first[i] = index % p.boxes[i] * p.box[i];
    b.size[i] = least(p.box[i], extent[i] - b.first[i]);
    index /= p.boxes[i];
  }
  return b;
}

// Every second entry of two vectors.
template <typename T>
inline typename Simd<T>::Vec evens(typename Simd<T>::Vec a, typename Simd<T>::Vec b) {
  typedef decltype(a < b) Index;
  Index index;
  for (int i = 0; i < Simd<T>::kLanes; ++i) index[i] = 2 * i;
  return __builtin_shuffle(a, b, index);
}

// `count` entries, `step` apart, converted.
template <typename T, typename Sum>
inline void copy_run(const T* from, int64_t step, int64_t count, Sum* to) {
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(Sum)) {
    constexpr int kLanes = Simd<Sum>::kLanes;
    // The entry after the last vector is read too, so that nothing past the last entry is.
    if (step == 2) {
      for (; i + kLanes < count; i += kLanes) {
        store(to + i, evens<Sum>(load(from + 2 * i), load(from + 2 * i + kLanes)));
      }
    } else if (step == 4) {
      for (; i + kLanes < count; i += kLanes) {
        const Sum* in = from + 4 * i;
        store(to + i, evens<Sum>(evens<Sum>(load(in), load(in + kLanes)),
                                 evens<Sum>(load(in + 2 * kLanes), load(in + 3 * kLanes))));
      }
      typedef Sum V4 __attribute__((vector_size(4 * sizeof(Sum))));
      typedef Sum Loose4 __attribute__((vector_size(4 * sizeof(Sum)), aligned(alignof(Sum)), may_alias));
      for (; i + 4 <= count; i += 4) {
        const Sum* in = from + 4 * i;
        *reinterpret_cast<Loose4*>(to + i) = V4{in[0], in[4], in[8], in[12]};
      }
    }
  }
  if (step == 1) {
    for (; i < count; ++i) to[i] = widen(from[i]);
  } else if (step == 2) {
    for (; i < count; ++i) to[i] = widen(from[2 * i]);
  } else {
    for (; i < count; ++i) to[i] = widen(from[i * step]);
  }
}

// Cells [begin, end) along one axis that hold an input; cell j stands at (first + j) * stride + residue.
inline void inside(int64_t first, int64_t stride, int64_t residue, int64_t source, int64_t cells, int64_t* begin,
                   int64_t* end) {
  const int64_t at = first * stride + residue;  // of cell 0
  *begin = at >= 0 ? 0 : least((-at + stride - 1) / stride, cells);
  *end = at >= source ? *begin : least((source - 1 - at) / stride + 1, cells);
  if (*end < *begin) *end = *begin;
}

// The tile of channels [c0, c0 + channels) under a box.
template <typename T, typename Sum>
void pad_tile(const GatherPlan& p, const Box& b, const T* in, int64_t g, int64_t c0, int64_t channels, Sum* tile) {
  const int64_t cells[3] = {b.size[1] + p.cells[0] - p.box[1], b.size[2] + p.cells[1] - p.box[2],
                            b.size[3] + p.cells[2] - p.box[3]};
  const int64_t first[3] = {b.first[1] + p.low[0], b.first[2] + p.low[1], b.first[3] + p.low[2]};
  for (int64_t r = 0; r < p.residues; ++r) {
    const int64_t* residue = p.residue + 3 * r;
    int64_t begin[3], end[3];
    for (int i = 0; i < 3; ++i) inside(first[i], p.stride[i], residue[i], p.source[i], cells[i], &begin[i], &end[i]);
    const int64_t step = p.stride[2] * p.in_axis[2];
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = in + (g * p.channels + c0 + c) * p.in_channel;
      for (int64_t n = 0; n < b.size[0]; ++n) {
        Sum* image = tile + c * p.tile_channel + r * p.tile_residue + n * p.tile_image;
        const T* from = plane + (b.first[0] + n) * p.in_batch;
        for (int64_t z = 0; z < cells[0]; ++z) {
          for (int64_t y = 0; y < cells[1]; ++y) {
            Sum* row = image + z * p.tile_plane + y * p.tile_row;
            if (z < begin[0] || z >= end[0] || y < begin[1] || y >= end[1] || begin[2] >= end[2]) {
              for (int64_t x = 0; x < cells[2]; ++x) row[x] = 0;
              continue;
            }
            const int64_t z_in = (first[0] + z) * p.stride[0] + residue[0];
            const int64_t y_in = (first[1] + y) * p.stride[1] + residue[1];
            const int64_t x_in = (first[2] + begin[2]) * p.stride[2] + residue[2];
            for (int64_t x = 0; x < begin[2]; ++x) row[x] = 0;
            copy_run(from + z_in * p.in_axis[0] + y_in * p.in_axis[1] + x_in * p.in_axis[2], step, end[2] - begin[2],
                     row + begin[2]);
            for (int64_t x = end[2]; x < cells[2]; ++x) row[x] = 0;
          }
        }
      }
    }
  }
}

// The runs of a box. Columns count outputs; or, where the tile is read directly, they are the tile's cells.
inline int64_t list_runs(const GatherPlan& p, const Box& b, Run* runs) {
  Run* run = runs;
  int64_t column = 0;
  for (int64_t n = 0; n < b.size[0]; ++n) {
    for (int64_t z = 0; z < b.size[1]; ++z) {
      for (int64_t y = 0; y < b.size[2]; ++y, ++run) {
        const int64_t nb = b.first[0] + n, zb = b.first[1] + z, yb = b.first[2] + y;
        run->source = p.raw ? nb * p.in_batch + zb * p.stride[0] * p.in_axis[0] + yb * p.stride[1] * p.in_axis[1] +
                                  b.first[3] * p.in_axis[2]
                            : n * p.tile_image + z * p.tile_plane + y * p.tile_row;
        run->length = b.size[3];
        run->column = p.panel ? column : run->source;
        run->out =
            p.out_offset + nb * p.out_batch + zb * p.out_axis[0] + yb * p.out_axis[1] + b.first[3] * p.out_axis[2];
        column += b.size[3];
      }
    }
  }
  return run - runs;
}

// Columns [column, column + width) of the box for all offsets: what the microkernel reads, without gaps.
template <typename Sum>
void pack_panel(const Run* run, int64_t column, int64_t width, const int32_t* offset, int64_t depth, const Sum* tile,
                const Sum* tile_end, Sum* panel) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  constexpr int kPitch = kVectors * kLanes;
  while (run->column + run->length <= column) ++run;
  struct Piece {
    const Sum* from;
    int64_t to, length;
  } pieces[kPitch];
  int64_t count = 0;
  for (int64_t done = 0; done < width; ++run, ++count) {
    const int64_t skip = column + done - run->column;
    const int64_t length = least(run->length - skip, width - done);
    pieces[count] = {tile + run->source + skip, done, length};
    done += length;
  }
  if (count == 1 && pieces[0].length == kPitch) {
    for (int64_t k = 0; k < depth; ++k, panel += kPitch) {
      const Sum* from = pieces[0].from + offset[k];
      CONVARITH_UNROLL for (int j = 0; j < kVectors; ++j) store(panel + j * kLanes, load(from + j * kLanes));
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k, panel += kPitch) {
    for (int64_t i = 0; i < count; ++i) {
      const Sum* from = pieces[i].from + offset[k];
      Sum* to = panel + pieces[i].to;
      const int64_t length = pieces[i].length;
      // What a whole vector writes past a piece is written again by the next piece, row or panel.
      if (from + (length + kLanes - 1) / kLanes * kLanes <= tile_end) {
        for (int64_t x = 0; x < length; x += kLanes) store(to + x, load(from + x));
      } else {
        for (int64_t x = 0; x < length; ++x) to[x] = from[x];
      }
    }
  }
}

// Multiplying --------------------------------------------------------------------------------------------------------

// sums[r][x] (+)= sum over k of w[k][r] * b[k][x], r < kRows, x < kVecs vectors. With kPanel, b's rows follow each
// other; otherwise they stand at `offset`.
template <typename T, int kRows, int kVecs, bool kPanel>
void multiply(int64_t depth, const T* w, const T* b, const int32_t* offset, T* sums, int64_t pitch, bool add) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V acc[kRows][kVecs];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = kPanel ? b + k * (kVectors * kLanes) : b + offset[k];
    if constexpr (kVecs <= 3) {
      V x[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) x[j] = load(row + j * kLanes);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        const V v = w[r] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] += v * x[j];
      }
    } else {
      V v[kRows];
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) v[r] = w[r] - V{};
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        const V x = load(row + j * kLanes);
        CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r][j] += v[r] * x;
      }
    }
    w += kRows;
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      T* out = sums + r * pitch + j * kLanes;
      store(out, add ? load(out) + acc[r][j] : acc[r][j]);
    }
  }
}

template <typename T>
using Multiply = void (*)(int64_t, const T*, const T*, const int32_t*, T*, int64_t, bool);

// The microkernel for a block of rows and a sweep of vectors.
template <typename T, bool kPanel, int kRows>
Multiply<T> multiply_vectors(int64_t vectors) {
  switch (vectors) {
    case 1:
      return multiply<T, kRows, 1, kPanel>;
    case 2:
      return multiply<T, kRows, 2, kPanel>;
    case 3:
      return multiply<T, kRows, 3, kPanel>;
    default:
      if constexpr (kRows <= kWideRows && !kPanel) return multiply<T, kRows, kWideVectors, kPanel>;
      __builtin_unreachable();
  }
}

template <typename T, bool kPanel>
Multiply<T> multiply_for(int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1:
      return multiply_vectors<T, kPanel, 1>(vectors);
    case 2:
      return multiply_vectors<T, kPanel, 2>(vectors);
    case 3:
      return multiply_vectors<T, kPanel, 3>(vectors);
    case 4:
      return multiply_vectors<T, kPanel, 4>(vectors);
#if CONVARITH_REGISTERS >= 32
    case 5:
      return multiply_vectors<T, kPanel, 5>(vectors);
    case 6:
      return multiply_vectors<T, kPanel, 6>(vectors);
    case 7:
      return multiply_vectors<T, kPanel, 7>(vectors);
    case 8:
      return multiply_vectors<T, kPanel, 8>(vectors);
#endif
    default:
      __builtin_unreachable();
  }
}

// Storing ------------------------------------------------------------------------------------------------------------

template <typename T, typename Sum>
void store_runs(const Run* runs, int64_t count, const Sum* sums, int64_t step, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    const Sum* from = sums + runs[i].column;
    T* to = out + runs[i].out;
    if (step == 1) {
      for (int64_t x = 0; x < runs[i].length; ++x) narrow(from[x], to[x]);
    } else {
      for (int64_t x = 0; x < runs[i].length; ++x) narrow(from[x], to[x * step]);
    }
  }
}

// A gather's task: one box, one group, one share of the rows.
template <typename T>
void gather_box(const GatherPlan& p, int64_t task, const T* in, int64_t in_count, const typename SumOf<T>::type* packed,
                T* out, char* scratch) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  Sum* panel = reinterpret_cast<Sum*>(scratch + p.at_panel);
  Sum* sums = reinterpret_cast<Sum*>(scratch + p.at_sums);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);

  const int64_t share = task % p.row_split, g = task / p.row_split % p.groups;
  const Box b = box_at(p, task / p.row_split / p.groups);
  const int64_t blocks = block_count(p.rows, kRowBlock);
  const int64_t block_first = block_begin(share, blocks, p.row_split);
  const int64_t block_last = block_begin(share + 1, blocks, p.row_split);
  const int64_t first_row = block_begin(block_first, p.rows, blocks);
  const int64_t last_row = block_begin(block_last, p.rows, blocks);

  const int64_t count = list_runs(p, b, runs);
  const int64_t columns = runs[count - 1].column + runs[count - 1].length;
  const int64_t widest = p.panel || (p.rows + blocks - 1) / blocks > kWideRows ? kVectors : kWideVectors;

  for (int64_t c0 = 0; c0 < p.channels; c0 += p.channel_block) {
    const int64_t channels = least(p.channel_block, p.channels - c0), depth = channels * p.taps;
    const Sum* tile;
    const Sum* tile_end;
    if (p.raw) {
      tile = reinterpret_cast<const Sum*>(in) + (g * p.channels + c0) * p.in_channel;
      tile_end = reinterpret_cast<const Sum*>(in) + in_count;
    } else {
      Sum* cells = reinterpret_cast<Sum*>(scratch + p.at_tile);
      pad_tile(p, b, in, g, c0, channels, cells);
      tile = cells;
      tile_end = cells + p.channel_block * p.tile_channel + kWideVectors * kLanes;
    }
    const Sum* weights = packed + p.packed + (g * p.channels + c0) * p.taps * p.rows;
    for (int64_t column = 0; column < columns;) {
      int64_t vectors = block_count(columns - column, kLanes);
      vectors = vectors >= widest ? widest : least<int64_t>(vectors, kVectors);
      if (p.panel) {
        pack_panel(runs, column, least(columns - column, vectors * kLanes), p.offset, depth, tile, tile_end, panel);
      }
      for (int64_t block = block_first; block < block_last; ++block) {
        const int64_t row = block_begin(block, p.rows, blocks), rows = block_begin(block + 1, p.rows, blocks) - row;
        Sum* to = sums + (row - first_row) * p.columns + column;
        if (p.panel) {
          multiply_for<Sum, true>(rows, vectors)(depth, weights + row * depth, panel, nullptr, to, p.columns, c0 > 0);
        } else {
          multiply_for<Sum, false>(rows, vectors)(depth, weights + row * depth, tile + column, p.offset, to, p.columns,
                                                  c0 > 0);
        }
      }
      column += vectors * kLanes;
    }
  }
  for (int64_t row = first_row; row < last_row; ++row) {
    store_runs(runs, count, sums + (row - first_row) * p.columns, p.out_axis[2],
               out + g * p.out_group + row * p.out_channel);
  }
}

inline int64_t gather_tasks(const GatherPlan& p) {
  return p.boxes[0] * p.boxes[1] * p.boxes[2] * p.boxes[3] * p.groups * p.row_split;
}

// Tasks of several plans, one of each in turn: the phases of a transposed convolution write neighbouring elements.
template <typename T>
void gather(const GatherPlan* plans, int64_t count, const void* in, int64_t in_count, const void* packed, void* out,
            char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  for (int64_t task = begin; task < end; ++task) {
    const GatherPlan& p = plans[task % count];
    if (task / count >= gather_tasks(p)) continue;
    gather_box<T>(p, task / count, static_cast<const T*>(in), in_count, static_cast<const Sum*>(packed),
                  static_cast<T*>(out), scratch);
  }
}

// The weight's gradient ----------------------------------------------------------------------------------------------

inline int64_t box_pixels(const Box& b) {
  return b.size[0] * b.size[1] * b.size[2] * b.size[3];
}

// y of one box and group, transposed: [column block][output][column of the block].
template <typename T>
void weight_pack(const WeightPlan& plan, const void* from, void* to, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const GatherPlan& p = plan.gather;
  const T* y = static_cast<const T*>(from);
  const int64_t columns = plan.columns, block = plan.column_block;
  constexpr int kAtOnce = Simd<Sum>::kLanes;  // divides a column block
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task % p.groups;
    const Box b = box_at(p, plan.box_begin + task / p.groups);
    const int64_t pixels = box_pixels(b);
    Sum* panels = static_cast<Sum*>(to) + task * plan.box_pixels * columns;
    for (int64_t column0 = 0; column0 < columns; column0 += kAtOnce) {
      int64_t pixel = 0;
      const int64_t wide = least<int64_t>(kAtOnce, columns - column0);
      for (int64_t n = 0; n < b.size[0]; ++n) {
        for (int64_t z = 0; z < b.size[1]; ++z) {
          for (int64_t row = 0; row < b.size[2]; ++row) {
            const T* run = y + p.out_offset + (b.first[0] + n) * p.out_batch + (b.first[1] + z) * p.out_axis[0] +
                           (b.first[2] + row) * p.out_axis[1] + b.first[3] * p.out_axis[2] + g * p.out_group;
            for (int64_t x0 = 0; x0 < b.size[3]; x0 += kAtOnce) {
              const int64_t length = least<int64_t>(kAtOnce, b.size[3] - x0);
              Sum* panel = panels + column0 / block * block * pixels + pixel * block + column0 % block;
              const int64_t real = most<int64_t>(0, least(wide, p.rows - column0));
              const T* in = run + column0 * p.out_channel + x0 * p.out_axis[2];
              if (p.out_axis[2] == 1) {
                transpose(in, p.out_channel, real, length, panel, block);
              } else {
                for (int64_t i = 0; i < real; ++i) {
                  for (int64_t x = 0; x < length; ++x) {
                    panel[x * block + i] = widen(in[i * p.out_channel + x * p.out_axis[2]]);
                  }
                }
              }
              for (int64_t i = real; i < wide; ++i) {
                for (int64_t x = 0; x < length; ++x) panel[x * block + i] = 0;
              }
              pixel += length;
            }
          }
        }
      }
    }
  }
}

// sums[r][k] += sum over the runs' outputs q of tile[offset[r] + q] * panel[q][k].
template <typename T, int kRows, int kVecs>
void multiply_outer(const Run* runs, int64_t count, const T* tile, const int32_t* offset, const T* panel, T* sums,
                    int64_t pitch) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V acc[kRows][kVecs];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = V{};
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* x[kRows];
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) x[r] = tile + runs[i].source + offset[r];
    const int64_t length = runs[i].length;
    for (int64_t q = 0; q < length; ++q, panel += kVecs * kLanes) {
      V y[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) y[j] = load(panel + j * kLanes);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        const V v = x[r][q] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] += v * y[j];
      }
    }
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      T* out = sums + r * pitch + j * kLanes;
      store(out, load(out) + acc[r][j]);
    }
  }
}

template <typename T>
using MultiplyOuter = void (*)(const Run*, int64_t, const T*, const int32_t*, const T*, T*, int64_t);

template <typename T, int kRows>
MultiplyOuter<T> outer_vectors(int64_t vectors) {
  switch (vectors) {
    case 1:
      return multiply_outer<T, kRows, 1>;
    case 2:
      return multiply_outer<T, kRows, 2>;
    default:
      return multiply_outer<T, kRows, 3>;
  }
}

template <typename T>
MultiplyOuter<T> outer_for(int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1:
      return outer_vectors<T, 1>(vectors);
    case 2:
      return outer_vectors<T, 2>(vectors);
    case 3:
      return outer_vectors<T, 3>(vectors);
    case 4:
      return outer_vectors<T, 4>(vectors);
#if CONVARITH_REGISTERS >= 32
    case 5:
      return outer_vectors<T, 5>(vectors);
    case 6:
      return outer_vectors<T, 6>(vectors);
    case 7:
      return outer_vectors<T, 7>(vectors);
    case 8:
      return outer_vectors<T, 8>(vectors);
#endif
    default:
      __builtin_unreachable();
  }
}

// sums[r * pitch] += sum over the runs' outputs q of tile[offset[r] + q] * y[q], lanes along q. y's runs begin at whole
// vectors and end in zeros; what the tile holds beside them may be an infinity, so it is masked.
template <typename T, int kRows>
void multiply_dot(const Run* runs, int64_t count, const T* tile, const int32_t* offset, const T* y, T* sums,
                  int64_t pitch) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  typedef decltype(V{} < V{}) Mask;
  V acc[kRows];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = V{};
  const int64_t rest = runs[0].length % kLanes;  // the runs of a box are equally long
  Mask mask;
  for (int j = 0; j < kLanes; ++j) mask[j] = j < rest ? -1 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const T* x = tile + runs[i].source;
    int64_t q = 0;
    for (; q + kLanes <= runs[i].length; q += kLanes, y += kLanes) {
      const V v = load(y);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r] += v * load(x + offset[r] + q);
    }
    if (rest == 0) continue;
    const V v = load(y);
    y += kLanes;
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      acc[r] += v * reinterpret_cast<V>(reinterpret_cast<Mask>(load(x + offset[r] + q)) & mask);
    }
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    T sum = 0;
    for (int j = 0; j < kLanes; ++j) sum += acc[r][j];
    sums[r * pitch] += sum;
  }
}

template <typename T>
using MultiplyDot = void (*)(const Run*, int64_t, const T*, const int32_t*, const T*, T*, int64_t);

template <typename T, int kRows = kDotRows>
MultiplyDot<T> dot_for(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_for<T, kRows - 1>(rows);
  }
  return multiply_dot<T, kRows>;
}

// A task: one group, one share of its rows, all boxes of the pass in turn.
template <typename T>
void weight_sum(const WeightPlan& plan, const void* x_data, const void* y_data, const void* panels_data,
                void* sums_data, char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const GatherPlan& p = plan.gather;
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  Sum* lines = reinterpret_cast<Sum*>(scratch + p.at_panel);  // y of a box, for dots
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / plan.row_tasks, share = task % plan.row_tasks;
    const int64_t first = plan.first_row + block_begin(share, plan.row_count, plan.row_tasks);
    const int64_t last = plan.first_row + block_begin(share + 1, plan.row_count, plan.row_tasks);
    for (int64_t box = plan.box_begin; box < plan.box_end; ++box) {
      const Box b = box_at(p, box);
      const int64_t count = list_runs(p, b, runs), pixels = box_pixels(b);
      const Sum* panels = static_cast<const Sum*>(panels_data) +
                          ((box - plan.box_begin) * p.groups + g) * plan.box_pixels * plan.columns;
      const int64_t line = block_count(b.size[3], kLanes) * kLanes;
      if (plan.dot) {
        for (int64_t m = 0; m < p.rows; ++m) {
          for (int64_t i = 0; i < count; ++i) {
            Sum* to = lines + (m * count + i) * line;
            copy_run(y + g * p.out_group + m * p.out_channel + runs[i].out, p.out_axis[2], b.size[3], to);
            for (int64_t q = b.size[3]; q < line; ++q) to[q] = 0;
          }
        }
      }
      for (int64_t c0 = first / p.taps; c0 * p.taps < last; c0 += p.channel_block) {
        const int64_t channels = least(p.channel_block, (last + p.taps - 1) / p.taps - c0);
        const Sum* tile;
        if (p.raw) {
          tile = reinterpret_cast<const Sum*>(x) + (g * p.channels + c0) * p.in_channel;
        } else {
          Sum* cells = reinterpret_cast<Sum*>(scratch + p.at_tile);
          pad_tile(p, b, x, g, c0, channels, cells);
          tile = cells;
        }
        const int64_t row_begin = most(first, c0 * p.taps), row_end = least(last, (c0 + channels) * p.taps);
        const int32_t* offset = p.offset + (row_begin - c0 * p.taps);
        Sum* sums = static_cast<Sum*>(sums_data) + (g * plan.row_count + row_begin - plan.first_row) * plan.columns;
        if (plan.dot) {
          const int64_t blocks = block_count(row_end - row_begin, kDotRows);
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t row = block_begin(block, row_end - row_begin, blocks);
            const int64_t rows = block_begin(block + 1, row_end - row_begin, blocks) - row;
            for (int64_t m = 0; m < p.rows; ++m) {
              dot_for<Sum>(rows)(runs, count, tile, offset + row, lines + m * count * line,
                                 sums + row * plan.columns + m, plan.columns);
            }
          }
          continue;
        }
        const int64_t blocks = block_count(row_end - row_begin, kRowBlock);
        for (int64_t column = 0; column < plan.columns; column += plan.column_block) {
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t row = block_begin(block, row_end - row_begin, blocks);
            const int64_t rows = block_begin(block + 1, row_end - row_begin, blocks) - row;
            outer_for<Sum>(rows, plan.column_block / kLanes)(runs, count, tile, offset + row, panels + column * pixels,
                                                             sums + row * plan.columns + column, plan.columns);
          }
        }
      }
    }
  }
}

// The sums of a pass to where w has them; a task is some rows of w, (group, out channels).
constexpr int kStoreRows = 16;

int64_t weight_store_tasks(const WeightPlan& plan) {
  return plan.gather.groups * block_count(plan.gather.rows, kStoreRows);
}

template <typename T>
void weight_store(const WeightPlan& plan, const void* sums_data, void* w_data, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const GatherPlan& p = plan.gather;
  const int64_t blocks = block_count(p.rows, kStoreRows);
  bool dense = p.w_channel == p.taps && sizeof(T) == sizeof(Sum);
  for (int64_t t = 0; t < p.taps; ++t) dense = dense && p.tap_weight[t] == t;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, first = task % blocks * kStoreRows,
                  rows = least<int64_t>(kStoreRows, p.rows - first);
    const Sum* sums = static_cast<const Sum*>(sums_data) + g * plan.row_count * plan.columns + first;
    T* w = static_cast<T*>(w_data) + g * p.w_group + first * p.w_row;
    if constexpr (sizeof(T) == sizeof(Sum)) {
      if (dense) {
        transpose(sums, plan.columns, plan.row_count, rows, w + plan.first_row, p.w_row);
        continue;
      }
    }
    for (int64_t r = 0; r < plan.row_count; ++r) {
      const int64_t row = plan.first_row + r, at = row / p.taps * p.w_channel + p.tap_weight[row % p.taps];
      for (int64_t m = 0; m < rows; ++m) narrow(sums[r * plan.columns + m], w[m * p.w_row + at]);
    }
  }
}

// Winograd -----------------------------------------------------------------------------------------------------------

// F(4, 3) by Toom and Cook: polynomials are multiplied by their values at 0, 1, -1, 1/2, -2 and infinity, which keeps
// the rounding error below that of the usual points 0, 1, -1, 2, -2.
struct Points {
  double input[6][6] = {};   // B^T
  double weight[6][3] = {};  // G
  double output[4][6] = {};  // A^T
};

constexpr Points make_points() {
  constexpr double at[5] = {0, 1, -1, 0.5, -2};
  Points p;
  for (int i = 0; i < 6; ++i) {
    // Coefficients of the product of (x - at[j]) over the other points.
    double poly[6] = {1};
    int degree = 0;
    double norm = 1;
    for (int j = 0; j < 5; ++j) {
      if (j == i) continue;
      if (i < 5) norm *= at[i] - at[j];
      ++degree;
      for (int d = degree; d >= 0; --d) poly[d] = (d > 0 ? poly[d - 1] : 0) - at[j] * (d < degree ? poly[d] : 0);
    }
    for (int d = 0; d < 6; ++d) p.input[i][d] = poly[d];
    double power = 1;
    for (int d = 0; d < 4; ++d) {
      if (d < 3) p.weight[i][d] = i < 5 ? power / norm : (d == 2 ? 1 : 0);
      p.output[d][i] = i < 5 ? power : (d == 3 ? 1 : 0);
      if (i < 5) power *= at[i];
    }
  }
  return p;
}

constexpr Points kPoints = make_points();

// out[i] = sum over j of matrix[i][j] * in[j], zeros left out; all is constant but the vectors.
template <int kOut, int kIn, typename V>
inline __attribute__((always_inline)) void transform(const double (&matrix)[kOut][kIn], const V* in, int in_step,
                                                     V* out, int out_step) {
  typedef decltype(V{}[0] + V{}[0]) Scalar;
  CONVARITH_UNROLL for (int i = 0; i < kOut; ++i) {
    V sum = V{};
    bool first = true;
    CONVARITH_UNROLL for (int j = 0; j < kIn; ++j) {
      const Scalar m = static_cast<Scalar>(matrix[i][j]);
      if (m == 0) continue;
      const V x = in[j * in_step];
      const V term = m == 1 ? x : (m == -1 ? -x : x * m);
      sum = first ? term : sum + term;
      first = false;
    }
    out[i * out_step] = sum;
  }
}

// Transformed weights: [group][row block][36][channel][row of the block], with room after each of the 36 so that they
// do not meet in the cache; a task is a row block.
inline int64_t winograd_unit(const GatherPlan& p) {
  return p.channels * kRowBlock + 16;
}

template <typename T>
void winograd_pack(const WinogradPlan& plan, const void* from, void* to, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec V;
  const GatherPlan& p = plan.gather;
  const int64_t blocks = block_count(p.rows, kRowBlock), unit = winograd_unit(p);
  constexpr int kAtOnce = 16;                                // channels
  constexpr int kPerVector = Simd<Sum>::kLanes / kRowBlock;  // channels
  constexpr int kTap = kAtOnce * kRowBlock;
  Sum taps_of[9 * kTap] = {};  // [tap][channel][row]
  bool dense = true;
  for (int t = 0; t < 9; ++t) dense = dense && plan.tap_of[t] >= 0 && plan.tap_of[t] < 9;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, row = block_begin(task % blocks, p.rows, blocks);
    const int64_t rows = block_begin(task % blocks + 1, p.rows, blocks) - row;
    const T* w = static_cast<const T*>(from) + g * p.w_group + row * p.w_row;
    Sum* packed = static_cast<Sum*>(to) + task * 36 * unit;
    for (int64_t c = 0; c < p.channels; c += kPerVector) {
      if (c % kAtOnce == 0) {
        for (int64_t i = 0; i < least<int64_t>(kAtOnce, p.channels - c); ++i) {
          const T* next = w + (c + i) * p.w_channel;
          if (dense) {  // in the order of memory
            transpose(next, p.w_row, rows, 9, taps_of + i * kRowBlock, kTap);
            continue;
          }
          for (int t = 0; t < 9; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
              taps_of[t * kTap + i * kRowBlock + r] = widen(next[plan.tap_of[t] + r * p.w_row]);
            }
          }
        }
      }
      V taps[9], half[18], full[36];
      for (int t = 0; t < 9; ++t) {
        taps[t] = load(taps_of + (dense ? plan.tap_of[t] : t) * kTap + c % kAtOnce * kRowBlock);
      }
      CONVARITH_UNROLL for (int j = 0; j < 3; ++j) transform(kPoints.weight, taps + j, 3, half + j, 3);
      CONVARITH_UNROLL for (int i = 0; i < 6; ++i) transform(kPoints.weight, half + 3 * i, 1, full + 6 * i, 1);
      if (rows == kRowBlock) {  // past the last channel, into the room after it
        CONVARITH_UNROLL for (int i = 0; i < 36; ++i) store(packed + i * unit + c * kRowBlock, full[i]);
        continue;
      }
      for (int64_t j = 0; j < least<int64_t>(kPerVector, p.channels - c); ++j) {
        for (int i = 0; i < 36; ++i) {
          for (int64_t r = 0; r < rows; ++r) packed[i * unit + (c + j) * rows + r] = full[i][j * kRowBlock + r];
        }
      }
    }
  }
}

// Four vectors, interleaved: to[4 * i + j] = v[j][i].
template <typename T>
inline void store_interleaved(const typename Simd<T>::Vec* v, T* to) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr (sizeof(T) == 4) {
    typedef typename Simd<T>::Vec V;
    typedef int32_t I __attribute__((vector_size(CONVARITH_BYTES)));
    I lo, hi;
    for (int i = 0; i < kLanes; ++i) {
      lo[i] = i / 2 + (i % 2) * kLanes;
      hi[i] = lo[i] + kLanes / 2;
    }
    const V a = __builtin_shuffle(v[0], v[2], lo), b = __builtin_shuffle(v[0], v[2], hi);
    const V c = __builtin_shuffle(v[1], v[3], lo), d = __builtin_shuffle(v[1], v[3], hi);
    store(to, __builtin_shuffle(a, c, lo));
    store(to + kLanes, __builtin_shuffle(a, c, hi));
    store(to + 2 * kLanes, __builtin_shuffle(b, d, lo));
    store(to + 3 * kLanes, __builtin_shuffle(b, d, hi));
  } else {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < 4; ++j) to[4 * i + j] = v[j][i];
    }
  }
}

// A task: a box of tiles of one group.
template <typename T>
void winograd(const WinogradPlan& plan, const void* in_data, const void* packed, void* out_data, char* scratch,
              int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec V;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const GatherPlan& p = plan.gather;
  Sum* tile = reinterpret_cast<Sum*>(scratch + p.at_tile);
  Sum* inputs = reinterpret_cast<Sum*>(scratch + plan.at_inputs);      // [36][channel][tile]
  Sum* products = reinterpret_cast<Sum*>(scratch + plan.at_products);  // [36][row of the chunk][tile]
  Sum* strip = reinterpret_cast<Sum*>(scratch + plan.at_strip);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const int64_t pitch = plan.pitch, blocks = block_count(p.rows, kRowBlock), unit = winograd_unit(p);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t share = task % p.row_split, g = task / p.row_split % p.groups;
    const Box b = box_at(p, task / p.row_split / p.groups);
    const int64_t count = list_runs(p, b, runs), columns = box_pixels(b);
    if (plan.stage != kFused) {
      inputs = static_cast<Sum*>(plan.shared) + task / p.row_split * plan.shared_size;
    }
    const int64_t block_end = block_begin(share + 1, blocks, p.row_split);

    // In the first stage, tasks that share a box share its channels; in the others, its rows.
    const int64_t channel_blocks = plan.stage == kProducts ? 0 : block_count(p.channels, p.channel_block);
    const int64_t shares = plan.stage == kInputs ? p.row_split : 1, mine = plan.stage == kInputs ? share : 0;
    for (int64_t cb = block_begin(mine, channel_blocks, shares); cb < block_begin(mine + 1, channel_blocks, shares);
         ++cb) {
      const int64_t c0 = cb * p.channel_block, channels = least(p.channel_block, p.channels - c0);
      pad_tile(p, b, static_cast<const T*>(in_data), g, c0, channels, tile);
      for (int64_t c = 0; c < channels; ++c) {
        const int32_t* offset = p.offset + c * 36;
        Sum* to = inputs + (c0 + c) * pitch;
        for (int64_t i = 0; i < count; ++i) {
          // What a vector holds past its run is written again by the next run; past the last, the pitch has room.
          for (int64_t x = 0; x < runs[i].length; x += kLanes) {
            const Sum* from = tile + runs[i].source + x;
            V half[36];
            CONVARITH_UNROLL for (int j = 0; j < 6; ++j) {
              V column[6];
              CONVARITH_UNROLL for (int k = 0; k < 6; ++k) column[k] = load(from + offset[6 * k + j]);
              transform(kPoints.input, column, 1, half + j, 6);
            }
            CONVARITH_UNROLL for (int k = 0; k < 6; ++k) {
              V row[6];
              transform(kPoints.input, half + 6 * k, 1, row, 1);
              Sum* at = to + 6 * k * plan.input_step + runs[i].column + x;
              CONVARITH_UNROLL for (int j = 0; j < 6; ++j) store(at + j * plan.input_step, row[j]);
            }
          }
        }
      }
    }

    if (plan.stage == kInputs) continue;
    const Sum* weights = static_cast<const Sum*>(packed) + g * blocks * 36 * unit;
    for (int64_t first = block_begin(share, blocks, p.row_split); first < block_end;
         first += plan.row_chunk / kRowBlock) {
      const int64_t last = least(block_end, first + plan.row_chunk / kRowBlock);
      const int64_t row_begin = block_begin(first, p.rows, blocks), row_end = block_begin(last, p.rows, blocks);
      for (int64_t i = 0; i < 36; ++i) {
        const Sum* input = inputs + i * plan.input_step;
        Sum* product = products + i * plan.product_step;
        for (int64_t column = 0; column < columns;) {
          const int64_t vectors = least<int64_t>(kVectors, block_count(columns - column, kLanes));
          for (int64_t block = first; block < last; ++block) {
            const int64_t row = block_begin(block, p.rows, blocks);
            const int64_t rows = block_begin(block + 1, p.rows, blocks) - row;
            multiply_for<Sum, false>(rows, vectors)(p.channels, weights + (block * 36 + i) * unit, input + column,
                                                    plan.channel_offset, product + (row - row_begin) * pitch + column,
                                                    pitch, false);
          }
          column += vectors * kLanes;
        }
      }
      for (int64_t row = row_begin; row < row_end; ++row) {
        T* out = static_cast<T*>(out_data) + g * p.out_group + row * p.out_channel;
        const Sum* product = products + (row - row_begin) * pitch;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t tile_y = b.first[2] + i % b.size[2], x_first = 4 * b.first[3];
          const int64_t image = b.first[0] + i / b.size[2];
          const int64_t height = least<int64_t>(4, plan.height - 4 * tile_y);
          const int64_t width = least(4 * runs[i].length, plan.width - x_first);
          const int64_t strip_pitch = 4 * (runs[i].length + kLanes);
          for (int64_t x = 0; x < runs[i].length; x += kLanes) {
            const Sum* from = product + runs[i].column + x;
            V half[24];
            CONVARITH_UNROLL for (int j = 0; j < 6; ++j) {
              V column[6];
              CONVARITH_UNROLL for (int k = 0; k < 6; ++k) {
                column[k] = load(from + (6 * k + j) * plan.product_step);
              }
              transform(kPoints.output, column, 1, half + j, 6);
            }
            CONVARITH_UNROLL for (int k = 0; k < 4; ++k) {
              V four[4];
              transform(kPoints.output, half + 6 * k, 1, four, 1);
              store_interleaved<Sum>(four, strip + k * strip_pitch + 4 * x);
            }
          }
          for (int64_t y = 0; y < height; ++y) {
            T* to =
                out + p.out_offset + image * p.out_batch + (4 * tile_y + y) * p.out_axis[1] + x_first * p.out_axis[2];
            const Sum* from = strip + y * strip_pitch;
            if (p.out_axis[2] == 1) {
              for (int64_t x = 0; x < width; ++x) narrow(from[x], to[x]);
            } else {
              for (int64_t x = 0; x < width; ++x) narrow(from[x], to[x * p.out_axis[2]]);
            }
          }
        }
      }
    }
  }
}

template <typename T>
ConvKernels kernels() {
  typedef typename SumOf<T>::type Sum;
  return {Simd<Sum>::kLanes, kRowBlock,          kVectors,        sizeof(T),        sizeof(Sum),
          finite<T>,         pack_tasks,         pack<T>,         gather<T>,        weight_pack<T>,
          weight_sum<T>,     weight_store_tasks, weight_store<T>, winograd_pack<T>, winograd<T>};
}

}  // namespace

// By dtype: float, double, bfloat16, float16.
ConvKernels conv_kernels(int dtype) {
  switch (dtype) {
    case 0:
      return kernels<float>();
    case 1:
      return kernels<double>();
    case 2:
      return kernels<Brain16>();
    default:
      return kernels<Half16>();
  }
}

}  // namespace convarith::cpu::CONVARITH_ISA
