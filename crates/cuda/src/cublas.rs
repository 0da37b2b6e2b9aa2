//! Matrix products by cuBLASLt.
//!
//! cuBLASLt's matrices are column-major: a matrix `[rows, columns]` here is what C calls `[columns, rows]`. The heuristics'
//! first algorithm is taken; split sums go through memory of their own, so that results repeat bit for bit.

#![allow(unsafe_code, reason = "functions of C")]

use crate::error::{Error, Result};
use crate::ffi::{self, Handle};
use crate::kind::Type;
use crate::memory::Address;
use crate::turn::Turn;
use std::ffi::c_int;

/// Bytes that an algorithm may take beside its operands.
pub const WORKSPACE: usize = 32 << 20;

/// A matrix of a product, or one for each of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// The type of its values.
    pub kind: Type,
    /// Rows, which lie next to each other.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Values from one column to the next.
    pub stride: usize,
    /// Values from one matrix of the batch to the next.
    pub apart: usize,
    /// Whether its transpose is a factor.
    pub transposed: bool,
}

impl Matrix {
    /// One whose columns lie `stride` values apart, and `apart` values from that of the batch before.
    pub fn new(kind: Type, [rows, columns]: [usize; 2], stride: usize, apart: usize) -> Self {
        Self { kind, rows, columns, stride, apart, transposed: false }
    }

    /// Its transpose.
    #[must_use]
    pub fn transpose(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// `d = a·b`, for each of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// The left factor.
    pub a: Matrix,
    /// The right factor.
    pub b: Matrix,
    /// What is made.
    pub d: Matrix,
    /// Products of the batch.
    pub batch: usize,
    /// Whether a value for each row, of the type of `d`, is added to all columns.
    pub bias: bool,
    /// Whether a matrix shaped as `d` is added.
    pub onto: bool,
}

/// A product for which an algorithm was chosen.
pub struct Multiplication {
    library: &'static ffi::CublasLt,
    product: Product,
    description: Handle,
    layouts: [Handle; 3],
    algorithm: [u64; 8],
    workspace: usize,
}

// SAFETY: descriptions are read under the GPU's lock, but for the bias' place, which each call sets first.
unsafe impl Send for Multiplication {}
// SAFETY: as above.
unsafe impl Sync for Multiplication {}

/// The library with its handle.
pub(crate) struct CublasLt {
    library: &'static ffi::CublasLt,
    handle: Handle,
}

/// An answer of the heuristics, as the header has it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

fn checked(call: &'static str, code: c_int) -> Result<()> {
    let text = match code {
        0 => return Ok(()),
        3 => "no memory",
        7 => "an invalid value",
        8 => "this GPU is not supported",
        13 => "the kernel could not be started",
        15 => "this matrix product is not supported",
        _ => "see cublasStatus_t",
    };
    Err(Error::Call { call, code, text: text.into() })
}

macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let library = $library;
        // SAFETY: pointers are valid for the call, handles are the library's own.
        let code = unsafe { (library.$function)($($argument),*) };
        checked(stringify!($function), code)
    }};
}

impl CublasLt {
    pub(crate) fn new(library: &'static ffi::CublasLt) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        call!(library, cublasLtCreate(&raw mut handle))?;
        Ok(Self { library, handle })
    }

    fn layout(&self, matrix: &Matrix, batch: usize) -> Result<Handle> {
        let mut layout = std::ptr::null_mut();
        let (rows, columns, stride) = (matrix.rows as u64, matrix.columns as u64, matrix.stride as i64);
        call!(self.library, cublasLtMatrixLayoutCreate(&raw mut layout, matrix.kind.cublas(), rows, columns, stride))?;
        if batch > 1 {
            let set = |name, value: *const i64, size| {
                call!(self.library, cublasLtMatrixLayoutSetAttribute(layout, name, value.cast(), size))
            };
            let (count, apart) = (batch as i64, matrix.apart as i64);
            // The count has 32 bits, the first of 64.
            set(5, &raw const count, 4)?;
            set(6, &raw const apart, 8)?;
        }
        Ok(layout)
    }

    /// Chooses an algorithm: the first that the heuristics name.
    pub(crate) fn choose(&self, product: Product) -> Result<Multiplication> {
        let library = self.library;
        let mut description = std::ptr::null_mut();
        // Sums and factors are f32.
        call!(library, cublasLtMatmulDescCreate(&raw mut description, 68, 0))?;
        let set = |name, value: c_int| {
            call!(library, cublasLtMatmulDescSetAttribute(description, name, (&raw const value).cast(), 4))
        };
        set(3, c_int::from(product.a.transposed))?;
        set(4, c_int::from(product.b.transposed))?;
        if product.bias {
            set(7, 4)?;
            set(26, product.d.kind.cublas())?;
        }
        let layout = |matrix| self.layout(matrix, product.batch);
        let layouts = [layout(&product.a)?, layout(&product.b)?, layout(&product.d)?];
        let mut preference = std::ptr::null_mut();
        call!(library, cublasLtMatmulPreferenceCreate(&raw mut preference))?;
        let prefer = |name, value: *const u64, size| {
            call!(library, cublasLtMatmulPreferenceSetAttribute(preference, name, value.cast(), size))
        };
        // Sums that were split are kept in f32 (2) or the output's type (4), never added up in place (1).
        let (workspace, schemes) = (WORKSPACE as u64, 6u64);
        prefer(1, &raw const workspace, 8)?;
        prefer(3, &raw const schemes, 4)?;
        let (mut found, mut count) = (Found::default(), 0);
        let [a, b, d] = layouts;
        let asked = call!(
            library,
            cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                a,
                b,
                d,
                d,
                preference,
                1,
                (&raw mut found).cast(),
                &raw mut count,
            )
        );
        call!(library, cublasLtMatmulPreferenceDestroy(preference))?;
        asked?;
        if count == 0 || found.state != 0 {
            let text = format!("no algorithm for {product:?}");
            return Err(Error::Call { call: "cublasLtMatmulAlgoGetHeuristic", code: found.state, text });
        }
        let (algorithm, workspace) = (found.algorithm, found.workspace);
        Ok(Multiplication { library, product, description, layouts, algorithm, workspace })
    }
}

impl Drop for Multiplication {
    fn drop(&mut self) {
        for layout in self.layouts {
            let _ = call!(self.library, cublasLtMatrixLayoutDestroy(layout));
        }
        let _ = call!(self.library, cublasLtMatmulDescDestroy(self.description));
    }
}

impl Multiplication {
    /// Bytes that it takes beside its operands.
    pub fn workspace(&self) -> usize {
        self.workspace
    }
}

/// The operands of a product.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// The left factor.
    pub a: Address,
    /// The right factor.
    pub b: Address,
    /// What is added, if the product has that.
    pub onto: Address,
    /// Added to all columns, if the product has that.
    pub bias: Address,
    /// What is made.
    pub d: Address,
}

impl Turn {
    /// Chooses an algorithm for a product: the first that the heuristics name. Nothing may be recorded meanwhile.
    ///
    /// # Errors
    /// A product that cuBLASLt does not serve.
    pub fn choose(&self, product: Product) -> Result<Multiplication> {
        self.gpu().cublas.choose(product)
    }

    /// Multiplies. As many bytes as it asks for are at `workspace`.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn multiply(&self, m: &Multiplication, factors: Factors, workspace: Address) -> Result<()> {
        let CublasLt { library, handle } = self.gpu().cublas;
        let Factors { a, b, onto, bias, d } = factors;
        if m.product.bias {
            let at = &raw const bias.0;
            call!(library, cublasLtMatmulDescSetAttribute(m.description, 8, at.cast(), 8))?;
        }
        let (alpha, beta) = (1f32, if m.product.onto { 1f32 } else { 0.0 });
        let onto = if m.product.onto { onto } else { d };
        let [of_a, of_b, of_d] = m.layouts;
        let pointer = |address: Address| address.0 as *mut std::ffi::c_void;
        call!(
            library,
            cublasLtMatmul(
                handle,
                m.description,
                (&raw const alpha).cast(),
                pointer(a),
                of_a,
                pointer(b),
                of_b,
                (&raw const beta).cast(),
                pointer(onto),
                of_d,
                pointer(d),
                of_d,
                m.algorithm.as_ptr().cast(),
                pointer(workspace),
                m.workspace,
                self.stream.get(),
            )
        )
    }
}
