//! What a GPU reaches at best: the rate of matrix products, and of copies.

use crate::kind::Precision;
use ddpm_cuda::{Address, Factors, Gpu, Matrix, Product, Result, Shape, Type, args};

/// Milliseconds after which no larger size is tried.
const LONG: f64 = 200.0;

/// Operations per second of products of square matrices of a precision, and bytes per second that copies read and write
/// together. Sizes grow until they fill the GPU.
pub(crate) fn limits(gpu: &'static Gpu, precision: Precision) -> Result<[f64; 2]> {
    let (mut flop, mut bytes) = (0.0, 0.0);
    for n in (8..=13).map(|bits| 1usize << bits) {
        let kind: Type = precision.into();
        let square = Matrix::new(kind, [n; 2], n, 0);
        let memory = gpu.alloc(3 * n * n * kind.bytes())?;
        let [a, b, d] = [0, 1, 2].map(|i| memory.address().at(i * n * n * kind.bytes()));
        let turn = gpu.turn()?;
        let product = Product { a: square.transpose(), b: square, d: square, batch: 1, bias: false, onto: false };
        let chosen = turn.choose(product)?;
        drop(turn);
        let (workspace, floats, seed) = (gpu.alloc(chosen.workspace())?, gpu.alloc(4 * n * n)?, gpu.upload(&[0u64])?);
        let turn = gpu.turn()?;
        // Normal numbers: products of zeros take less power, and are faster than any in earnest.
        let blocks = |values: usize| Shape { grid: [values.div_ceil(2048), 1], block: 256, shared: 0 };
        turn.launch("initial_noise", blocks(4 * n * n), args![floats.address(), seed.address(), 0i64, (n * n) as i32])?;
        for to in [a, b] {
            turn.launch(
                &format!("from_f32_{}", kind.name()),
                blocks(n * n),
                args![floats.address(), to, (n * n) as i64],
            )?;
        }
        let factors = Factors { a, b, onto: Address::NULL, bias: Address::NULL, d };
        let multiply = || turn.multiply(&chosen, factors, workspace.address());
        multiply()?;
        let ms = turn.milliseconds(|| (0..4).try_for_each(|_| multiply()))?;
        flop = f64::max(flop, 4.0 * 2.0 * (n as f64).powi(3) / (ms / 1e3));
        let half = 3 * n * n * kind.bytes() / 2;
        let copy = turn.milliseconds(|| turn.copy(memory.address(), memory.address().at(half), half))?;
        // What fits in caches says nothing of memory: the largest counts.
        bytes = 2.0 * half as f64 / (copy / 1e3);
        if ms > LONG {
            break;
        }
    }
    Ok([flop, bytes])
}
