//! The optimizer on a GPU, over flat buffers.

use crate::device::Clip;
use crate::state::Parameters;
use ddpm_cuda::{Address, Arg, Buffer, Note, Result, Shape, Turn, args};
use ddpm_kernels::AdamW;
use ddpm_kernels::profile::{self, Work};
use std::ops::Range;

/// Threads of a block.
const THREADS: usize = 256;

/// Values of which a warp sums the squares, as on the processor.
const PIECE: usize = crate::device::GRAIN;

/// Bytes of the sum of all squares and of what is made of it.
const RESULTS: usize = 64;

/// Averages that one pass updates.
pub const AVERAGES: usize = 8;

/// What a pass over the parameters is told, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Update {
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    decay: f32,
    step_size: f32,
    sqrt_correction2: f32,
    eps: f32,
    averages: i32,
    rate: [f32; AVERAGES],
    rest: [f32; AVERAGES],
    average: [u64; AVERAGES],
}

fn over(len: usize) -> Shape {
    Shape { grid: [len.div_ceil(4 * THREADS).clamp(1, 65_535), 1], block: THREADS, shared: 0 }
}

/// Adds the first `len` values of `x` to those of `sum`.
///
/// # Errors
/// A broken GPU.
pub fn accumulate(sum: &Buffer, x: &Buffer, len: usize) -> Result<()> {
    sum.gpu().turn()?.launch("accumulate", over(len), args![sum.address(), x.address(), len as i64])
}

/// Has Σ x² of each piece of the first `len` values computed, as the processor does: so many numbers.
pub(crate) fn squares(x: &Buffer, len: usize) -> Result<(Buffer, usize)> {
    let (gpu, pieces) = (x.gpu(), len.div_ceil(PIECE));
    let (all, turn) = (gpu.alloc(8 * pieces)?, gpu.turn()?);
    // A warp takes a piece.
    let shape = Shape { grid: [pieces, 1], block: 32, shared: 0 };
    if pieces > 0 {
        timed(&turn, "gradient norm, f32", len, || {
            turn.launch("sum_squares", shape, args![x.address(), all.address(), len as i64])
        })?;
    }
    Ok((all, pieces))
}

/// Has numbers added up, as the processor does.
fn enqueue_sum(turn: &Turn, of: Address, count: usize, sum: Address) -> Result<()> {
    turn.launch("sum_partials", Shape { grid: [1, 1], block: THREADS, shared: 0 }, args![of, sum, count as i32])
}

/// Σ x².
pub(crate) fn sum_squares(x: &Buffer, len: usize) -> Result<f64> {
    let ((pieces, count), sum) = (squares(x, len)?, x.gpu().alloc(8)?);
    enqueue_sum(&x.gpu().turn()?, pieces.address(), count, sum.address())?;
    Ok(sum.download::<f64>(1)?[0])
}

/// One step of AdamW for a part of the parameters, then the averages, unless the norm of the whole gradient is not finite: the GPU
/// decides, and sends the norm.
pub(crate) fn update(
    settings: &AdamW,
    clip: Clip,
    (param, part): (&mut Parameters, Range<usize>),
    (grad, (squares, count)): (&Buffer, (&Buffer, usize)),
    [m, v]: [&mut Parameters; 2],
    averages: &mut [(f64, &mut Parameters)],
) -> Result<Note> {
    let (gpu, len) = (grad.gpu(), part.len());
    let c = settings.coefficients();
    let mut update = Update {
        one_minus_beta1: c.one_minus_beta1,
        beta2: c.beta2,
        one_minus_beta2: c.one_minus_beta2,
        decay: c.decay,
        step_size: c.step_size,
        sqrt_correction2: c.sqrt_correction2,
        eps: c.eps,
        averages: averages.len() as i32,
        ..bytemuck::Zeroable::zeroed()
    };
    assert!(averages.len() <= AVERAGES, "more than {AVERAGES} averages");
    for (i, (rate, values)) in averages.iter_mut().enumerate() {
        (update.rate[i], update.rest[i]) = (*rate as f32, (1.0 - *rate) as f32);
        update.average[i] = values.gpu_mut(gpu).number();
    }
    let param = param.gpu_mut(gpu).at(4 * part.start);
    let [m, v] = [m, v].map(|values| values.gpu_mut(gpu));
    let (results, mut note, turn) = (gpu.alloc(RESULTS)?, gpu.note(8)?, gpu.turn()?);
    let sum = results.address();
    let (norm, grad_scale) = (sum.at(8), sum.at(16));
    timed(&turn, "gradient norm, f32", 0, || {
        enqueue_sum(&turn, squares.address(), count, sum)?;
        let one = Shape { grid: [1, 1], block: 1, shared: 0 };
        turn.launch("clip", one, args![sum, clip.scale, clip.max_norm, norm, grad_scale])
    })?;
    // The gradient is read; parameters, moments and averages are read and written.
    timed(&turn, "AdamW and averages, f32", len * (7 + 2 * averages.len()), || {
        let grad = grad.address();
        turn.launch("adamw", over(len), args![param, grad, m, v, Arg::value(&update), grad_scale, len as i64])
    })?;
    note.receive(&turn, norm)?;
    Ok(note)
}

/// Does work that reads or writes so many values, and takes its time where kernels are measured.
fn timed(turn: &Turn, what: &str, values: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
    if !profile::is_running() {
        return work();
    }
    let ms = turn.milliseconds(work)?;
    profile::note((what.into(), Work { flop: 0.0, bytes: 4.0 * values as f64 }), ms / 1e3);
    Ok(())
}
