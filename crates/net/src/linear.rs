//! A linear map of rows, outside of any network.

use ddpm_kernels::Conv2d;
use ddpm_kernels::conv::{Epilogue, Geometry, forward};

/// `x` `[N, C]` times `weight` `[O, C]` transposed, plus `bias` `[O]` if there is one: `[N, O]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn linear(x: &[f32], weight: &[f32], bias: Option<&[f32]>, [inputs, outputs]: [usize; 2]) -> Vec<f32> {
    let n = x.len() / inputs;
    let g = Geometry::new(Conv2d::same([1, 1], 1), [n, 1, 1, inputs], outputs);
    let mut rows = vec![0.0; n * outputs];
    forward(g, x, weight, Epilogue { bias, residual: None, relu: false }, &mut rows);
    rows
}
