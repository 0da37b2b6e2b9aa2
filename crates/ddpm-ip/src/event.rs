//! What long work tells its front end. The library itself never prints.

use crate::check::Finding;
use std::path::PathBuf;
use std::time::Duration;

/// Something a front end may want to show or write down.
#[derive(Clone, Debug)]
pub enum Event {
    /// A remark for the user.
    Notice(String),
    /// Work that may take long begins: which, on what and how.
    Begins(String),
    /// A remark that matters even to a user who wants to hear little.
    Warning(String),
    /// What follows is the training of a run in this directory, until the next one: its logs go there.
    Enters(PathBuf),
    /// Training begins.
    Started {
        /// Parameters of the network.
        parameters: usize,
        /// Training images.
        images: usize,
        /// Steps already behind (more than 0 when resumed).
        step: u64,
        /// The step at which training ends, if steps decide.
        last_step: Option<u64>,
        /// The time at which training ends, if time decides (counted over all calls that continued the run).
        time_limit: Option<Duration>,
        /// Images per step.
        batch_size: usize,
    },
    /// One optimizer step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Training time of the run so far, over all calls that continued it.
        elapsed: Duration,
        /// The step's loss.
        loss: f64,
    },
    /// A line for the logs, in order: the reference's keys, and `lr`, `images_per_sec` and `mse_plus_c`.
    Log(Vec<(String, f64)>),
    /// A repetition of a measurement is done.
    Measured {
        /// What is measured.
        what: &'static str,
        /// Repetitions done, the warm-up not counted.
        done: usize,
        /// Repetitions in all.
        total: usize,
    },
    /// A step of drawing images in training is done.
    Drawing {
        /// What they are.
        what: &'static str,
        /// Steps done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// A sample grid was written.
    Grid {
        /// Steps done.
        step: u64,
        /// The PNG file.
        path: PathBuf,
    },
    /// A checkpoint is about to be written: logs of what led there belong to the disk first.
    Saving,
    /// A checkpoint was written.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its directory.
        path: PathBuf,
    },
    /// An evaluation gave the lowest distance so far, and its checkpoint was kept.
    Best {
        /// Steps done.
        step: u64,
        /// The Fréchet distance.
        fid: f64,
    },
    /// The likelihood of some more images was bounded; the first of a call has none.
    Bounded {
        /// Images done.
        done: usize,
        /// Images in all.
        total: usize,
        /// Mean over those done, in bits per dimension; nothing to tell before the first.
        bits_per_dim: Option<f64>,
    },
    /// Features of some more images are there.
    Measuring {
        /// Whose.
        what: String,
        /// Images done.
        done: usize,
        /// Images in all.
        total: usize,
    },
    /// Some more of the instruments have been read.
    Reading {
        /// Of which checkpoint.
        what: String,
        /// Parts done.
        done: usize,
        /// Parts in all.
        total: usize,
    },
    /// A device was compared with the processor in something.
    Checked(Finding),
    /// Some of a file has arrived.
    Fetching {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all, where the server says it.
        total: Option<u64>,
    },
    /// Sampling begins, or goes on from an earlier, interrupted call.
    Sampling {
        /// Images already there.
        done: usize,
        /// Images in all.
        total: usize,
        /// Reverse steps per image.
        steps: usize,
    },
    /// What was asked for was made by an earlier call.
    Found(PathBuf),
    /// One reverse step of the current batch is done.
    SampleStep {
        /// Images of finished batches.
        done: usize,
        /// Reverse steps done of the current batch.
        step: usize,
        /// Images in the current batch.
        batch: usize,
    },
    /// Images so far, after a batch.
    Sampled {
        /// Images there now.
        done: usize,
    },
    /// Images of a data set that are prepared so far, those of an earlier, interrupted call among them. The first of a
    /// call has none.
    Prepared {
        /// Images there now.
        done: usize,
        /// Images in all, where that is known.
        total: Option<usize>,
    },
}

/// Receives events, in order.
pub type Emit<'a> = dyn FnMut(Event) + 'a;

/// How a long piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for is done.
    Finished,
    /// It was asked to stop, and saved what it had; the same call goes on from there.
    Interrupted,
}
