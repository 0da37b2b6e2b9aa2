//! How long each kernel takes, measured inside real work.

use crate::flex::{element::Element, simd::multiversion};
use burn::tensor::{DType, bf16};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the calls of one kernel came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTime {
    /// Which kernel, by which method, on which type.
    pub kernel: String,
    /// Calls.
    pub calls: u64,
    /// Seconds, all calls together.
    pub secs: f64,
    /// Floating-point operations that the plain algorithm takes, all calls together; 0 where memory decides.
    pub flop: f64,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<BTreeMap<String, KernelTime>> = Mutex::new(BTreeMap::new());

/// Begins to measure every kernel that this process runs.
pub fn start() {
    TIMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    RUNNING.store(true, Ordering::Relaxed);
}

/// Ends it: the kernels, the slowest first.
pub fn finish() -> Vec<KernelTime> {
    RUNNING.store(false, Ordering::Relaxed);
    let times = std::mem::take(&mut *TIMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let mut times: Vec<KernelTime> = times.into_values().collect();
    times.sort_by(|a, b| b.secs.total_cmp(&a.secs));
    times
}

/// Runs a kernel, and measures it if that was asked for. `what` gives its name and operations.
pub(crate) fn timed<R>(what: impl FnOnce() -> (String, f64), run: impl FnOnce() -> R) -> R {
    if !RUNNING.load(Ordering::Relaxed) {
        return run();
    }
    let since = Instant::now();
    let result = run();
    let secs = since.elapsed().as_secs_f64();
    let (kernel, flop) = what();
    let mut times = TIMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let time = times.entry(kernel.clone()).or_insert_with(|| KernelTime { kernel, ..KernelTime::default() });
    time.calls += 1;
    time.secs += secs;
    time.flop += flop;
    result
}

/// Multiply-adds per second, times two, that all threads together reach from registers: the machine's limit.
pub fn peak_flop_per_sec(precision: DType) -> f64 {
    /// Multiply-adds of one thread and lane.
    const ROUNDS: usize = 2_000_000;
    let run = match precision {
        DType::BF16 => peak_loop::<bf16>,
        _ => peak_loop::<f32>,
    };
    let once = || {
        let since = Instant::now();
        let flop: f64 = rayon::broadcast(|_| run(ROUNDS)).into_iter().sum();
        flop / since.elapsed().as_secs_f64()
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
