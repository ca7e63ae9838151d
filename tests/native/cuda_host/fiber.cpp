#include "fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define GLMLITE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GLMLITE_ASAN 1
#endif
#endif
#ifdef GLMLITE_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __APPLE__
#define GLMLITE_SYMBOL "_glmlite_switch"
#else
#define GLMLITE_SYMBOL "glmlite_switch"
#endif

// Saves what a call must keep on this stack, leaves its pointer in *from, and goes on where `to` was left.
extern "C" void glmlite_switch(void** from, void* to);
#if defined(__x86_64__)
asm(".text\n.globl " GLMLITE_SYMBOL "\n" GLMLITE_SYMBOL
    ":\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
constexpr int kReturn = 6;  // the word that the switch returns to
// From a multiple of 16 bytes, so that enter() begins 8 bytes off one, as after a call.
constexpr int kWords = 10;
#elif defined(__aarch64__)
asm(".text\n.globl " GLMLITE_SYMBOL "\n" GLMLITE_SYMBOL
    ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x2, sp\nstr x2, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
constexpr int kReturn = 11;  // x30
constexpr int kWords = 20;
#else
#error "fibers: x86-64 and arm64 only"
#endif

namespace glmlite::cuda_host {

namespace {
thread_local Fiber* running = nullptr;
#ifdef GLMLITE_ASAN
thread_local const void* resumer_stack = nullptr;
thread_local size_t resumer_stack_bytes = 0;
#endif
}  // namespace

Fiber::Fiber() {
  void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<uint8_t*>(p);
}

Fiber::~Fiber() { munmap(stack_, kStackBytes); }

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  done_ = false;
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes) - kWords;
  memset(top, 0, sizeof(void*) * kWords);
  top[kReturn] = reinterpret_cast<void*>(&Fiber::enter);
  context_ = top;
}

void Fiber::resume() {
  running = this;
#ifdef GLMLITE_ASAN
  void* fake;
  __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
  glmlite_switch(&resumer_, context_);
#ifdef GLMLITE_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::yield() {
  Fiber* self = running;
#ifdef GLMLITE_ASAN
  void* fake;
  __sanitizer_start_switch_fiber(self->done_ ? nullptr : &fake, resumer_stack, resumer_stack_bytes);
#endif
  glmlite_switch(&self->context_, self->resumer_);
#ifdef GLMLITE_ASAN
  __sanitizer_finish_switch_fiber(fake, &resumer_stack, &resumer_stack_bytes);
#endif
}

void Fiber::enter() {
#ifdef GLMLITE_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &resumer_stack, &resumer_stack_bytes);
#endif
  Fiber* self = running;
  self->entry_(self->argument_);
  self->done_ = true;
  yield();
  __builtin_unreachable();
}

}  // namespace glmlite::cuda_host
