//! Shuffled batches, decoded ahead of the training.

use super::{DataError, Dataset, OnBadImage};
use crate::Error;
use crate::ranks::Share;
use ddpm_math::{Domain, philox::permutation};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Images for one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[N, C, H, W]` in [-1, 1].
    pub images: Vec<f32>,
    /// Class of each image `[N]`.
    pub labels: Option<Vec<u32>>,
    /// Images of the run before the first of these.
    pub position: u64,
}

/// Bad images and why they were passed over.
type Skipped = Arc<Mutex<BTreeMap<usize, String>>>;

/// Delivers batches in order. Dropping it stops its threads.
pub struct Loader {
    batches: Option<Receiver<Result<Batch, DataError>>>,
    thread: Option<JoinHandle<()>>,
    dataset: Arc<Dataset>,
    skipped: Skipped,
}

/// What the decoding thread works from.
struct Producer {
    dataset: Arc<Dataset>,
    share: Share,
    seed: u64,
    skipped: Skipped,
    /// The epoch whose order is at hand.
    order: (u64, Vec<u32>),
}

impl Loader {
    /// Starts delivering from `position` (images the run has seen), with `workers` decoding threads that stay up to
    /// `prefetch` batches ahead. Position p is image p mod N of epoch p div N's own order, so batches run across the
    /// ends of epochs and what they hold depends on seed and position alone. A [`Share`] of batches delivers some images of
    /// each.
    ///
    /// # Errors
    /// Fewer images than one batch; threads that the system refuses.
    pub fn start(
        dataset: Arc<Dataset>,
        share: impl Into<Share>,
        seed: u64,
        position: u64,
        workers: usize,
        prefetch: usize,
    ) -> Result<Self, Error> {
        let share = share.into();
        dataset.check_batch(share.batch)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(workers.max(1))
            .build()
            .map_err(|e| Error::io("start decoding for", std::path::Path::new("the data"))(std::io::Error::other(e)))?;
        let skipped = Skipped::default();
        let order = (u64::MAX, Vec::new());
        let mut producer = Producer { dataset: dataset.clone(), share, seed, skipped: skipped.clone(), order };
        let (sender, batches) = sync_channel(prefetch);
        let thread = std::thread::spawn(move || {
            let mut position = position;
            loop {
                let batch = pool.install(|| producer.batch(position));
                let failed = batch.is_err();
                // Nobody listens once the loader is gone.
                if sender.send(batch).is_err() || failed {
                    return;
                }
                position += producer.share.batch as u64;
            }
        });
        Ok(Self { batches: Some(batches), thread: Some(thread), dataset, skipped })
    }

    /// The next batch; waits for it.
    ///
    /// # Errors
    /// A bad image, where those are not skipped, or no good ones at all.
    #[expect(clippy::should_implement_trait, reason = "endless and fallible: not an iterator")]
    pub fn next(&mut self) -> Result<Batch, Error> {
        let batch = self.batches.as_ref().and_then(|b| b.recv().ok());
        batch.unwrap_or_else(|| panic!("the decoding thread ended without a word")).map_err(Error::from)
    }

    /// Bad images passed over so far, each with the reason.
    pub fn skipped(&self) -> Vec<(String, String)> {
        let skipped = self.skipped.lock().map(|s| s.clone()).unwrap_or_default();
        skipped.into_iter().map(|(i, reason)| (self.dataset.image_name(i), reason)).collect()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Producer {
    fn batch(&mut self, position: u64) -> Result<Batch, DataError> {
        let n = self.dataset.len() as u64;
        let images = &self.share.images;
        let position = position + images.start as u64;
        let mut places = Vec::with_capacity(images.len());
        for p in position..position + images.len() as u64 {
            let epoch = p / n;
            if self.order.0 != epoch {
                self.order = (epoch, permutation(self.seed, Domain::Order, epoch, n as usize));
            }
            places.push((p, self.order.1[(p % n) as usize] as usize));
        }
        let examples: Vec<(usize, Vec<f32>)> =
            places.into_par_iter().map(|(p, i)| self.example(i, p)).collect::<Result<_, _>>()?;
        let labels = self.dataset.labels().map(|l| examples.iter().map(|(i, _)| l[*i]).collect());
        let images = examples.into_iter().flat_map(|(_, image)| image).collect();
        Ok(Batch { images, labels, position })
    }

    /// The image at `i`, or where bad images are skipped the next good one after it.
    fn example(&self, i: usize, position: u64) -> Result<(usize, Vec<f32>), DataError> {
        let n = self.dataset.len();
        let mut first = None;
        for j in (i..n).chain(0..i) {
            let known = self.skipped.lock().is_ok_and(|s| s.contains_key(&j));
            if known {
                continue;
            }
            match self.dataset.example(j, self.seed, position) {
                Ok(image) => return Ok((j, image)),
                Err(error) if self.dataset.options().on_bad_image == OnBadImage::Fail => return Err(error),
                Err(error) => {
                    let reason = match error {
                        DataError::BadImage { reason, .. } => reason,
                        other => other.to_string(),
                    };
                    first.get_or_insert_with(|| reason.clone());
                    if let Ok(mut skipped) = self.skipped.lock() {
                        skipped.insert(j, reason);
                    }
                }
            }
        }
        let known = || self.skipped.lock().ok().and_then(|s| s.values().next().cloned()).unwrap_or_default();
        Err(DataError::AllBad { count: n, first: first.unwrap_or_else(known) })
    }
}
