//! Sizes and types of values.

use serde::{Deserialize, Serialize};

/// The type of activations and matrix products. Parameters, moments, averages, statistics, sums and losses are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// f32, which a processor with AMX multiplies as three products of bf16 in its tiles, with an error of at most 3·2⁻¹⁶ of each.
    /// Elsewhere the same as f32.
    Bf16x3,
    /// The upper 16 of them.
    Bf16,
    /// Half precision: activations are kept in it and computed as f32. Training scales the loss.
    F16,
}

impl Precision {
    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::Bf16x3 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// What activations are kept in.
    #[must_use]
    pub const fn kept(self) -> Self {
        match self {
            Self::Bf16x3 => Self::F32,
            other => other,
        }
    }

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16x3 => "bf16x3",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

impl From<Precision> for ddpm_cuda::Type {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::Bf16x3 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::F16 => Self::F16,
        }
    }
}

/// Sizes of a value: `n` images of `h` rows and `w` columns with `c` channels. Rows `[N, C]` are images of one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Rows of pixels.
    pub h: usize,
    /// Columns of pixels.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// `[N, C]`.
    pub const fn rows(n: usize, c: usize) -> Self {
        Self { n, h: 1, w: 1, c }
    }

    /// Pixels of an image.
    pub const fn pixels(self) -> usize {
        self.h * self.w
    }

    /// Values in all.
    pub const fn len(self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Whether there is no value.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The same pixels with other channels.
    #[must_use]
    pub const fn with_channels(self, c: usize) -> Self {
        Self { c, ..self }
    }
}

/// Shape and type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) shape: Shape,
    pub(crate) precision: Precision,
}

impl Kind {
    pub(crate) fn bytes(self) -> usize {
        self.shape.len() * self.precision.bytes()
    }
}
