//! How a batch is cut into pieces that are computed side by side.

use rayon::prelude::*;
use std::ops::Range;

/// The most images of a piece.
const SHARD_IMAGES: usize = 32;

/// Parameters from which a network is large.
const LARGE: usize = 4_000_000;

/// The pieces of a network's batches. The kernels of a large network share out their own work better, and each piece
/// prepares the weights again; in a small one the sharing costs more than the work.
#[derive(Clone, Copy)]
pub(crate) struct Shards {
    /// Parameters of the network.
    pub(crate) parameters: usize,
}

impl Shards {
    /// Whether a batch is cut at all.
    pub(crate) fn is_split(self, images: usize) -> bool {
        self.parameters < LARGE && images > SHARD_IMAGES
    }

    /// What `work` makes of the pieces of a batch, in order. The pieces depend on nothing but the network and the batch.
    pub(crate) fn map<R: Send>(self, images: usize, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
        if !self.is_split(images) {
            return vec![work(0..images)];
        }
        let count = images.div_ceil(SHARD_IMAGES);
        (0..count).into_par_iter().map(|i| work(i * images / count..(i + 1) * images / count)).collect()
    }
}
