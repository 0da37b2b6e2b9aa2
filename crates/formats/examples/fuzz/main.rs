//! Looks for files that break the readers: `cargo run -p ddpm-formats --example fuzz -- FORMAT COUNT [SEED]`.
//!
//! Each execution reads one mutated file as a user of the crate would. It fails where a reader panics, takes more memory than
//! 16 times the file plus 64 MiB, or takes longer than ten seconds. The file is kept then, and the program ends with 1.
//! The same seed gives the same files.

#![expect(unsafe_code, reason = "an allocator that counts")]
#![expect(clippy::unwrap_used, reason = "what cannot go on has to fail")]

mod mutate;
mod read;
mod seeds;

use mutate::Random;
use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What memory a file may take: so many times its size, and so much beside.
const TIMES: usize = 16;
const BESIDE: usize = 64 << 20;

/// The longest that reading one may take.
const LONGEST: Duration = Duration::from_secs(10);

/// Counts what is held, and the most since the last reset.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all work is the system allocator's; only numbers are added to it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Executions begun, for the watch over those that do not end.
static BEGUN: AtomicU64 = AtomicU64::new(0);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let target = words.first().and_then(|name| read::TARGETS.iter().find(|target| target.name == *name));
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (Some(target), Some(count)) = (target, number(1)) else {
        let names: Vec<&str> = read::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: fuzz FORMAT COUNT [SEED], FORMAT one of {}", names.join(", "));
        std::process::exit(2);
    };
    let seed = number(2).unwrap_or(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(target.file);
    let kept = PathBuf::from(format!("fuzz-{}-{seed}", target.name));
    watch(path.clone(), kept.clone());
    std::panic::set_hook(Box::new(|_| {}));
    let seeds = (target.seeds)();
    let begin = Instant::now();
    let (mut most, mut most_times, mut longest, mut read) = (0, 0.0f64, Duration::ZERO, 0);
    for execution in 0..count {
        let mut random = Random::new(seed, execution);
        let bytes = if execution < seeds.len() as u64 {
            seeds[execution as usize].clone()
        } else {
            (target.mutate)(&mut random, &seeds)
        };
        std::fs::write(&path, &bytes).unwrap();
        BEGUN.store(execution + 1, Relaxed);
        let (held, started) = (HELD.load(Relaxed), Instant::now());
        MOST.store(held, Relaxed);
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.read)(&path)));
        let (taken, lasted) = (MOST.load(Relaxed).saturating_sub(held), started.elapsed());
        let problem = match outcome {
            Err(panic) => Some(format!("panicked: {}", said(&*panic))),
            Ok(_) if taken > TIMES * bytes.len() + BESIDE => Some(format!("took {taken} bytes for {}", bytes.len())),
            Ok(_) if lasted > LONGEST => Some(format!("took {lasted:?}")),
            Ok(whole) => {
                read += u64::from(whole);
                None
            }
        };
        if let Some(problem) = problem {
            std::fs::write(&kept, &bytes).unwrap();
            eprintln!(
                "{}: execution {execution} of seed {seed} {problem}; the file is {}",
                target.name,
                kept.display()
            );
            std::process::exit(1);
        }
        most = most.max(taken);
        most_times = most_times.max(taken.saturating_sub(1 << 20) as f64 / bytes.len().max(1) as f64);
        longest = longest.max(lasted);
    }
    println!(
        "{}: {count} executions of seed {seed} in {:.0} s, {read} of them read to the end; at most {:.0} KiB and {longest:?} for \
         one, beyond 1 MiB at most {most_times:.1} times the file",
        target.name,
        begin.elapsed().as_secs_f64(),
        most as f64 / 1024.0,
    );
}

/// Ends the program where one execution does not end.
fn watch(path: PathBuf, kept: PathBuf) {
    std::thread::spawn(move || {
        let mut last = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let begun = BEGUN.load(Relaxed);
            if begun != last.0 {
                last = (begun, Instant::now());
            } else if begun > 0 && last.1.elapsed() > 2 * LONGEST {
                let _ = std::fs::copy(&path, &kept);
                eprintln!("execution {} does not end; the file is {}", begun - 1, kept.display());
                std::process::exit(1);
            }
        }
    });
}

/// What a panic says.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}
