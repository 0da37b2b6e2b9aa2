//! The optimizer on a GPU, over flat buffers.

use crate::device::Clip;
use crate::state::Parameters;
use ddpm_cuda::{Address, Arg, Buffer, Gpu, Note, Result, Shape, Turn, args};
use ddpm_kernels::AdamW;
use ddpm_kernels::profile::{self, Work};

/// Threads of a block.
const THREADS: usize = 256;

/// Values of which a warp sums the squares, as on the processor.
const PIECE: usize = 1 << 16;

/// Bytes before the partial sums: what is made of them.
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

/// Has Σ x² computed as the processor adds it up. Of the memory `sums` the result is the first number.
fn enqueue_squares(turn: &Turn, x: Address, sums: &Buffer, len: usize) -> Result<()> {
    let (pieces, all) = (len.div_ceil(PIECE), sums.address().at(RESULTS));
    // A warp takes a piece.
    let shape = Shape { grid: [pieces, 1], block: 32, shared: 0 };
    turn.launch("sum_squares", shape, args![x, all, len as i64])?;
    let one = Shape { grid: [1, 1], block: THREADS, shared: 0 };
    turn.launch("sum_partials", one, args![all, sums.address(), pieces as i32])
}

/// Memory for the sums, and for what is made of them.
fn sums(gpu: &'static Gpu, len: usize) -> Result<Buffer> {
    gpu.alloc(RESULTS + 8 * len.div_ceil(PIECE))
}

/// Σ x².
pub(crate) fn sum_squares(x: &Buffer, len: usize) -> Result<f64> {
    let sums = sums(x.gpu(), len)?;
    enqueue_squares(&x.gpu().turn()?, x.address(), &sums, len)?;
    Ok(sums.download::<f64>(1)?[0])
}

/// One step of AdamW, then the averages, unless the gradient's norm is not finite: the GPU decides, and sends the norm.
pub(crate) fn update(
    settings: &AdamW,
    clip: Clip,
    param: &mut Parameters,
    grad: &Buffer,
    [m, v]: [&mut Parameters; 2],
    averages: &mut [(f64, &mut Parameters)],
) -> Result<Note> {
    let (gpu, len) = (grad.gpu(), param.layout().len());
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
    let [param, m, v] = [param, m, v].map(|values| values.gpu_mut(gpu));
    let (sums, mut note) = (sums(gpu, len)?, gpu.note(8)?);
    let (squares, grad, turn) = (sums.address(), grad.address(), gpu.turn()?);
    let (norm, grad_scale) = (squares.at(8), squares.at(16));
    timed(&turn, "gradient norm, f32", len, || {
        enqueue_squares(&turn, grad, &sums, len)?;
        let one = Shape { grid: [1, 1], block: 1, shared: 0 };
        turn.launch("clip", one, args![squares, clip.scale, clip.max_norm, norm, grad_scale])
    })?;
    // The gradient is read; parameters, moments and averages are read and written.
    timed(&turn, "AdamW and averages, f32", len * (7 + 2 * averages.len()), || {
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
