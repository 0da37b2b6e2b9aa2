//! The tile registers: those of the processor, and for tests a program that does what they do.

#![expect(clippy::inline_always, reason = "instructions of the innermost loops")]

use std::arch::asm;

/// Rows of a tile, and cells of a row: two values of bf16 or one of f32 each.
pub(super) const SIDE: usize = 16;

/// Bytes of a tile's row.
pub(super) const ROW: usize = 4 * SIDE;

/// Eight tiles: 0 to 3 hold the sums of two by two products, 4 and 5 rows, 6 and 7 columns. A column tile has a row for each cell.
///
/// # Safety
/// All functions: this process may use the tiles. Addresses are valid for the tile's rows, `stride` bytes apart.
pub(crate) trait Tiles {
    /// Takes the registers, for up to 16 rows in each of two tiles.
    unsafe fn take(rows: [usize; 2]) -> Self;
    /// Changes the number of rows. What the registers held is lost.
    unsafe fn shape(&mut self, rows: [usize; 2]);
    unsafe fn zero<const TILE: usize>(&mut self);
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize);
    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize);
    /// Adds the products of rows and columns to sums. They are rounded to f32 after each pair of products; subnormal numbers count
    /// as zero.
    unsafe fn dot<const SUMS: usize, const ROWS: usize, const COLUMNS: usize>(&mut self);
}

/// How the registers are told their shapes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Rows of each tile.
fn rows_of([first, second]: [usize; 2]) -> [usize; 8] {
    [first, first, second, second, first, second, SIDE, SIDE]
}

/// The processor's.
pub(crate) struct Amx;

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn take(rows: [usize; 2]) -> Self {
        let mut tiles = Self;
        // SAFETY: the caller's promise.
        unsafe { tiles.shape(rows) };
        tiles
    }

    #[inline(always)]
    unsafe fn shape(&mut self, rows: [usize; 2]) {
        let mut shape = Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, rows) in rows_of(rows).into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
            (shape.row_bytes[tile], shape.rows[tile]) = (ROW as u16, rows as u8);
        }
        // SAFETY: the process may use the tiles (the caller's promise, here and below).
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn zero<const TILE: usize>(&mut self) {
        // SAFETY: as above.
        unsafe { asm!("tilezero tmm{}", const TILE, options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: as above, and the rows lie in memory.
        unsafe {
            asm!("tileloadd tmm{tile}, [{at} + {stride}*1]", tile = const TILE, at = in(reg) from, stride = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize) {
        // SAFETY: as above, and the rows lie in memory.
        unsafe {
            asm!("tilestored [{at} + {stride}*1], tmm{tile}", tile = const TILE, at = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn dot<const SUMS: usize, const ROWS: usize, const COLUMNS: usize>(&mut self) {
        // SAFETY: as above.
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const ROWS, const COLUMNS, options(nostack, preserves_flags));
        }
    }
}

impl Drop for Amx {
    /// Tiles that are free need not be saved when the thread is switched.
    fn drop(&mut self) {
        // SAFETY: whoever made this may use the tiles.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}

/// A program that does what the processor's do.
pub(crate) struct Emulated {
    rows: [usize; 8],
    /// Rows of cells.
    tiles: [[[u32; SIDE]; SIDE]; 8],
}

impl Tiles for Emulated {
    unsafe fn take(rows: [usize; 2]) -> Self {
        Self { rows: rows_of(rows), tiles: [[[0; SIDE]; SIDE]; 8] }
    }

    unsafe fn shape(&mut self, rows: [usize; 2]) {
        // What was there is lost: not a number.
        *self = Self { rows: rows_of(rows), tiles: [[[u32::MAX; SIDE]; SIDE]; 8] };
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        self.tiles[TILE] = [[0; SIDE]; SIDE];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        // Rows beyond the shape's are zeros.
        self.tiles[TILE] = [[0; SIDE]; SIDE];
        for (i, row) in self.tiles[TILE].iter_mut().take(self.rows[TILE]).enumerate() {
            // SAFETY: the rows lie in memory (the caller's promise).
            *row = unsafe { from.add(i * stride).cast::<[u32; SIDE]>().read_unaligned() };
        }
    }

    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize) {
        for (i, row) in self.tiles[TILE].iter().take(self.rows[TILE]).enumerate() {
            // SAFETY: as above.
            unsafe { to.add(i * stride).cast::<[u32; SIDE]>().write_unaligned(*row) };
        }
    }

    unsafe fn dot<const SUMS: usize, const ROWS: usize, const COLUMNS: usize>(&mut self) {
        assert_eq!((self.rows[SUMS], self.rows[COLUMNS]), (self.rows[ROWS], SIDE), "tiles that do not fit each other");
        let halves = |cell: u32| [f32::from_bits(cell << 16), f32::from_bits(cell & 0xffff_0000)];
        for i in 0..self.rows[ROWS] {
            let mut sums = self.tiles[SUMS][i].map(f32::from_bits);
            for k in 0..SIDE {
                let [a, b] = halves(self.tiles[ROWS][i][k]);
                for (sum, &cell) in sums.iter_mut().zip(&self.tiles[COLUMNS][k]) {
                    let [c, d] = halves(cell);
                    *sum += a * c;
                    *sum += b * d;
                }
            }
            self.tiles[SUMS][i] = sums.map(f32::to_bits);
        }
    }
}
