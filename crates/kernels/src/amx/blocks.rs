//! Two by two tiles of sums, side by side.

use super::tiles::{SIDE, Tiles};
use half::bf16;

/// Positions, or channels, of two tiles side by side; and values of a row of bf16.
pub(super) const WIDE: usize = 2 * SIDE;

/// Values of a tile of bf16.
pub(super) const TILE: usize = SIDE * WIDE;

/// Values of two by two tiles of sums.
pub(super) const SUMS: usize = WIDE * WIDE;

/// Where two by two tiles of sums begin that are [`SUMS`] values, row by row.
fn quarters(sums: *mut f32) -> [*mut u8; 4] {
    [0, SIDE, SIDE * WIDE, SIDE * WIDE + SIDE].map(|at| sums.wrapping_add(at).cast())
}

/// # Safety
/// The process may use the tiles.
pub(super) unsafe fn zero_sums<T: Tiles, const BOTH: bool>(tiles: &mut T) {
    // SAFETY: the caller's promise.
    unsafe {
        tiles.zero::<0>();
        tiles.zero::<1>();
        if BOTH {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
    }
}

/// # Safety
/// The process may use the tiles, and `sums` is valid for [`SUMS`] values.
pub(super) unsafe fn load_sums<T: Tiles, const BOTH: bool>(tiles: &mut T, sums: *mut f32) {
    let [a, b, c, d] = quarters(sums);
    // SAFETY: the caller's promise.
    unsafe {
        tiles.load::<0>(a, 4 * WIDE);
        tiles.load::<1>(b, 4 * WIDE);
        if BOTH {
            tiles.load::<2>(c, 4 * WIDE);
            tiles.load::<3>(d, 4 * WIDE);
        }
    }
}

/// # Safety
/// As [`load_sums`].
pub(super) unsafe fn store_sums<T: Tiles, const BOTH: bool>(tiles: &T, sums: *mut f32) {
    let [a, b, c, d] = quarters(sums);
    // SAFETY: the caller's promise.
    unsafe {
        tiles.store::<0>(a, 4 * WIDE);
        tiles.store::<1>(b, 4 * WIDE);
        if BOTH {
            tiles.store::<2>(c, 4 * WIDE);
            tiles.store::<3>(d, 4 * WIDE);
        }
    }
}

/// Adds two by two products: of two tiles of rows, `stride` values apart, with 16 cells of 32 columns. Without
/// `BOTH` only those of the first tile of rows.
///
/// # Safety
/// The process may use the tiles, and all lie in memory.
#[expect(clippy::inline_always, reason = "the innermost loop")]
#[inline(always)]
pub(super) unsafe fn step<T: Tiles, const BOTH: bool>(
    tiles: &mut T,
    rows: *const bf16,
    stride: usize,
    columns: *const bf16,
) {
    // SAFETY: the caller's promise.
    unsafe {
        tiles.load::<4>(rows.cast(), 2 * stride);
        tiles.load::<6>(columns.cast(), 4 * WIDE);
        tiles.load::<7>(columns.add(WIDE).cast(), 4 * WIDE);
        tiles.dot::<0, 4, 6>();
        tiles.dot::<1, 4, 7>();
        if BOTH {
            tiles.load::<5>(rows.add(SIDE * stride).cast(), 2 * stride);
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
    }
}
