//! Matrix products of bf16 in the tile registers of AMX: 16 x 16 sums of 32 products each by one instruction.
//!
//! A tile of the left-hand side has 16 rows of 16 cells, one of a panel 16 cells of 16 columns: the layouts of [`Left`] and
//! [`Panel`] as they are, if the left-hand side's cells follow each other.

#![allow(unsafe_code, reason = "instructions without an intrinsic in stable Rust")]

mod blocks;
mod conv;
mod parts;
#[cfg(test)]
mod tests;
mod tiles;
mod weight_grad;

use crate::Isa;
use crate::buffer::with_scratch;
use crate::conv::{Epilogue, Geometry};
use crate::element::Element;
use crate::product::{Left, Panel, panel_columns};
use crate::transpose::transpose;
pub(crate) use conv::{convolve_scratch, pack, packed_len};
use tiles::{Amx, Emulated, ROW, SIDE, Tiles};
pub(crate) use weight_grad::weight_grad_scratch;

/// Calls a function with the tiles of this process.
macro_rules! in_tiles {
    ($($function:ident)::+, $E:ident, $($arg:expr),*) => {
        match Isa::current() {
            // SAFETY: this instruction set was selected, so that the process has the tiles.
            Isa::AmxBf16 => unsafe { $($function)::+::<Amx, $E>($($arg),*) },
            // SAFETY: every process has these.
            Isa::AmxEmulated => unsafe { $($function)::+::<Emulated, $E>($($arg),*) },
            _ => panic!("tiles that were not asked for"),
        }
    };
}

/// The convolution of `x` `[N, H, W, C]` with packed weights, into `out` `[N, H', W', O]`.
///
/// # Panics
/// If the instruction set has no tiles (here and below).
pub(crate) fn convolve<E: Element>(g: Geometry, x: &[E], packed: &[E], epilogue: Epilogue<E>, out: &mut [E]) {
    in_tiles!(conv::convolve, E, g, x, packed, epilogue, out);
}

/// The gradient of the weights `[O, C, k, k]` of a 3x3 or 1x1 convolution, from the input and the output's gradient. What is summed in
/// which order depends on the layer and the batch alone.
pub(crate) fn weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E], weight: &mut [f32]) {
    in_tiles!(weight_grad::weight_grad, E, g, x, grad, weight);
}

/// Whether processor and system offer the tiles and this process may use them, and they multiply as they should.
pub(crate) fn is_usable() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::is_x86_feature_detected as has;

    #[target_feature(enable = "xsave")]
    fn saved_state() -> u64 {
        // SAFETY: the caller has seen that the system uses XSAVE.
        unsafe { _xgetbv(0) }
    }

    /// Bits of the extended control register: configuration and data of the tiles.
    const SAVED: u64 = 0b11 << 17;
    /// Bits of leaf 7: products of bf16, tiles.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    if !has!("xsave") || !has!("avx512f") || __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & FEATURES != FEATURES {
        return false;
    }
    // SAFETY: the processor has XSAVE, and the system uses it, or AVX-512 would not be there.
    unsafe { saved_state() & SAVED == SAVED && is_permitted() && multiplies() }
}

/// Asks the system for the tiles' state, which programs do not have from the beginning.
fn is_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        /// `ARCH_REQ_XCOMP_PERM`, and the number of the tiles' data.
        const REQUEST: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: the call only sets a permission of this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// A product of small integers, whose sums are exact in every order, with rows, cells and columns that fill no tile.
fn multiplies() -> bool {
    use half::bf16;
    const ROWS: usize = 37;
    const CELLS: usize = 21;
    const COLUMNS: usize = 2 * SIDE;
    let a = |r: usize, k: usize| ((r * 5 + k * 3) % 17) as f32 - 8.0;
    let b = |k: usize, c: usize| ((k * 7 + c * 11) % 19) as f32 - 9.0;
    let left: Vec<bf16> = (0..ROWS * 2 * CELLS).map(|i| bf16::from_f32(a(i / (2 * CELLS), i % (2 * CELLS)))).collect();
    let right = |i: usize| b(i / (2 * COLUMNS) * 2 + i % 2, i / 2 % COLUMNS);
    let right: Vec<bf16> = (0..CELLS * 2 * COLUMNS).map(|i| bf16::from_f32(right(i))).collect();
    let mut sums = vec![1.0; ROWS * COLUMNS];
    let lhs = Left { data: &left, rows: ROWS, cells: CELLS, row_stride: 2 * CELLS, cell_stride: 2 };
    // SAFETY: the caller has asked for the tiles and got them; 32 columns are those of AVX-512.
    unsafe { product_of::<Amx, _>(&mut sums, COLUMNS, lhs, Panel { data: &right, stride: 2 * COLUMNS }, true) };
    sums.iter()
        .enumerate()
        .all(|(i, &sum)| sum == 1.0 + (0..2 * CELLS).map(|k| a(i / COLUMNS, k) * b(k, i % COLUMNS)).sum::<f32>())
}

/// As [`product`](crate::product::product), for bf16.
///
/// # Panics
/// If the product reaches past its operands.
pub(crate) fn product<E: Element>(dst: &mut [f32], dst_stride: usize, lhs: Left<E>, panel: Panel<E>, accumulate: bool) {
    assert!(E::STEP == 2 && panel_columns() == 2 * SIDE, "tiles of another type");
    if lhs.cell_stride == E::STEP {
        return in_tiles!(product_of, E, dst, dst_stride, lhs, panel, accumulate);
    }
    // The cells of a row do not follow each other: those of a column do.
    assert_eq!(lhs.row_stride, E::STEP, "a matrix whose cells follow each other neither way");
    let width = lhs.cells * E::STEP;
    let cells = &lhs.data[..(lhs.cells - 1) * lhs.cell_stride + lhs.rows * E::STEP];
    with_scratch(lhs.rows * lhs.cells, |turned: &mut [f32]| {
        // A cell has the size of an f32, and moving one changes no bit of it.
        let mut turn = |cells: &[f32]| {
            transpose(cells, lhs.cell_stride / E::STEP, [lhs.cells, lhs.rows], turned, lhs.cells);
        };
        match bytemuck::try_cast_slice(cells) {
            Ok(cells) => turn(cells),
            Err(_) => with_scratch(cells.len() / E::STEP, |copy: &mut [f32]| {
                bytemuck::cast_slice_mut::<f32, E>(copy).copy_from_slice(cells);
                turn(copy);
            }),
        }
        let data = bytemuck::cast_slice::<f32, E>(turned);
        let lhs = Left { data, row_stride: width, cell_stride: E::STEP, ..lhs };
        in_tiles!(product_of, E, dst, dst_stride, lhs, panel, accumulate);
    });
}

/// # Safety
/// The process may use the tiles. Cells of the left-hand side follow each other, and panels have 32 columns.
unsafe fn product_of<T: Tiles, E: Element>(
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Left<E>,
    panel: Panel<E>,
    accumulate: bool,
) {
    const COLUMNS: usize = 2 * SIDE;
    if lhs.rows == 0 {
        return;
    }
    assert!(lhs.cells > 0 && size_of::<E>() == 2, "a product of nothing, or of another type");
    assert!((lhs.cells - 1) * panel.stride + 2 * COLUMNS <= panel.data.len(), "a panel is too short");
    assert!(COLUMNS <= dst_stride && (lhs.rows - 1) * dst_stride + COLUMNS <= dst.len(), "product out of bounds");
    assert!((lhs.rows - 1) * lhs.row_stride + 2 * lhs.cells <= lhs.data.len(), "matrix view reaches past its data");
    let (whole, rest) = (lhs.cells / SIDE, lhs.cells % SIDE);
    // The last cells, with zeros to a whole tile: of the panel once, of the rows as they come.
    let mut last_columns = [[E::default(); 2 * COLUMNS]; SIDE];
    for (i, cell) in last_columns.iter_mut().take(rest).enumerate() {
        cell.copy_from_slice(&panel.data[(whole * SIDE + i) * panel.stride..][..2 * COLUMNS]);
    }
    let mut last_rows = [[E::default(); 2 * SIDE]; 2 * SIDE];
    let (row_bytes, cell_bytes, dst_bytes) = (2 * lhs.row_stride, 2 * panel.stride, 4 * dst_stride);
    let mut shaped = [lhs.rows.min(SIDE), lhs.rows.saturating_sub(SIDE).min(SIDE)];
    // SAFETY: the process may use the tiles.
    let mut tiles = unsafe { T::take(shaped) };
    for row in (0..lhs.rows).step_by(2 * SIDE) {
        let count = (lhs.rows - row).min(2 * SIDE);
        let rows = [count.min(SIDE), count.saturating_sub(SIDE)];
        let both = rows[1] > 0;
        for (i, last) in last_rows.iter_mut().take(if rest > 0 { count } else { 0 }).enumerate() {
            last[..2 * rest].copy_from_slice(&lhs.data[(row + i) * lhs.row_stride + 2 * whole * SIDE..][..2 * rest]);
        }
        // SAFETY: the tiles' rows lie inside the operands: `count` rows of whole cells, checked above, or of the arrays.
        unsafe {
            if std::mem::replace(&mut shaped, rows) != rows {
                tiles.shape(rows);
            }
            let (c, low) = (dst.as_mut_ptr().add(row * dst_stride), SIDE * dst_stride);
            if accumulate {
                tiles.load::<0>(c.cast(), dst_bytes);
                tiles.load::<1>(c.add(SIDE).cast(), dst_bytes);
                if both {
                    tiles.load::<2>(c.add(low).cast(), dst_bytes);
                    tiles.load::<3>(c.add(low + SIDE).cast(), dst_bytes);
                }
            } else {
                tiles.zero::<0>();
                tiles.zero::<1>();
                if both {
                    tiles.zero::<2>();
                    tiles.zero::<3>();
                }
            }
            for block in 0..whole + usize::from(rest > 0) {
                let (a, a_stride, b, b_stride) = if block < whole {
                    let a = lhs.data.as_ptr().add(row * lhs.row_stride + 2 * block * SIDE);
                    (a, row_bytes, panel.data.as_ptr().add(block * SIDE * panel.stride), cell_bytes)
                } else {
                    (last_rows.as_ptr().cast(), ROW, last_columns.as_ptr().cast(), 2 * ROW)
                };
                tiles.load::<4>(a.cast(), a_stride);
                tiles.load::<6>(b.cast(), b_stride);
                tiles.load::<7>(b.add(2 * SIDE).cast(), b_stride);
                tiles.dot::<0, 4, 6>();
                tiles.dot::<1, 4, 7>();
                if both {
                    tiles.load::<5>(a.byte_add(SIDE * a_stride).cast(), a_stride);
                    tiles.dot::<2, 5, 6>();
                    tiles.dot::<3, 5, 7>();
                }
            }
            tiles.store::<0>(c.cast(), dst_bytes);
            tiles.store::<1>(c.add(SIDE).cast(), dst_bytes);
            if both {
                tiles.store::<2>(c.add(low).cast(), dst_bytes);
                tiles.store::<3>(c.add(low + SIDE).cast(), dst_bytes);
            }
        }
    }
}

/// Runs `rounds` products in each of four tiles of sums, or fewer where a program does them; returns the operations done.
pub(crate) fn peak_loop(rounds: usize) -> f64 {
    /// # Safety
    /// The process may use the tiles.
    unsafe fn run<T: Tiles>(rounds: usize) -> f64 {
        // SAFETY: the caller's promise. No memory is touched.
        unsafe {
            let mut tiles = T::take([SIDE; 2]);
            for _ in 0..rounds {
                tiles.dot::<0, 4, 6>();
                tiles.dot::<1, 4, 7>();
                tiles.dot::<2, 5, 6>();
                tiles.dot::<3, 5, 7>();
            }
        }
        (4 * SIDE * SIDE * SIDE * 2 * 2 * rounds) as f64
    }
    match Isa::current() {
        // SAFETY: this instruction set was selected, so that the process has the tiles.
        Isa::AmxBf16 => unsafe { run::<Amx>(rounds) },
        // SAFETY: every process has these.
        _ => unsafe { run::<Emulated>(rounds / 1000) },
    }
}
