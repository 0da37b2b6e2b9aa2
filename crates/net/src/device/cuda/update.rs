//! The optimizer on a GPU, over flat buffers.

use crate::state::Parameters;
use ddpm_cuda::{Address, Arg, Buffer, Result, Shape, Turn};
use ddpm_kernels::AdamW;

/// Threads of a block.
const THREADS: usize = 256;

/// Values of which a warp sums the squares, as on the processor.
const PIECE: usize = 1 << 16;

/// Averages that one pass updates.
const AVERAGES: usize = 8;

/// What a pass over the parameters is told, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Update {
    grad_scale: f32,
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
    /// Keeps the addresses aligned.
    padding: i32,
    average: [u64; AVERAGES],
}

fn over(len: usize) -> Shape {
    Shape { grid: [len.div_ceil(4 * THREADS).clamp(1, 65_535), 1], block: THREADS, shared: 0 }
}

fn turn(buffer: &Buffer) -> Result<Turn> {
    buffer.gpu().turn()
}

/// Adds `x` to `sum`.
pub(crate) fn accumulate(sum: &Buffer, x: &Buffer, len: usize) -> Result<()> {
    turn(sum)?.launch("accumulate", over(len), &[sum.address().into(), x.address().into(), (len as i64).into()])
}

/// Σ x², as the processor adds it up.
pub(crate) fn sum_squares(x: &Buffer, len: usize) -> Result<f64> {
    let pieces = len.div_ceil(PIECE);
    let sums = x.gpu().alloc(8 * (pieces + 1))?;
    {
        let (turn, all) = (turn(x)?, sums.address().at(8));
        // A warp takes a piece.
        let shape = Shape { grid: [pieces, 1], block: 32, shared: 0 };
        turn.launch("sum_squares", shape, &[x.address().into(), all.into(), (len as i64).into()])?;
        let one = Shape { grid: [1, 1], block: THREADS, shared: 0 };
        turn.launch("sum_partials", one, &[all.into(), sums.address().into(), (pieces as i32).into()])?;
    }
    Ok(sums.download::<f64>(1)?[0])
}

/// One step of AdamW, then the averages.
pub(crate) fn adamw(
    settings: &AdamW,
    param: &mut Parameters,
    grad: &Buffer,
    [m, v]: [&mut Parameters; 2],
    averages: &mut [(f64, &mut Parameters)],
) -> Result<()> {
    let (gpu, len) = (grad.gpu(), param.layout().len());
    let c = settings.coefficients();
    let mut update = Update {
        grad_scale: c.grad_scale,
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
    let told = gpu.upload(&[update])?;
    let [param, m, v] = [param, m, v].map(|values| values.gpu_mut(gpu));
    let args: [Address; 5] = [param, grad.address(), m, v, told.address()];
    let args: Vec<Arg> = args.into_iter().map(Arg::from).chain([(len as i64).into()]).collect();
    gpu.turn()?.launch("adamw", over(len), &args)
}
