//! What the process does with memory it has freed.

/// Keeps freed memory for the next allocation instead of handing it back to the system: a training step allocates
/// hundreds of large tensors and frees them, and every page handed back costs a fault when it is used again. For programs
/// to call at their beginning. Only glibc is told so, and it listens best on the thread that made the process: other
/// threads have arenas of limited size.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The most that can be asked for.
        const NEVER: libc::c_int = libc::c_int::MAX;
        #[allow(unsafe_code, reason = "a setting of the C library")]
        // SAFETY: the calls set numbers of the allocator, which they take under its lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, NEVER);
        }
    }
}
