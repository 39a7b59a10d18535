"""The C library's allocator, told to keep large buffers."""

import ctypes
import os
import platform

# of glibc's mallopt(3): large buffers are cut from the heap, whose unused end is never handed back and grows by 256 MiB
OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 2**28)}


def keep_buffers() -> None:
    """Let glibc keep large buffers for the next operation instead of handing them back to the system after each.

    Getting them again costs a page fault for every 4 KiB, which slows training and large batches on a CPU. For the
    whole process, at the price of memory that others cannot have meanwhile: of each size several buffers, as the first
    ones may leave a small piece beside them in the thread's cache, so that the next does not fit. `vitskip` and the
    benchmarks call it. Does nothing with another C library, or where the environment sets `MALLOC_...` variables.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        library = ctypes.CDLL(None)
        for option, value in OPTIONS.values():
            library.mallopt(option, value)
