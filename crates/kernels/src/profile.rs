//! How long each kernel takes, measured inside real work.

use crate::element::Element;
use crate::simd::multiversion;
use half::bf16;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the calls of one kernel came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTime {
    /// Which kernel, by which method, on which type.
    pub kernel: String,
    /// Calls.
    pub calls: u64,
    /// Seconds, all calls together; of time shared with others, its share.
    pub secs: f64,
    /// Floating-point operations that the plain algorithm takes, all calls together; 0 where memory decides.
    pub flop: f64,
    /// Bytes that have to be read and written, all calls together.
    pub bytes: f64,
}

/// What one call of a kernel has to do at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations of the plain algorithm; 0 where memory decides.
    pub flop: f64,
    /// Bytes of operands and results.
    pub bytes: f64,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static PROFILE: Mutex<Profile> = Mutex::new(Profile { times: BTreeMap::new(), active: Vec::new(), since: None });

struct Profile {
    times: BTreeMap<String, KernelTime>,
    /// Kernels that run now, on any thread.
    active: Vec<String>,
    /// When one of them last began or ended.
    since: Option<Instant>,
}

impl Profile {
    fn add(&mut self, kernel: String, work: Work, secs: f64) {
        let time = self.times.entry(kernel).or_default();
        time.calls += 1;
        time.secs += secs;
        time.flop += work.flop;
        time.bytes += work.bytes;
    }

    /// Shares out the time since the last change among the kernels that ran.
    fn credit(&mut self) {
        let now = Instant::now();
        if let Some(since) = self.since.replace(now) {
            let share = now.duration_since(since).as_secs_f64() / self.active.len().max(1) as f64;
            for kernel in &self.active {
                self.times.entry(kernel.clone()).or_default().secs += share;
            }
        }
    }
}

fn profile() -> MutexGuard<'static, Profile> {
    PROFILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to measure every kernel that this process runs.
pub fn start() {
    *profile() = Profile { times: BTreeMap::new(), active: Vec::new(), since: None };
    RUNNING.store(true, Ordering::Relaxed);
}

/// Ends it: the kernels, the slowest first. Time in which several ran side by side is shared among them, so that all
/// together they took no longer than the clock says.
pub fn finish() -> Vec<KernelTime> {
    RUNNING.store(false, Ordering::Relaxed);
    let times = std::mem::take(&mut profile().times).into_iter();
    let mut times: Vec<KernelTime> = times.map(|(kernel, time)| KernelTime { kernel, ..time }).collect();
    times.sort_by(|a, b| b.secs.total_cmp(&a.secs));
    times
}

/// Whether kernels are measured.
pub fn is_running() -> bool {
    RUNNING.load(Ordering::Relaxed)
}

/// Notes a call that was measured elsewhere, as on a GPU.
pub fn note((kernel, work): (String, Work), secs: f64) {
    profile().add(kernel, work, secs);
}

/// Runs a kernel, and measures it if that was asked for. `what` gives its name and work.
pub fn timed<R>(what: impl FnOnce() -> (String, Work), run: impl FnOnce() -> R) -> R {
    if !is_running() {
        return run();
    }
    let (kernel, work) = what();
    {
        let mut profile = profile();
        profile.credit();
        profile.active.push(kernel.clone());
    }
    let result = run();
    let mut profile = profile();
    profile.credit();
    if let Some(place) = profile.active.iter().rposition(|active| *active == kernel) {
        profile.active.swap_remove(place);
    }
    profile.add(kernel, work, 0.0);
    result
}

/// Whether bf16 is multiplied in tiles of AMX, and f32 where it may be [split](crate::conv::Geometry::split).
pub fn has_tiles() -> bool {
    crate::Isa::has_tiles()
}

/// Multiply-adds per second, times two, that all threads together reach from registers: the machine's limit. With `halves`
/// of products of bf16, else of f32.
pub fn peak_flop_per_sec(halves: bool) -> f64 {
    /// Multiply-adds of one thread and lane.
    const ROUNDS: usize = 2_000_000;
    let run = match halves {
        #[cfg(target_arch = "x86_64")]
        true if crate::Isa::has_tiles() => crate::amx::peak_loop,
        true => peak_loop::<bf16>,
        false => peak_loop::<f32>,
    };
    let once = || {
        let since = Instant::now();
        let flop: f64 = rayon::broadcast(|_| run(ROUNDS)).into_iter().sum();
        flop / since.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

/// Bytes per second, read and written together, that all threads together copy from memory to memory.
pub fn peak_bytes_per_sec() -> f64 {
    /// Bytes copied: four times the last-level cache of most machines, or of each core's share where there are many.
    const LEAST: usize = 128 << 20;
    const PER_THREAD: usize = 16 << 20;
    let threads = rayon::current_num_threads();
    let len = LEAST.max(threads * PER_THREAD);
    let (from, mut to) = (vec![1u8; len], vec![0u8; len]);
    let mut once = || {
        let since = Instant::now();
        let share = len.div_ceil(threads);
        to.par_chunks_mut(share).zip(from.par_chunks(share)).for_each(|(to, from)| to.copy_from_slice(from));
        2.0 * len as f64 / since.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

multiversion! {
    /// Runs `rounds` products in each of enough registers to hide their latency; returns the operations done.
    fn peak_loop<S, E: Element>(rounds: usize) -> f64 {
        const REGISTERS: usize = 12;
        // SAFETY: the machine has the instruction set; no memory is touched.
        unsafe {
            let mut sums = [S::splat(0.0); REGISTERS];
            let (a, b) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(0.25)));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = E::dot::<S>(a, b, *sum);
                }
            }
            std::hint::black_box(sums);
        }
        (2 * E::STEP * REGISTERS * S::LANES * rounds) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_with_their_work() {
        let call = |kernel: &str, flop| timed(|| (kernel.into(), Work { flop, bytes: 8.0 }), || 7);
        assert_eq!(call("before the beginning", 1.0), 7);
        start();
        assert_eq!([call("one", 2.0), call("other", 3.0), call("one", 5.0)], [7; 3]);
        let mut times = finish();
        assert_eq!(call("after the end", 1.0), 7);
        times.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        let found: Vec<_> = times.iter().map(|t| (t.kernel.as_str(), t.calls, t.flop, t.bytes)).collect();
        assert_eq!(found, [("one", 2, 7.0, 16.0), ("other", 1, 3.0, 8.0)]);
        assert!(finish().is_empty());
    }

    #[test]
    fn the_machine_has_limits() {
        assert!(peak_bytes_per_sec() > 1e7);
        assert!(peak_flop_per_sec(false) > 1e7 && peak_flop_per_sec(true) > 1e7);
    }
}
