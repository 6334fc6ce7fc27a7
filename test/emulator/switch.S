// void cuda_emulator_switch(void** saved_stack, void* next_stack): keeps the registers that a function must preserve on
// the stack, changes stacks, and takes the registers of the other side. cuda_emulator_start is what a new stack returns
// to: it calls the function and the argument that Fiber::start put into two of those registers.
#if !defined(__linux__)
#error "the emulator switches stacks on Linux only"
#endif
.text
.globl cuda_emulator_switch
.hidden cuda_emulator_switch
.type cuda_emulator_switch, %function
.globl cuda_emulator_start
.hidden cuda_emulator_start
.type cuda_emulator_start, %function
#if defined(__x86_64__)
cuda_emulator_switch:
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
cuda_emulator_start:
  movq %r12, %rdi
  callq *%rbx
  ud2
#elif defined(__aarch64__)
cuda_emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
cuda_emulator_start:
  mov x0, x19
  blr x20
  brk #0
#else
#error "the emulator knows x86-64 and aarch64"
#endif
.section .note.GNU-stack, "", %progbits
