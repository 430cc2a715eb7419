// One binary for every x86-64: hot functions are compiled several times and the loader picks by CPU.
#pragma once

// On a function: compile it, with everything inlined into it, for AVX-512, AVX2 and the baseline, by levels of the
// instruction set: the name of a processor would be matched by that processor alone. Only GCC on GNU/Linux has all it
// takes (ifunc, flatten); elsewhere the baseline alone is built, with the same answers. So it is under sanitizers: the
// loader picks before they are ready.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SRR_CPU_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SRR_CPU_CLONES
#endif
