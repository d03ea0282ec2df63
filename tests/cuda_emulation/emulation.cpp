// Fibers, their scheduler, and what device.cuh offers. See emulation.h.
#include "emulation.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#ifndef __x86_64__
#error "the emulation switches stacks by x86-64 instructions"
#endif

// void emulation_switch(void** save, void* load): leaves the callee-saved registers on this stack, goes on with
// another.
extern "C" void emulation_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

namespace emulation {
namespace {

constexpr size_t kPage = 4096, kStack = 16 * kPage;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 227 * 1024;  // of sm_90
constexpr unsigned char kPoison = 0xff;     // NaN in every floating type

// Pages between two that cannot be touched.
char* map_guarded(size_t bytes) {
  void* p = mmap(nullptr, bytes + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(p) + kPage;
  if (mprotect(begin, bytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  return begin;
}

size_t round_up(size_t value, size_t to) {
  return (value + to - 1) / to * to;
}

bool operator==(Site a, Site b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

enum class State { kNew, kReady, kAtBarrier, kAtCollective, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
  int group;
};

struct Thread {
  State state = State::kNew;
  uint3 index;
  char* stack = nullptr;
  void* stack_pointer = nullptr;
  Site site = {};
  const char* waits_for = "";
  // Of a collective:
  unsigned mask = 0;
  void* slot = nullptr;
  Finish finish = nullptr;
  // Copies on their way, oldest first, and the group that the next one joins:
  std::deque<Copy> copies;
  int group = 0;
};

class Machine {
 public:
  cudaError_t run(void (*body)(const void*), const void* context, dim3 grid, dim3 block, size_t shared_bytes);
  void barrier(Site site);
  void collective(const char* name, unsigned mask, void* slot, Finish finish, Site site);
  [[noreturn]] void fail(const std::string& what, Site site);
  Thread& current() { return threads_[current_]; }
  unsigned lane() const { return current_ % 32; }
  void* shared() { return shared_; }

  Order order = Order::kForward;
  std::string error;

 private:
  static void enter();
  void run_block();
  void resume(unsigned thread);
  void abandon();
  void leave();  // to the scheduler
  [[noreturn]] void leave_for_good() {
    leave();
    __builtin_unreachable();
  }
  void permute(std::vector<unsigned>& values);
  std::string place(unsigned thread) const;

  void (*body_)(const void*) = nullptr;
  const void* context_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<char*> free_stacks_;
  void* scheduler_ = nullptr;  // its stack pointer while a thread runs
  unsigned current_ = 0, done_ = 0, at_barrier_ = 0;
  Site barrier_site_ = {};
  bool running_ = false, failed_ = false;
  char* shared_pages_ = nullptr;
  char* shared_ = nullptr;
  std::mt19937 random_{12345};
};

Machine& machine() {
  static thread_local Machine m;
  return m;
}

std::string show(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string show(Site site) {
  if (site.file == nullptr) return "?";
  const std::string file = site.file;
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line);
}

std::string Machine::place(unsigned thread) const {
  return "thread " + show(threads_[thread].index) + " of block " + show(blockIdx);
}

// A signal on a fiber: the access that the emulation's flags or guard pages do not allow.
void on_signal(int signal, siginfo_t* info, void*) {
  char text[160];
  if (signal == SIGSEGV || signal == SIGBUS) {
    std::snprintf(text, sizeof text, "an access to %p, outside of the memory it may touch", info->si_addr);
  } else {
    std::snprintf(text, sizeof text, "a misaligned or null access, a shift or a division that is not defined");
  }
  machine().fail(text, {});
}

// Installs on_signal for as long as kernels run.
class Signals {
 public:
  Signals() {
    static thread_local char* stack = map_guarded(4 * kStack);
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = 4 * kStack;
    sigaltstack(&alternative, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler does not return: it leaves the fiber
    for (int i = 0; i < 4; ++i) sigaction(kCaught[i], &action, &old_[i]);
  }
  ~Signals() {
    for (int i = 0; i < 4; ++i) sigaction(kCaught[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int kCaught[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  struct sigaction old_[4];
  stack_t old_stack_;
};

void Machine::fail(const std::string& what, Site site) {
  if (!running_) throw std::runtime_error(what + " outside of a kernel");
  if (!failed_) {
    failed_ = true;
    error = what + ", by " + place(current_) + (site.file ? " at " + show(site) : std::string());
  }
  leave_for_good();
}

void Machine::enter() {
  Machine& m = machine();
  m.body_(m.context_);
  Thread& t = m.current();
  if (!t.copies.empty()) m.fail("an exit with copies by cp.async on their way", {});
  t.state = State::kDone;
  ++m.done_;
  m.leave_for_good();
}

void Machine::leave() {
  emulation_switch(&current().stack_pointer, scheduler_);
}

void Machine::resume(unsigned thread) {
  Thread& t = threads_[thread];
  current_ = thread;
  threadIdx = t.index;
  if (t.state == State::kNew) {
    if (free_stacks_.empty()) free_stacks_.push_back(map_guarded(kStack));
    t.stack = free_stacks_.back();
    free_stacks_.pop_back();
    // As emulation_switch left it: six registers, then where to go on; there, as behind a call, rsp is 8 below a
    // multiple of 16.
    void** top = reinterpret_cast<void**>(t.stack + kStack) - 1;
    *--top = reinterpret_cast<void*>(&Machine::enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    t.stack_pointer = top;
  }
  t.state = State::kReady;
  emulation_switch(&scheduler_, t.stack_pointer);
  if (t.state == State::kDone) {
    free_stacks_.push_back(t.stack);
    t.stack = nullptr;
  }
}

// Threads that will not go on.
void Machine::abandon() {
  for (const Thread& t : threads_) {
    if (t.stack != nullptr) free_stacks_.push_back(t.stack);
  }
}

void Machine::permute(std::vector<unsigned>& values) {
  std::iota(values.begin(), values.end(), 0u);
  if (order == Order::kReversed) std::reverse(values.begin(), values.end());
  if (order == Order::kRandom) std::shuffle(values.begin(), values.end(), random_);
}

void Machine::run_block() {
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  threads_.clear();
  threads_.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    threads_[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
  }
  done_ = at_barrier_ = 0;
  std::vector<unsigned> turn(count);
  permute(turn);
  while (done_ < count) {
    bool progress = false;
    for (const unsigned i : turn) {
      if (threads_[i].state != State::kNew && threads_[i].state != State::kReady) continue;
      progress = true;
      resume(i);
      if (failed_) return abandon();
    }
    if (progress) continue;
    // Nobody can go on. Say who waits where, and who has left.
    failed_ = true;
    error = "threads of block " + show(blockIdx) + " wait for others that do not come:";
    std::vector<std::string> said;
    for (unsigned i = 0; i < count; ++i) {
      const Thread& t = threads_[i];
      const std::string where =
          t.state == State::kDone ? std::string(" exited") : std::string(" in ") + t.waits_for + " at " + show(t.site);
      if (std::find(said.begin(), said.end(), where) != said.end()) continue;
      said.push_back(where);
      error += (said.size() > 1 ? ";" : "") + std::string(" thread ") + show(t.index) + where;
    }
    return abandon();
  }
}

cudaError_t Machine::run(void (*body)(const void*), const void* context, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t count = uint64_t{block.x} * block.y * block.z;
  error.clear();
  if (running_) throw std::runtime_error("a launch within a launch");
  if (count == 0 || count > kMostThreads || block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      shared_bytes > kMostShared) {
    error = "a launch of " + std::to_string(count) + " threads by " + std::to_string(grid.x) + " x " +
            std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks with " + std::to_string(shared_bytes) +
            " bytes of shared memory is beyond the limits";
    return cudaErrorInvalidConfiguration;
  }
  if (shared_pages_ == nullptr) shared_pages_ = map_guarded(round_up(kMostShared, kPage));
  const size_t rounded = round_up(shared_bytes, 128);  // its end is the guard page
  shared_ = shared_pages_ + round_up(kMostShared, kPage) - rounded;
  body_ = body;
  context_ = context;
  blockDim = block;
  gridDim = grid;
  running_ = true;
  failed_ = false;
  const Signals signals;
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  permute(blocks);
  for (const unsigned b : blocks) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    std::memset(shared_, kPoison, rounded);
    run_block();
    for (size_t i = shared_bytes; i < rounded && !failed_; ++i) {
      if (static_cast<unsigned char>(shared_[i]) == kPoison) continue;
      failed_ = true;
      error = "block " + show(blockIdx) + " wrote " + std::to_string(i - shared_bytes) +
              " bytes behind the end of its shared memory";
    }
    if (failed_) break;
  }
  running_ = false;
  return failed_ ? cudaErrorLaunchFailure : cudaSuccess;
}

void Machine::barrier(Site site) {
  if (at_barrier_ > 0 && !(site == barrier_site_)) {
    fail("__syncthreads() while others wait in another, at " + show(barrier_site_), site);
  }
  Thread& self = current();
  self.site = barrier_site_ = site;
  self.waits_for = "__syncthreads()";
  self.state = State::kAtBarrier;
  if (++at_barrier_ < threads_.size()) return leave();
  at_barrier_ = 0;
  for (Thread& t : threads_) t.state = State::kReady;
}

void Machine::collective(const char* name, unsigned mask, void* slot, Finish finish, Site site) {
  const unsigned first = current_ / 32 * 32;
  const unsigned present = static_cast<unsigned>(std::min<size_t>(32, threads_.size() - first));
  if (present < 32) mask &= (1u << present) - 1;  // a warp that is not full
  Thread& self = current();
  if ((mask >> lane() & 1) == 0) fail(std::string(name) + " with a mask that lacks the calling lane", site);
  self.site = site;
  self.waits_for = name;
  self.state = State::kAtCollective;
  self.mask = mask;
  self.slot = slot;
  self.finish = finish;
  void* slots[32] = {};
  for (unsigned i = 0; i < present; ++i) {
    if ((mask >> i & 1) == 0) continue;
    const Thread& t = threads_[first + i];
    if (t.state == State::kDone) fail(std::string(name) + " with a lane that has exited, " + std::to_string(i), site);
    if (t.state != State::kAtCollective) return leave();
    if (t.finish != finish || t.mask != mask || !(t.site == site)) {
      fail(std::string(name) + " while lane " + std::to_string(i) + " waits in " + t.waits_for + " at " + show(t.site),
           site);
    }
    slots[i] = t.slot;
  }
  finish(slots, mask, site);
  for (unsigned i = 0; i < present; ++i) {
    if (slots[i] != nullptr) threads_[first + i].state = State::kReady;
  }
}

}  // namespace

bool wide_integers = false;

void fail(const char* what, Site site) {
  machine().fail(what, site);
}
void* shared_memory() {
  return machine().shared();
}
void block_barrier(Site site) {
  machine().barrier(site);
}
void warp_collective(const char* name, unsigned mask, void* slot, Finish finish, Site site) {
  machine().collective(name, mask, slot, finish, site);
}
unsigned lane() {
  return machine().lane();
}
void set_order(Order order) {
  machine().order = order;
}
cudaError_t run(void (*body)(const void*), const void* context, dim3 grid, dim3 block, size_t shared_bytes) {
  return machine().run(body, context, grid, block, shared_bytes);
}

// Guarded arrays ----------------------------------------------------------------------------------------------------

namespace {
struct Allocation {
  size_t bytes, mapped;
  char* pages;
};
std::mutex allocations_mutex;
std::unordered_map<void*, Allocation> allocations;
}  // namespace

void* allocate(size_t bytes, size_t alignment) {
  const size_t rounded = round_up(bytes, alignment), mapped = round_up(std::max<size_t>(rounded, 1), kPage);
  char* pages = map_guarded(mapped);
  char* begin = pages + mapped - rounded;
  std::memset(pages, kPoison, mapped);
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  allocations[begin] = {bytes, mapped, pages};
  return begin;
}

bool release(void* memory) {
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return false;
  const Allocation a = found->second;
  const char* begin = static_cast<char*>(memory);
  bool intact = true;
  for (const char* p = a.pages; p < begin; ++p) intact &= static_cast<unsigned char>(*p) == kPoison;
  for (const char* p = begin + a.bytes; p < a.pages + a.mapped; ++p)
    intact &= static_cast<unsigned char>(*p) == kPoison;
  munmap(a.pages - kPage, a.mapped + 2 * kPage);
  allocations.erase(found);
  return intact;
}

// cp.async ------------------------------------------------------------------------------------------------------------

void cp_async(void* shared, const void* global, int bytes, bool valid, Site site) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0)) {
    fail("cp.async with an address that is no multiple of its size", site);
  }
  std::memset(shared, kPoison, bytes);
  Thread& t = machine().current();
  t.copies.push_back({shared, global, bytes, valid, t.group});
}

void cp_async_commit() {
  ++machine().current().group;
}

void cp_async_wait_for(int newest_groups_left) {
  Thread& t = machine().current();
  while (!t.copies.empty() && t.copies.front().group < t.group - newest_groups_left) {
    const Copy c = t.copies.front();
    t.copies.pop_front();
    if (c.valid) {
      std::memcpy(c.to, c.from, c.bytes);
    } else {
      std::memset(c.to, 0, c.bytes);
    }
  }
}

// Fragments -----------------------------------------------------------------------------------------------------------

const Layout kTf32 = {
    16,
    8,
    8,
    4,
    2,
    4,
    [](int lane, int i) { return Place{lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4}; },
    [](int lane, int i) { return Place{lane % 4 + i * 4, lane / 4}; },
    [](int lane, int i) { return Place{lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; },
};
const Layout kHalf = {
    16,
    8,
    16,
    8,
    4,
    4,
    [](int lane, int i) { return Place{lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8}; },
    [](int lane, int i) { return Place{lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4}; },
    [](int lane, int i) { return Place{lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; },
};
const Layout kF64 = {
    8,
    8,
    4,
    1,
    1,
    2,
    [](int lane, int) { return Place{lane / 4, lane % 4}; },
    [](int lane, int) { return Place{lane % 4, lane / 4}; },
    [](int lane, int i) { return Place{lane / 4, lane % 4 * 2 + i}; },
};

namespace {

template <typename D>
struct Fragments {
  const void* a;
  const void* b;
  D* d;
};

// d += a b; read(fragment, i) is element i of a lane's fragment.
template <typename D, typename Read>
void multiply(const Layout& layout, void* const* slots, unsigned mask, Site site, const Read& read) {
  if (mask != 0xffffffffu) fail("mma by fewer than 32 lanes", site);
  double a[16][16], b[16][8], d[16][8];
  const auto of = [&](int lane) { return static_cast<const Fragments<D>*>(slots[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < layout.a_elements; ++i) {
      const Place p = layout.a(lane, i);
      a[p.row][p.column] = read(of(lane)->a, i);
    }
    for (int i = 0; i < layout.b_elements; ++i) {
      const Place p = layout.b(lane, i);
      b[p.row][p.column] = read(of(lane)->b, i);
    }
  }
  for (int m = 0; m < layout.m; ++m) {
    for (int n = 0; n < layout.n; ++n) {
      d[m][n] = 0;
      for (int k = 0; k < layout.k; ++k) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < layout.d_elements; ++i) {
      const Place p = layout.d(lane, i);
      of(lane)->d[i] = static_cast<D>(of(lane)->d[i] + d[p.row][p.column]);
    }
  }
}

uint16_t half_of(const void* fragment, int i) {
  return static_cast<uint16_t>(static_cast<const uint32_t*>(fragment)[i / 2] >> (i % 2 * 16));
}

struct Rows {
  const void* row;
  uint32_t* r;
  bool transposed;
};

void load_matrices(uint32_t (&r)[4], const void* shared, bool transposed, Site site) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) fail("ldmatrix of a row that is not aligned to 16 bytes", site);
  Rows rows = {shared, r, transposed};
  warp_collective(
      "ldmatrix", 0xffffffffu, &rows,
      [](void* const* slots, unsigned mask, Site at) {
        if (mask != 0xffffffffu) fail("ldmatrix by fewer than 32 lanes", at);
        uint16_t m[4][8][8];
        for (int lane = 0; lane < 32; ++lane)
          std::memcpy(m[lane / 8][lane % 8], static_cast<Rows*>(slots[lane])->row, 16);
        for (int lane = 0; lane < 32; ++lane) {
          const Rows& own = *static_cast<Rows*>(slots[lane]);
          for (int i = 0; i < 4; ++i) {
            const int g = lane / 4, t = lane % 4 * 2;
            const uint32_t low = own.transposed ? m[i][t][g] : m[i][g][t];
            const uint32_t high = own.transposed ? m[i][t + 1][g] : m[i][g][t + 1];
            own.r[i] = low | high << 16;
          }
        }
      },
      site);
}

}  // namespace

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments<float> slot = {a, b, d};
  warp_collective(
      "mma_tf32", 0xffffffffu, &slot,
      [](void* const* slots, unsigned mask, Site at) {
        multiply<float>(kTf32, slots, mask, at, [](const void* fragment, int i) {
          return __uint_as_float(static_cast<const uint32_t*>(fragment)[i] & ~0x1fffu);
        });
      },
      site);
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments<float> slot = {a, b, d};
  warp_collective(
      "mma_bf16", 0xffffffffu, &slot,
      [](void* const* slots, unsigned mask, Site at) {
        multiply<float>(kHalf, slots, mask, at,
                        [](const void* fragment, int i) { return __bfloat162float({half_of(fragment, i)}); });
      },
      site);
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments<float> slot = {a, b, d};
  warp_collective(
      "mma_f16", 0xffffffffu, &slot,
      [](void* const* slots, unsigned mask, Site at) {
        multiply<float>(kHalf, slots, mask, at,
                        [](const void* fragment, int i) { return __half2float({half_of(fragment, i)}); });
      },
      site);
}

void mma_f64(double (&d)[2], double a, double b, Site site) {
  Fragments<double> slot = {&a, &b, d};
  warp_collective(
      "mma_f64", 0xffffffffu, &slot,
      [](void* const* slots, unsigned mask, Site at) {
        multiply<double>(kF64, slots, mask, at,
                         [](const void* fragment, int) { return *static_cast<const double*>(fragment); });
      },
      site);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* shared, Site site) {
  load_matrices(r, shared, false, site);
}
void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared, Site site) {
  load_matrices(r, shared, true, site);
}

unsigned ballot(unsigned mask, bool vote, Site site) {
  Offer<unsigned> offer = {vote, 0, 0};
  warp_collective(
      "a vote", mask, &offer,
      [](void* const* slots, unsigned, Site) {
        unsigned votes = 0;
        for (int i = 0; i < 32; ++i) {
          if (slots[i] != nullptr) votes |= static_cast<Offer<unsigned>*>(slots[i])->value << i;
        }
        for (int i = 0; i < 32; ++i) {
          if (slots[i] != nullptr) static_cast<Offer<unsigned>*>(slots[i])->taken = votes;
        }
      },
      site);
  return offer.taken;
}

uint32_t to_tf32(float v) {
  const uint32_t bits = __float_as_uint(v);
  const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
  return is_finite ? (bits + 0x1000u) & ~0x1fffu : bits;
}

}  // namespace emulation

// For Python.
extern "C" {
void emulation_set_order(int order) {
  emulation::set_order(static_cast<emulation::Order>(order));
}
void emulation_set_wide_integers(bool wide) {
  emulation::wide_integers = wide;
}
void* emulation_allocate(size_t bytes, size_t alignment) {
  return emulation::allocate(bytes, alignment);
}
bool emulation_release(void* memory) {
  return emulation::release(memory);
}
}

// The runtime and the half precisions -------------------------------------------------------------------------------

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : emulation::machine().error.c_str();
}

float __bfloat162float(__nv_bfloat16 v) {
  return __uint_as_float(uint32_t{v.bits} << 16);
}

__nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t bits = __float_as_uint(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

float __half2float(__half v) {
  const uint32_t sign = uint32_t{v.bits & 0x8000u} << 16, exponent = v.bits >> 10 & 31, mantissa = v.bits & 0x3ffu;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  const float magnitude =
      exponent == 0 ? ldexpf(float(mantissa), -24) : ldexpf(float(mantissa | 0x400u), int(exponent) - 25);
  return sign != 0 ? -magnitude : magnitude;
}

__half __float2half_rn(float v) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(v) >> 16 & 0x8000u);
  const float u = fabsf(v);
  if (v != v) return {0x7fff};
  if (u == 0) return {sign};
  if (u >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  int exponent;
  frexpf(u, &exponent);  // u = f 2^exponent, 1/2 <= f < 1
  const int unit = max(exponent - 11, -24);
  const uint32_t rounded = static_cast<uint32_t>(nearbyintf(ldexpf(u, -unit)));  // in units of 2^unit, ties to even
  // A mantissa that rounds up to 2^11 carries into the exponent by itself; so does a first normal one, 2^10.
  return {static_cast<uint16_t>(sign | ((static_cast<uint32_t>(unit + 24) << 10) + rounded))};
}
