//! Memory that the system refuses: a message that helps, in place of an abort.

#![expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one passes everything on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::OnceLock;

/// What takes less memory in the command that runs.
static ADVICE: OnceLock<&str> = OnceLock::new();

/// Says what takes less memory, should it not be enough.
pub(crate) fn advise(command: &str) {
    let train = "--microbatch N, --use-checkpoint and --precision bf16";
    let advice = if command.contains("train") { train } else { "a smaller --batch-size and --precision bf16" };
    let _ = ADVICE.set(advice);
}

/// The system's allocator, which ends the program with a message when there is nothing to be had.
pub struct Speaking;

// SAFETY: every call goes to the system's allocator as it is, and what that gives is given.
unsafe impl GlobalAlloc for Speaking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        had(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        had(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        had(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Memory that was had; else ends the program. Nothing here allocates: standard error is not buffered.
fn had(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        let advice = ADVICE.get().unwrap_or(&"smaller settings");
        let mib = size.div_ceil(1 << 20);
        let _ = writeln!(
            std::io::stderr(),
            "error: out of memory: the system refused {mib} MiB more. To need less, use {advice}"
        );
        std::process::exit(1);
    }
    pointer
}
