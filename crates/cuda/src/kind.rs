//! Types of values.

/// The type of a value in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// 32 bits.
    F32,
    /// The upper 16 of them.
    Bf16,
    /// Half precision.
    F16,
}

impl Type {
    /// What names of kernels for it end in.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Its number in cuDNN.
    pub(crate) const fn cudnn(self) -> i32 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 9,
            Self::F16 => 2,
        }
    }

    /// Its number in cuBLASLt.
    pub(crate) const fn cublas(self) -> i32 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 14,
            Self::F16 => 2,
        }
    }
}
