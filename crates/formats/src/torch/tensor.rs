//! Tensors as a file describes them: where their numbers lie, and how those become Rust's.

use super::Fault;
use half::{bf16, f16};
use std::sync::Arc;

/// A tensor of more dimensions is taken for damage.
const MOST_DIMENSIONS: usize = 8;

/// A tensor that repeats elements (stride 0) may have this many, however few there are in the file.
const MOST_REPEATED: u64 = 1 << 20;

/// Type of a tensor's or array's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// float64.
    F64,
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// int64.
    I64,
    /// int32.
    I32,
    /// int16.
    I16,
    /// int8.
    I8,
    /// uint64.
    U64,
    /// uint32.
    U32,
    /// uint16.
    U16,
    /// uint8.
    U8,
    /// Truth values in a byte each.
    Bool,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The type that a storage class stands for; storages without a type hold bytes.
    pub(super) fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" | "UntypedStorage" | "_UntypedStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// The type that PyTorch (`torch.uint16`) or NumPy (`u2`) calls by a name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "torch.float64" | "f8" => Self::F64,
            "torch.float32" | "f4" => Self::F32,
            "torch.float16" | "f2" => Self::F16,
            "torch.bfloat16" => Self::Bf16,
            "torch.int64" | "i8" => Self::I64,
            "torch.int32" | "i4" => Self::I32,
            "torch.int16" | "i2" => Self::I16,
            "torch.int8" | "i1" => Self::I8,
            "torch.uint64" | "u8" => Self::U64,
            "torch.uint32" | "u4" => Self::U32,
            "torch.uint16" | "u2" => Self::U16,
            "torch.uint8" | "u1" => Self::U8,
            "torch.bool" | "b1" => Self::Bool,
            _ => return None,
        })
    }

    /// Converts little-endian numbers and appends them. An incomplete number at the end is left out.
    pub(super) fn append<T>(self, bytes: &[u8], out: &mut Vec<T>, to: impl Fn(f64) -> T) {
        fn each<T, const N: usize>(bytes: &[u8], out: &mut Vec<T>, number: impl Fn([u8; N]) -> T) {
            out.extend(bytes.as_chunks::<N>().0.iter().map(|&chunk| number(chunk)));
        }
        match self {
            Self::F64 => each(bytes, out, |b| to(f64::from_le_bytes(b))),
            Self::F32 => each(bytes, out, |b| to(f32::from_le_bytes(b) as f64)),
            Self::F16 => each(bytes, out, |b| to(f16::from_le_bytes(b).to_f64())),
            Self::Bf16 => each(bytes, out, |b| to(bf16::from_le_bytes(b).to_f64())),
            Self::I64 => each(bytes, out, |b| to(i64::from_le_bytes(b) as f64)),
            Self::I32 => each(bytes, out, |b| to(i32::from_le_bytes(b) as f64)),
            Self::I16 => each(bytes, out, |b| to(i16::from_le_bytes(b) as f64)),
            Self::I8 => each(bytes, out, |b| to(i8::from_le_bytes(b) as f64)),
            Self::U64 => each(bytes, out, |b| to(u64::from_le_bytes(b) as f64)),
            Self::U32 => each(bytes, out, |b| to(u32::from_le_bytes(b) as f64)),
            Self::U16 => each(bytes, out, |b| to(u16::from_le_bytes(b) as f64)),
            Self::U8 => each(bytes, out, |[b]: [u8; 1]| to(b as f64)),
            Self::Bool => each(bytes, out, |[b]: [u8; 1]| to((b != 0) as u8 as f64)),
        }
    }
}

/// A piece of memory that tensors look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    /// Its name in the file.
    pub(super) key: String,
    pub(super) dtype: Dtype,
    /// How many elements the whole of it has.
    pub(super) elements: u64,
    /// Where this view of it begins: only files of before 2018 have views.
    pub(super) offset: u64,
}

/// A tensor's description; [`TorchFile::floats`](super::TorchFile::floats) reads its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Index of the first element in the storage.
    offset: u64,
    /// Number of elements from the first to the last one used; 0 if there are none.
    span: u64,
}

impl Tensor {
    /// A tensor over a storage, if all its elements lie inside.
    pub(super) fn new(
        storage: Arc<Storage>,
        dtype: Dtype,
        offset: u64,
        shape: Vec<usize>,
        mut strides: Vec<usize>,
    ) -> Result<Self, Fault> {
        let wrong = || format!("has a damaged tensor: shape {shape:?} with strides {strides:?} at {offset}");
        if shape.len() != strides.len() || shape.len() > MOST_DIMENSIONS {
            return Err(wrong());
        }
        let offset = offset.checked_add(storage.offset).ok_or_else(wrong)?;
        let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64)).ok_or_else(wrong)?;
        let last = shape.iter().zip(&strides).try_fold(0u64, |sum, (&d, &stride)| {
            (d.saturating_sub(1) as u64).checked_mul(stride as u64)?.checked_add(sum)
        });
        let span = if count == 0 { 0 } else { last.and_then(|n| n.checked_add(1)).ok_or_else(wrong)? };
        let held = storage.elements.checked_mul(storage.dtype.size() as u64).ok_or_else(wrong)? / dtype.size() as u64;
        let end = offset.checked_add(span).ok_or_else(wrong)?;
        if span > 0 && end > held {
            return Err(format!("{}, but its storage has {held} elements", wrong()));
        }
        if count > span.max(MOST_REPEATED) {
            return Err(format!("{}, which repeats {span} elements too often", wrong()));
        }
        // A dimension of one element is never stepped along, and its stride may be anything.
        shape.iter().zip(&mut strides).filter(|(length, _)| **length == 1).for_each(|(_, stride)| *stride = 0);
        Ok(Self { storage, dtype, shape, strides, offset, span })
    }

    /// Length of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the numbers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Name of the storage.
    pub(super) fn key(&self) -> &str {
        &self.storage.key
    }

    /// First byte and number of bytes that hold all elements.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let size = self.dtype.size() as u64;
        (self.offset * size, self.span * size)
    }

    /// Takes the elements in C order out of those that [`Self::bytes`] names.
    pub(super) fn gather<T: Copy>(&self, span: Vec<T>) -> Vec<T> {
        if self.is_contiguous() {
            return span;
        }
        let mut indices = vec![0; self.shape.len()];
        let mut at = 0;
        let mut out = Vec::with_capacity(self.count());
        for _ in 0..self.count() {
            out.push(span[at]);
            for ((index, &length), &stride) in indices.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
                *index += 1;
                at += stride;
                if *index < length {
                    break;
                }
                at -= length * stride;
                *index = 0;
            }
        }
        out
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.count() == 0
            || self.shape.iter().zip(&self.strides).rev().all(|(&length, &stride)| {
                let fits = length == 1 || stride == expected;
                expected *= length;
                fits
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(elements: u64, offset: u64, shape: &[usize], strides: &[usize]) -> Result<Tensor, Fault> {
        let storage = Storage { key: "0".into(), dtype: Dtype::F32, elements, offset: 0 };
        Tensor::new(Arc::new(storage), Dtype::F32, offset, shape.into(), strides.into())
    }

    #[test]
    fn transposed_elements_come_in_c_order() {
        let t = tensor(7, 1, &[3, 2], &[1, 3]).unwrap();
        assert_eq!(t.bytes(), (4, 24));
        assert_eq!(t.gather(vec![0, 1, 2, 3, 4, 5]), [0, 3, 1, 4, 2, 5]);
        assert_eq!(tensor(4, 0, &[1, 4], &[usize::MAX, 1]).unwrap().gather(vec![1, 2, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(tensor(4, 0, &[2, 1], &[3, usize::MAX]).unwrap().gather(vec![1, 2, 3, 4]), [1, 4]);
        let column = tensor(6, 2, &[2, 1], &[3, 1]).unwrap();
        assert_eq!(column.gather(vec![2, 3, 4, 5]), [2, 5]);
        assert_eq!(tensor(1, 0, &[2, 2], &[0, 0]).unwrap().gather(vec![7]), [7; 4]);
        assert_eq!(tensor(4, 0, &[], &[]).unwrap().gather(vec![7]), [7]);
        assert!(tensor(0, 0, &[0, 3], &[3, 1]).unwrap().gather(Vec::<u8>::new()).is_empty());
    }

    #[test]
    fn elements_outside_the_storage_are_refused() {
        assert!(tensor(6, 0, &[2, 3], &[3, 1]).is_ok());
        assert!(tensor(6, 1, &[2, 3], &[3, 1]).is_err());
        assert!(tensor(6, 0, &[2, 3], &[4, 1]).is_err());
        assert!(tensor(6, u64::MAX, &[1], &[1]).is_err());
        assert!(tensor(6, 0, &[usize::MAX, 2], &[0, 0]).is_err());
        assert!(tensor(6, 0, &[2, 2], &[usize::MAX, usize::MAX]).is_err());
        assert!(tensor(u64::MAX, 0, &[1], &[1]).is_err());
        assert!(tensor(6, 0, &[1; 9], &[1; 9]).is_err());
        assert!(tensor(6, 0, &[2], &[]).is_err());
        for elements in [1, 1 << 40] {
            let bomb = tensor(elements, 0, &[1 << 30], &[0]).unwrap_err();
            assert!(bomb.contains("repeats"), "{bomb}");
        }
    }

    #[test]
    fn every_type_becomes_a_number() {
        let read = |dtype: Dtype, bytes: &[u8]| {
            let mut out = Vec::new();
            dtype.append(bytes, &mut out, |v| v);
            out
        };
        assert_eq!(read(Dtype::F64, &(-1.5f64).to_le_bytes()), [-1.5]);
        assert_eq!(read(Dtype::F32, &(-1.5f32).to_le_bytes()), [-1.5]);
        assert_eq!(read(Dtype::F16, &[0x00, 0xbe, 0x00, 0x7c]), [-1.5, f64::INFINITY]);
        assert_eq!(read(Dtype::Bf16, &[0xc0, 0xbf]), [-1.5]);
        assert_eq!(read(Dtype::I64, &(-3i64).to_le_bytes()), [-3.0]);
        assert_eq!(read(Dtype::I32, &(-3i32).to_le_bytes()), [-3.0]);
        assert_eq!(read(Dtype::I16, &(-3i16).to_le_bytes()), [-3.0]);
        assert_eq!(read(Dtype::I8, &[0xfd, 3]), [-3.0, 3.0]);
        assert_eq!(read(Dtype::U64, &[0xff, 0, 0, 0, 0, 0, 0, 0]), [255.0]);
        assert_eq!(read(Dtype::U32, &[0xff, 0, 0, 0]), [255.0]);
        assert_eq!(read(Dtype::U16, &[0xff, 1, 9]), [511.0]);
        assert_eq!(read(Dtype::U8, &[0xff]), [255.0]);
        assert_eq!(read(Dtype::Bool, &[0, 1, 2]), [0.0, 1.0, 1.0]);
    }
}
