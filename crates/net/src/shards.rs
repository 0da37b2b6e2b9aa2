//! How a batch is cut into pieces that are computed side by side, and how what they give is added up.

use crate::arena::Lease;
use crate::device::{Device, Squares, cuda, done};
use ddpm_cuda::Buffer;
use ddpm_kernels::optim;
use ddpm_kernels::profile::{Work, timed};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most images of a piece.
const SHARD_IMAGES: usize = 32;

/// Parameters from which a network is large.
const LARGE: usize = 4_000_000;

/// The pieces of a network's batches. The kernels of a large network share out their own work better, and each piece
/// prepares the weights again; in a small one the sharing costs more than the work.
#[derive(Clone, Copy, Debug)]
pub struct Shards {
    /// Whether a batch is one piece.
    whole: bool,
}

impl Shards {
    /// Those of a network with so many parameters on a device. A GPU takes a batch whole.
    pub fn new(parameters: usize, device: Device) -> Self {
        Self { whole: parameters >= LARGE || device.is_whole() }
    }

    /// Pieces of a batch.
    pub fn count(self, images: usize) -> usize {
        if self.whole { 1 } else { images.div_ceil(SHARD_IMAGES).max(1) }
    }

    /// The images of a piece. The pieces depend on nothing but the network and the batch.
    pub fn images(self, images: usize, piece: usize) -> Range<usize> {
        let count = self.count(images);
        piece * images / count..(piece + 1) * images / count
    }

    /// What `work` makes of the pieces of a batch, in order.
    pub fn map<R: Send>(self, images: usize, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
        each(self.count(images), |piece| work(self.images(images, piece)))
    }
}

/// What `work` makes of `0..count`, in order. Only as many of the loops that take pieces exist as there are threads, so that
/// no more pieces are begun at a time: one that waits inside of a piece may begin another such loop, but no further one.
pub(crate) fn each<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    if count == 1 {
        return vec![work(0)];
    }
    let next = AtomicUsize::new(0);
    let made: Mutex<Vec<Option<R>>> = Mutex::new((0..count).map(|_| None).collect());
    let worker = || loop {
        let piece = next.fetch_add(1, Ordering::Relaxed);
        if piece >= count {
            return;
        }
        let result = work(piece);
        made.lock().unwrap_or_else(PoisonError::into_inner)[piece] = Some(result);
    };
    rayon::scope(|scope| (0..count.min(rayon::current_num_threads())).for_each(|_| scope.spawn(|_| worker())));
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.into_iter().map(|result| result.expect("a result for each piece")).collect()
}

/// The gradient of all parameters, in memory that is lent.
#[derive(Debug)]
pub struct Gradient {
    pub(crate) memory: GradientMemory,
    len: usize,
}

/// Where a gradient lies.
#[derive(Debug)]
pub(crate) enum GradientMemory {
    Host(Lease),
    Gpu(Buffer),
}

impl Gradient {
    /// The first values of some memory.
    pub(crate) fn new(memory: GradientMemory, len: usize) -> Self {
        Self { memory, len }
    }

    /// Its values, in the order of the parameters; a copy of them where they are in a GPU's memory.
    pub fn values(&mut self) -> Cow<'_, [f32]> {
        match &mut self.memory {
            GradientMemory::Host(memory) => Cow::Borrowed(memory.values(self.len)),
            GradientMemory::Gpu(memory) => Cow::Owned(done(memory.download(self.len))),
        }
    }

    /// Takes other values, at most as many, which may lie in parts.
    ///
    /// # Panics
    /// If they are more.
    pub fn set(&mut self, parts: &[Vec<f32>]) {
        let len = parts.iter().map(Vec::len).sum::<usize>();
        assert!(len <= self.len, "values of the same parameters");
        self.len = len;
        match &mut self.memory {
            GradientMemory::Host(_) => self.set_from(0, parts),
            GradientMemory::Gpu(memory) => *memory = done(memory.gpu().upload(&parts.concat())),
        }
    }

    /// Takes other values from a place on, which may lie in parts, in main memory.
    ///
    /// # Panics
    /// If they are beyond its end, or on a GPU.
    pub fn set_from(&mut self, begin: usize, parts: &[Vec<f32>]) {
        let GradientMemory::Host(memory) = &mut self.memory else { panic!("a gradient in a GPU's memory") };
        let mut rest = &mut memory.values(self.len)[begin..];
        for part in parts {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
    }

    /// How many values it has.
    #[expect(clippy::len_without_is_empty, reason = "no network has no parameters")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The sums of its squares.
    pub fn squares(&mut self) -> Squares {
        match &mut self.memory {
            GradientMemory::Host(memory) => {
                let (values, work) = (memory.values(self.len), Work { flop: 0.0, bytes: 4.0 * self.len as f64 });
                Squares::Host(timed(|| ("gradient norm, f32".into(), work), || optim::squares(values)))
            }
            GradientMemory::Gpu(memory) => {
                let (squares, count) = done(cuda::squares(memory, self.len));
                Squares::Gpu(squares, count)
            }
        }
    }

    /// One in a GPU's memory.
    ///
    /// # Panics
    /// If it holds too few values.
    pub fn of_gpu(memory: Buffer, len: usize) -> Self {
        assert!(4 * len <= memory.bytes(), "values beyond a buffer");
        Self::new(GradientMemory::Gpu(memory), len)
    }

    /// Its memory, if that is a GPU's.
    pub fn into_gpu(self) -> Option<Buffer> {
        match self.memory {
            GradientMemory::Gpu(memory) => Some(memory),
            GradientMemory::Host(_) => None,
        }
    }

    /// This one plus another.
    fn plus(mut self, mut other: Self) -> Self {
        /// Values that a thread adds at a time.
        const CHUNK: usize = 1 << 16;
        match (&mut self.memory, &mut other.memory) {
            (GradientMemory::Host(memory), GradientMemory::Host(other)) => {
                let others = other.values::<f32>(self.len).par_chunks(CHUNK);
                memory.values::<f32>(self.len).par_chunks_mut(CHUNK).zip(others).for_each(|(sum, other)| {
                    sum.iter_mut().zip(other).for_each(|(sum, v)| *sum += v);
                });
            }
            (GradientMemory::Gpu(memory), GradientMemory::Gpu(other)) => {
                done(cuda::accumulate(memory, other, self.len));
            }
            _ => unreachable!("gradients of one network on two devices"),
        }
        drop(other);
        self
    }
}

/// The sum of the gradients of pieces as a balanced binary tree, whichever is ready first: pieces 0 and 1, 2 and 3, then
/// those sums, and so on; one without a partner waits for the next level. Whoever holds an aligned block of pieces has one
/// partial sum of it.
pub(crate) struct Tree {
    count: usize,
    waiting: Mutex<HashMap<(u32, usize), Gradient>>,
}

impl Tree {
    pub(crate) fn new(count: usize) -> Self {
        Self { count, waiting: Mutex::new(HashMap::new()) }
    }

    /// Takes the gradient of a piece; gives the sum if it was the last.
    pub(crate) fn add(&self, piece: usize, mut gradient: Gradient) -> Option<Gradient> {
        let (mut level, mut at) = (0u32, piece);
        loop {
            let nodes = self.count.div_ceil(1 << level);
            if nodes == 1 {
                return Some(gradient);
            }
            let partner = at ^ 1;
            if partner < nodes {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(other) = waiting.remove(&(level, partner)) else {
                    waiting.insert((level, at), gradient);
                    return None;
                };
                drop(waiting);
                gradient = gradient.plus(other);
            }
            (level, at) = (level + 1, at / 2);
        }
    }
}

/// What a balanced binary tree over pieces `0..count` adds first: the largest power of two of them, and the rest.
fn halves(pieces: &Range<usize>) -> [Range<usize>; 2] {
    let middle = pieces.start + pieces.len().next_power_of_two() / 2;
    [pieces.start..middle, middle..pieces.end]
}

/// The fewest sums of the tree over pieces `0..count` that together hold some of its pieces: for whoever computes only those.
/// They are one if the pieces are aligned to a power of two.
pub fn partial_sums(count: usize, pieces: &Range<usize>) -> Vec<Range<usize>> {
    fn collect(sum: Range<usize>, pieces: &Range<usize>, found: &mut Vec<Range<usize>>) {
        if pieces.start <= sum.start && sum.end <= pieces.end {
            found.push(sum);
        } else if sum.start < pieces.end && pieces.start < sum.end {
            for half in halves(&sum) {
                collect(half, pieces, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(0..count, pieces, &mut found);
    found
}

/// A partial sum of a tree, over pieces `of`, from partial sums of all of them, wherever they lie: the same bits as if one had
/// added up all pieces.
///
/// # Panics
/// Of partial sums that no tree has.
pub fn add_partial_sums<T>(of: &Range<usize>, mut sums: Vec<(Range<usize>, T)>, mut add: impl FnMut(&mut T, T)) -> T {
    fn sum<T>(
        of: &Range<usize>,
        sums: &mut std::iter::Peekable<std::vec::IntoIter<(Range<usize>, T)>>,
        add: &mut impl FnMut(&mut T, T),
    ) -> T {
        if let Some((_, part)) = sums.next_if(|(pieces, _)| pieces == of) {
            return part;
        }
        assert!(of.len() > 1, "sums of a tree");
        let [mut left, right] = halves(of).map(|half| sum(&half, sums, add));
        add(&mut left, right);
        left
    }
    sums.sort_by_key(|(pieces, _)| pieces.start);
    sum(of, &mut sums.into_iter().peekable(), &mut add)
}

/// The same tree over gradients that come one after another, such as those of microbatches: it holds one partial sum for
/// each level.
#[derive(Debug, Default)]
pub struct Accumulator(Vec<(u32, Gradient)>);

impl Accumulator {
    /// Takes the next one.
    pub fn add(&mut self, gradient: Gradient) {
        let (mut level, mut sum) = (0, gradient);
        while let Some((_, other)) = self.0.pop_if(|(of, _)| *of == level) {
            sum = other.plus(sum);
            level += 1;
        }
        self.0.push((level, sum));
    }

    /// Adds what waits for the last gradient to a part of it.
    pub fn complete(&mut self, part: &Range<usize>, values: &mut [f32]) {
        for (_, waiting) in self.0.iter_mut().rev() {
            values.iter_mut().zip(&waiting.values()[part.clone()]).for_each(|(v, waiting)| *v += waiting);
        }
    }

    /// The sum of all; none of none.
    pub fn sum(self) -> Option<Gradient> {
        self.0.into_iter().rev().map(|(_, gradient)| gradient).reduce(|sum, other| other.plus(sum))
    }

    /// The most partial sums that are held at once for so many gradients, the newest included.
    pub fn most_held(count: usize) -> usize {
        // Before the last of them is added: one for each bit of the others' number.
        (0..count).map(|before| before.count_ones() as usize + 1).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gradient(values: &[f32]) -> Gradient {
        let mut memory = Lease::new(4 * values.len());
        memory.values(values.len()).copy_from_slice(values);
        Gradient::new(GradientMemory::Host(memory), values.len())
    }

    /// The tree as it is defined: the largest power of two of the pieces, and the rest.
    fn plain(pieces: &[f32]) -> f32 {
        match pieces {
            [one] => *one,
            many => {
                let left = many.len().next_power_of_two() / 2;
                plain(&many[..left]) + plain(&many[left..])
            }
        }
    }

    proptest! {
        #[test]
        fn sums_do_not_depend_on_the_order_in_which_pieces_end(
            pieces in prop::collection::vec(-1e3f32..1e3, 1..40), seed: u64,
        ) {
            let mut order: Vec<usize> = (0..pieces.len()).collect();
            order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
            let tree = Tree::new(pieces.len());
            let mut sums: Vec<Gradient> = order.iter().filter_map(|&i| tree.add(i, gradient(&[pieces[i]]))).collect();
            prop_assert_eq!(sums.len(), 1);
            prop_assert_eq!(&*sums[0].values(), &[plain(&pieces)]);
            let (mut accumulator, mut most) = (Accumulator::default(), 0);
            for &piece in &pieces {
                most = most.max(accumulator.0.len() + 1);
                accumulator.add(gradient(&[piece]));
            }
            let mut sum = accumulator.sum().expect("a sum");
            prop_assert_eq!(&*sum.values(), &[plain(&pieces)]);
            prop_assert_eq!(most, Accumulator::most_held(pieces.len()));
        }
    }

    proptest! {
        #[test]
        fn partial_sums_of_any_shares_add_up_to_the_same_bits(
            pieces in prop::collection::vec(-1e3f32..1e3, 1..40), cuts in prop::collection::vec(0usize..40, 0..6),
        ) {
            let count = pieces.len();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (count + 1)).chain([0, count]).collect();
            cuts.sort_unstable();
            let mut sums = Vec::new();
            for share in cuts.windows(2) {
                for part in partial_sums(count, &(share[0]..share[1])) {
                    let mut sum = Accumulator::default();
                    part.clone().for_each(|piece| sum.add(gradient(&[pieces[piece]])));
                    sums.push((part, sum.sum().expect("a sum").values().to_vec()));
                }
            }
            let add = |sum: &mut Vec<f32>, other: Vec<f32>| sum[0] += other[0];
            prop_assert_eq!(add_partial_sums(&(0..count), sums, add), &[plain(&pieces)]);
        }
    }

    #[test]
    fn an_aligned_share_is_one_partial_sum() {
        let sums = |count, pieces| -> Vec<[usize; 2]> {
            partial_sums(count, &pieces).into_iter().map(|sum| [sum.start, sum.end]).collect()
        };
        assert_eq!(sums(8, 4..8), [[4, 8]]);
        assert_eq!(sums(6, 4..6), [[4, 6]]);
        assert_eq!(sums(6, 2..4), [[2, 4]]);
        assert_eq!(sums(6, 3..6), [[3, 4], [4, 6]]);
        assert!(sums(6, 3..3).is_empty());
    }

    #[test]
    fn pieces_cover_a_batch() {
        for (parameters, images) in [(100, 1), (100, 32), (100, 33), (100, 200), (LARGE, 200)] {
            let shards = Shards::new(parameters, Device::Cpu);
            let parts = shards.map(images, |part| part);
            assert!(parts.iter().all(|part| part.len() <= SHARD_IMAGES || parameters == LARGE));
            assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>(), (0..images).collect::<Vec<_>>());
        }
    }
}
