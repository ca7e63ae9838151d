// The machine behind cuda_runtime.h: blocks of fibers, and streams whose work waits until somebody synchronises.
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>  // under the address sanitizer not even reads pass an end
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#endif

using Work = std::function<void()>;

struct CUstream_st {
  std::vector<Work> queue;
  bool capturing = false;
  std::vector<Work> captured;
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  std::chrono::steady_clock::time_point time;
  bool reached = true;
};
struct CUgraph_st {
  std::vector<Work> works;
};
struct CUgraphExec_st {
  std::vector<Work> works;
};

namespace glmlite::cuda_host {

namespace {

constexpr int kWarp = 32;
constexpr size_t kGuardBytes = 256;
constexpr uint8_t kGuard = 0xA5, kPoison = 0xFF;

enum class State { kReady, kAtWarp, kAtBlock, kAtWait, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, group;
};

struct Thread {
  Fiber fiber;
  ThreadState place;
  State state;
  size_t exchanges;
  bool waited;               // for the kernels before this one
  std::vector<Copy> copies;  // that have not been made
  size_t groups;             // of copies, committed
};

struct Warp {
  alignas(64) uint8_t given[2][kWarp][64];
  int lanes, waiting;
};

struct Machine {
  std::recursive_mutex mutex;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  dim3 grid, block;
  std::vector<uint8_t> shared;  // with a guard behind it
  int at_block = 0, at_wait = 0, alive = 0;
  const std::function<void()>* kernel = nullptr;
  std::mt19937 random;
  size_t launches = 0;
  size_t used = 0;
  std::map<void*, size_t> blocks;  // of device memory
  std::map<void*, std::vector<uint8_t>>
      past;              // the same, before one of the kernels that the next one follows; or empty
  bool in_past = false;  // the block that runs sees it
  std::map<void*, size_t> pinned;
  cudaError_t error = cudaSuccess;
  CUstream_st null_stream;
  std::vector<CUstream_st*> streams;
  int capturing = 0;
};

Machine& machine() {
  static Machine& m = *new Machine;  // lives as long as the process: fibers may outlive static objects
  return m;
}

void fail(const char* what) {
  std::fprintf(stderr, "cuda_host: %s\n", what);
  machine().error = cudaErrorLaunchFailure;
}

void leave_barriers(Warp& w, int first) {
  Machine& m = machine();
  w.waiting = 0;
  for (int i = 0; i < w.lanes; ++i) {
    Thread& t = *m.threads[first + i];
    if (t.state == State::kAtWarp) t.state = State::kReady;
  }
}

void run_thread(void* argument) {
  (*machine().kernel)();
  auto* t = static_cast<Thread*>(argument);
  t->state = State::kDone;
  if (!t->waited) fail("a thread ended without having waited for the kernels before it");
}

void exchange_past() {
  Machine& m = machine();
  m.in_past = !m.in_past;
  for (auto& [p, bytes] : m.past) std::swap_ranges(bytes.begin(), bytes.end(), static_cast<uint8_t*>(p));
}

void release(State state, int count) {
  for (int i = 0; i < count; ++i) {
    Thread& t = *machine().threads[i];
    if (t.state == state) t.state = State::kReady;
  }
}

void run_block(int count) {
  Machine& m = machine();
  const size_t guard = m.shared.size() - kGuardBytes;
  std::memset(m.shared.data(), kPoison, guard);
  std::memset(m.shared.data() + guard, kGuard, kGuardBytes);
  m.alive = count;
  m.at_block = m.at_wait = 0;
  for (size_t w = 0; w < m.warps.size(); ++w) {
    m.warps[w].waiting = 0;
    m.warps[w].lanes = std::min(kWarp, count - static_cast<int>(w) * kWarp);
  }
  for (int i = 0; i < count; ++i) {
    Thread& t = *m.threads[i];
    t.state = State::kReady;
    t.exchanges = 0;
    t.copies.clear();
    t.groups = 0;
    t.waited = false;
    t.fiber.start(run_thread, &t);
  }
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  const auto run = [&](int i) {
    Thread& t = *m.threads[i];
    if (t.state != State::kReady) return false;
    m.current = &t;
    t.fiber.resume();
    if (t.state == State::kDone) --m.alive;
    return true;
  };
  // Warps either keep step with one another, or each runs for as long as it can before another does.
  const bool in_step = options().seed == 0 || m.random() % 2 == 0;
  while (m.alive > 0) {
    if (options().seed) std::shuffle(order.begin(), order.end(), m.random);
    bool ran = false;
    for (size_t next = 0; next < order.size(); ++next) {
      if (!run(order[next])) continue;
      ran = true;
      const int warp = order[next] / kWarp * kWarp;
      for (bool more = !in_step; more;) {
        more = false;
        for (int i = warp; i < std::min(warp + kWarp, count); ++i) more |= run(i);
      }
    }
    if (m.at_block > 0 && m.at_block == m.alive) {
      m.at_block = 0;
      release(State::kAtBlock, count);
    } else if (m.at_wait > 0 && m.at_wait == m.alive) {
      m.at_wait = 0;
      exchange_past();
      release(State::kAtWait, count);
    } else if (!ran) {
      return fail("threads wait for others that have ended or wait elsewhere");
    }
  }
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (m.shared[guard + i] != kGuard) return fail("a kernel wrote beyond its shared memory");
  }
}

}  // namespace

Options& options() {
  static Options o;
  return o;
}
size_t launches() { return machine().launches; }
void recover() { machine().error = cudaSuccess; }
const ThreadState& thread_state() { return machine().current->place; }
const dim3& block_size() { return machine().block; }
const dim3& grid_size() { return machine().grid; }
void* shared_bytes() { return machine().shared.data(); }

void sync_block() {
  Machine& m = machine();
  Thread& t = *m.current;
  t.state = State::kAtBlock;
  ++m.at_block;
  Fiber::yield();
}

void wait_for_previous() {
  Machine& m = machine();
  m.current->waited = true;
  if (!m.in_past) return;
  m.current->state = State::kAtWait;
  ++m.at_wait;
  Fiber::yield();
}

void sync_warp() {
  Machine& m = machine();
  Thread& t = *m.current;
  Warp& w = m.warps[t.place.warp];
  if (++w.waiting == w.lanes) return leave_barriers(w, t.place.warp * kWarp);
  t.state = State::kAtWarp;
  Fiber::yield();
}

// A lane cannot be two exchanges ahead of another, so two buffers do.
const uint8_t* exchange(const void* mine, size_t bytes) {
  Machine& m = machine();
  Thread& t = *m.current;
  Warp& w = m.warps[t.place.warp];
  uint8_t (*given)[64] = w.given[t.exchanges++ % 2];
  std::memcpy(given[t.place.lane], mine, bytes);
  sync_warp();
  return given[0];
}

void copy_later(void* to, const void* from, size_t bytes) {
  Machine& m = machine();
  if (options().seed && m.random() % 2) {
    m.current->copies.push_back({to, from, bytes, m.current->groups});
  } else {
    std::memcpy(to, from, bytes);
  }
}

void commit_copies() { ++machine().current->groups; }

void wait_copies(size_t under_way) {
  Thread& t = *machine().current;
  const auto end = std::stable_partition(t.copies.begin(), t.copies.end(),
                                         [&](const Copy& c) { return c.group + under_way < t.groups; });
  for (auto c = t.copies.begin(); c != end; ++c) std::memcpy(c->to, c->from, c->bytes);
  t.copies.erase(t.copies.begin(), end);
}

void enqueue(CUstream_st* stream, Work work) {
  Machine& m = machine();
  const std::lock_guard<std::recursive_mutex> lock(m.mutex);
  if (!stream) stream = &m.null_stream;
  (stream->capturing ? stream->captured : stream->queue).push_back(std::move(work));
}

void enqueue_kernel(CUstream_st* stream, bool ahead, Work kernel) {
  const std::lock_guard<std::recursive_mutex> lock(machine().mutex);
  if (ahead && stream && stream->capturing && !options().ahead_in_graphs) {
    machine().error = cudaErrorInvalidValue;
  } else {
    enqueue(stream, std::move(kernel));
  }
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  Machine& m = machine();
  const auto count = static_cast<int>(block.x * block.y * block.z);
  if (count < 1 || count > 1024 || grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) {
    m.error = cudaErrorInvalidValue;
    return fail("a grid or block of impossible size");
  }
  if (m.launches >= options().fail_after) m.error = cudaErrorLaunchFailure;
  if (m.error == cudaErrorLaunchFailure) return;
  ++m.launches;
  m.random.seed(options().seed + static_cast<uint32_t>(m.launches));
  m.grid = grid;
  m.block = block;
  m.shared.assign(shared_bytes + kGuardBytes, 0);
  m.shared.shrink_to_fit();
  m.kernel = &kernel;
  m.warps.resize((count + kWarp - 1) / kWarp);
  while (static_cast<int>(m.threads.size()) < count) m.threads.push_back(std::make_unique<Thread>());
  for (int i = 0; i < count; ++i) {
    ThreadState& p = m.threads[i]->place;
    p.thread = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    p.lane = i % kWarp;
    p.warp = i / kWarp;
  }
  // A kernel that follows this one may begin now.
  const auto chance = [&](unsigned n) { return options().seed && m.random() % n == 0; };
  const bool keep = chance(4);
  std::map<void*, std::vector<uint8_t>> now;
  for (const auto& [p, bytes] : m.blocks) {
    if (keep) now[p].assign(static_cast<uint8_t*>(p), static_cast<uint8_t*>(p) + bytes);
  }
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t before_early = !m.past.empty() && chance(2) ? m.random() % blocks : blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        for (int i = 0; i < count; ++i) m.threads[i]->place.block = dim3(x, y, z);
        if (before_early-- == 0) exchange_past();
        run_block(count);
        if (m.in_past) exchange_past();
        if (m.error != cudaSuccess) return;
      }
    }
  }
  if (keep) m.past = std::move(now);
}

namespace {

// Runs the first `count` works of a stream.
void drain(CUstream_st* stream, size_t count) {
  std::vector<Work> works(stream->queue.begin(), stream->queue.begin() + static_cast<std::ptrdiff_t>(count));
  stream->queue.erase(stream->queue.begin(), stream->queue.begin() + static_cast<std::ptrdiff_t>(count));
  for (const Work& work : works) {
    if (machine().error == cudaErrorLaunchFailure) break;  // it stays, as on a GPU
    const size_t kernels = machine().launches;
    work();
    if (machine().launches == kernels) machine().past.clear();  // a kernel waits for anything else before it starts
  }
  machine().past.clear();
}

void drain_all() {
  drain(&machine().null_stream, machine().null_stream.queue.size());
  for (CUstream_st* s : machine().streams) drain(s, s->queue.size());
}

cudaError_t result() { return machine().error; }
cudaError_t failed(cudaError_t error) {
  if (machine().error != cudaErrorLaunchFailure) machine().error = error;
  return error;
}

bool guard_is_whole(void* p, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(static_cast<uint8_t*>(p) + bytes, kGuardBytes);
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (static_cast<uint8_t*>(p)[bytes + i] != kGuard) return false;
  }
  return true;
}

cudaError_t allocate(void** p, size_t bytes, std::map<void*, size_t>& list) {
  if (machine().capturing) return failed(cudaErrorStreamCaptureUnsupported);
  if (posix_memalign(p, kGuardBytes, bytes + kGuardBytes)) return failed(cudaErrorMemoryAllocation);
  std::memset(*p, kPoison, bytes);
  std::memset(static_cast<uint8_t*>(*p) + bytes, kGuard, kGuardBytes);
  ASAN_POISON_MEMORY_REGION(static_cast<uint8_t*>(*p) + bytes, kGuardBytes);
  list[*p] = bytes;
  return cudaSuccess;
}

cudaError_t release(void* p, std::map<void*, size_t>& list) {
  if (!p) return cudaSuccess;
  drain_all();
  const auto it = list.find(p);
  if (it == list.end()) return failed(cudaErrorInvalidValue);
  if (!guard_is_whole(p, it->second)) fail("something wrote beyond an allocation");
  std::memset(p, kPoison, it->second);
  list.erase(it);
  std::free(p);
  return result();
}

}  // namespace

}  // namespace glmlite::cuda_host

using namespace glmlite::cuda_host;

#define LOCK const std::lock_guard<std::recursive_mutex> lock(machine().mutex)

const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    default:
      return "cudaErrorInvalidValue";
  }
}
const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return "invalid argument";
  }
}
cudaError_t cudaGetLastError() {
  LOCK;
  const cudaError_t e = machine().error;
  if (e != cudaErrorLaunchFailure) machine().error = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return machine().error; }
cudaError_t cudaDriverGetVersion(int* v) { return *v = options().driver, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) {
  *n = options().devices;
  if (options().driver < 13000) return failed(cudaErrorInsufficientDriver);
  return *n ? cudaSuccess : failed(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int d) {
  return d >= 0 && d < options().devices ? cudaSuccess : failed(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* d) { return *d = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d < 0 || d >= options().devices) return failed(cudaErrorInvalidDevice);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "CUDA on the CPU, for tests");
  p->totalGlobalMem = options().memory;
  p->major = options().major;
  p->minor = options().minor;
  p->multiProcessorCount = 2;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  LOCK;
  drain_all();
  return result();
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  LOCK;
  *total = options().memory;
  *free = options().memory - std::min(options().memory, machine().used);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  LOCK;
  if (machine().used + bytes > options().memory) return failed(cudaErrorMemoryAllocation);
  const cudaError_t e = allocate(p, bytes, machine().blocks);
  if (e == cudaSuccess) machine().used += bytes;
  return e;
}
cudaError_t cudaFree(void* p) {
  LOCK;
  const auto it = machine().blocks.find(p);
  if (it != machine().blocks.end()) machine().used -= it->second;
  return release(p, machine().blocks);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  LOCK;
  return allocate(p, bytes, machine().pinned);
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void* p) {
  LOCK;
  return release(p, machine().pinned);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  LOCK;
  drain_all();
  std::memcpy(to, from, bytes);
  return result();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
  enqueue(s, [=] { std::memcpy(to, from, bytes); });
  return result();
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  LOCK;
  drain_all();
  std::memset(p, value, bytes);
  return result();
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t s) {
  enqueue(s, [=] { std::memset(p, value, bytes); });
  return result();
}
cudaError_t cudaStreamCreate(cudaStream_t* s) {
  LOCK;
  *s = new CUstream_st;
  machine().streams.push_back(*s);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  LOCK;
  drain_all();
  auto& all = machine().streams;
  all.erase(std::remove(all.begin(), all.end(), s), all.end());
  delete s;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  LOCK;
  if (!s) s = &machine().null_stream;
  if (s->capturing) return failed(cudaErrorStreamCaptureUnsupported);
  drain(s, s->queue.size());
  return result();
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaStreamSynchronize(s); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  if (s && s->capturing) return failed(cudaErrorStreamCaptureUnsupported);
  enqueue(s, [e] { cudaEventSynchronize(e); });
  return result();
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = new CUevent_st, cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  LOCK;
  drain_all();  // a queued record points to it
  delete e;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  LOCK;
  if (!s) s = &machine().null_stream;
  e->stream = s;
  e->reached = s->capturing;
  enqueue(s, [e] {
    e->reached = true;
    e->time = std::chrono::steady_clock::now();
  });
  return result();
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  LOCK;
  while (!e->reached && !e->stream->queue.empty() && result() != cudaErrorLaunchFailure) drain(e->stream, 1);
  return result();
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return e->reached ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  LOCK;
  if (!s || s->capturing) return failed(cudaErrorStreamCaptureUnsupported);
  s->capturing = true;
  ++machine().capturing;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  *status = s && s->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
  LOCK;
  if (!s || !s->capturing) return failed(cudaErrorInvalidValue);
  s->capturing = false;
  --machine().capturing;
  *g = new CUgraph_st{std::move(s->captured)};
  s->captured.clear();
  return result();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
  return *e = new CUgraphExec_st{g->works}, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  for (const Work& w : e->works) enqueue(s, w);
  return result();
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete g, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return delete e, cudaSuccess; }
