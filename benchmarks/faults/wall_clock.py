"""A wall clock that can be put forward and back under running processes, without touching the machine's.

A small library, compiled here and loaded before all others, stands between a process and the C library: what
CLOCK_REALTIME, gettimeofday and time say is shifted by the seconds that stand in a file. Monotonic clocks are left
alone, as the kernel leaves them.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *shift_s;

static long long shift(void) {
    if (!shift_s) {
        const char *path = getenv("ISTHMUS_SHIFTED_CLOCK");
        int file = path ? open(path, O_RDONLY) : -1;
        void *map = file < 0 ? MAP_FAILED : mmap(0, sizeof *shift_s, PROT_READ, MAP_SHARED, file, 0);
        if (map == MAP_FAILED) return 0;
        shift_s = map;
        close(file);
    }
    return *shift_s;
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    int code = syscall(SYS_clock_gettime, clock, at);
    if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return code;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    int code = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
    return code;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """`environment` is for the processes that are to live by it; `put` moves it under them."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where there is no C compiler, or it does not compile this."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise OSError("no C compiler (cc) is here to build a clock that can be put")
        self._file, library = folder / "shift", folder / "shifted_clock.so"
        self.put(0)
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-o", str(library), "-"],
            input=_SOURCE, text=True, capture_output=True, check=False,
        )  # fmt: skip
        if built.returncode:
            raise OSError(f"the clock that can be put does not compile: {built.stderr[:500]}")
        self.environment = {"LD_PRELOAD": str(library), "ISTHMUS_SHIFTED_CLOCK": str(self._file)}

    def put(self, shift_s: int) -> None:
        """So many seconds from the machine's, from now on."""
        data = struct.pack("=q", shift_s)
        if self._file.exists():
            with self._file.open("r+b") as file:  # in place: processes have it mapped
                file.write(data)
        else:
            self._file.write_bytes(data)
